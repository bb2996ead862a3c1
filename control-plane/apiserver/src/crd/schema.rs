//! A structural schema: pruning and defaulting. Validation is in `validate`.
//!
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

/// Deeper schemas are refused.
const MAX_DEPTH: usize = 60;

/// One node of a schema.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub type_: String,
    pub nullable: bool,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Additional,
    pub items: Option<Box<Schema>>,
    pub required: Vec<String>,
    pub enum_: Option<Vec<Value>>,
    pub default: Option<Value>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    pub minimum: Option<(f64, bool)>,
    pub maximum: Option<(f64, bool)>,
    pub multiple_of: Option<f64>,
    pub lengths: (Option<u64>, Option<u64>),
    pub counts: (Option<u64>, Option<u64>),
    pub sizes: (Option<u64>, Option<u64>),
    pub unique: bool,
    pub pattern: Option<Regex>,
    pub format: String,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// `x-kubernetes-list-type`: `set` or `map` with these keys.
    pub list_set: bool,
    pub list_keys: Vec<String>,
}

/// `additionalProperties`.
#[derive(Debug, Default)]
pub(super) enum Additional {
    #[default]
    None,
    Any,
    Schema(Box<Schema>),
}

impl Schema {
    /// Reads `openAPIV3Schema`. The error names the place and what is wrong with it.
    pub fn parse(raw: &Value) -> Result<Schema, String> {
        parse(raw, "", 0)
    }

    /// A schema that accepts everything, for versions without one.
    pub fn anything() -> Schema {
        Schema { preserve: true, ..Schema::default() }
    }

    /// Takes unknown fields out of an object; `apiVersion`, `kind` and `metadata` are always known at the root.
    pub fn prune_root(&self, doc: &mut Value, unknown: &mut Vec<String>) {
        self.prune(doc, "", true, unknown);
    }

    fn prune(&self, value: &mut Value, path: &str, is_resource: bool, unknown: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                let own = |key: &str| is_resource && matches!(key, "apiVersion" | "kind" | "metadata");
                let keys: Vec<String> = map.keys().cloned().collect();
                for key in keys {
                    if own(&key) {
                        continue;
                    }
                    let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    let child = self.properties.get(&key).or(match &self.additional {
                        Additional::Schema(schema) => Some(schema.as_ref()),
                        Additional::None | Additional::Any => None,
                    });
                    match child {
                        Some(schema) => {
                            if let Some(inner) = map.get_mut(&key) {
                                schema.prune(inner, &below, schema.embedded, unknown);
                            }
                        }
                        None if self.preserve || matches!(self.additional, Additional::Any) => {}
                        None => {
                            map.remove(&key);
                            unknown.push(below);
                        }
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        items.prune(item, &format!("{path}[{i}]"), items.embedded, unknown);
                    }
                }
            }
            _ => {}
        }
    }

    /// Fills defaults.
    pub fn default_root(&self, doc: &mut Value) {
        self.fill(doc);
    }

    fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, schema) in &self.properties {
                    if let Some(default) = &schema.default {
                        let missing = match map.get(key) {
                            None => true,
                            Some(Value::Null) => !schema.nullable,
                            Some(_) => false,
                        };
                        if missing {
                            map.insert(key.clone(), default.clone());
                        }
                    }
                    if let Some(inner) = map.get_mut(key) {
                        schema.fill(inner);
                    }
                }
                if let Additional::Schema(schema) = &self.additional {
                    for (_, inner) in map.iter_mut().filter(|(key, _)| !self.properties.contains_key(*key)) {
                        schema.fill(inner);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for item in list {
                        items.fill(item);
                    }
                }
            }
            _ => {}
        }
    }
}

fn parse(raw: &Value, path: &str, depth: usize) -> Result<Schema, String> {
    let Value::Object(map) = raw else { return Err(format!("{path}: must be an object")) };
    if depth > MAX_DEPTH {
        return Err(format!("{path}: nested too deeply"));
    }
    let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let count = |key: &str| map.get(key).and_then(Value::as_u64);
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let texts = |key: &str| -> Vec<String> {
        map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
    };
    let many = |key: &str| -> Result<Vec<Schema>, String> {
        let list = map.get(key).and_then(Value::as_array).into_iter().flatten();
        list.enumerate().map(|(i, one)| parse(one, &format!("{path}.{key}[{i}]"), depth + 1)).collect()
    };
    let one = |key: &str| -> Result<Option<Box<Schema>>, String> {
        map.get(key).filter(|v| !v.is_null()).map(|one| parse(one, &format!("{path}.{key}"), depth + 1).map(Box::new)).transpose()
    };
    let mut properties = BTreeMap::new();
    for (key, child) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.insert(key.clone(), parse(child, &format!("{path}.properties[{key}]"), depth + 1)?);
    }
    let pattern = match text("pattern") {
        empty if empty.is_empty() => None,
        pattern => Some(Regex::new(&pattern).map_err(|e| format!("{path}.pattern: {e}"))?),
    };
    let additional = match map.get("additionalProperties") {
        None | Some(Value::Null | Value::Bool(false)) => Additional::None,
        Some(Value::Bool(true)) => Additional::Any,
        Some(schema) => Additional::Schema(Box::new(parse(schema, &format!("{path}.additionalProperties"), depth + 1)?)),
    };
    let list_type = text("x-kubernetes-list-type");
    Ok(Schema {
        type_: text("type"),
        nullable: flag("nullable"),
        properties,
        additional,
        items: one("items")?,
        required: texts("required"),
        enum_: map.get("enum").and_then(Value::as_array).cloned(),
        default: map.get("default").filter(|v| !v.is_null()).cloned(),
        preserve: flag("x-kubernetes-preserve-unknown-fields"),
        embedded: flag("x-kubernetes-embedded-resource"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
        maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
        multiple_of: number("multipleOf"),
        lengths: (count("minLength"), count("maxLength")),
        counts: (count("minItems"), count("maxItems")),
        sizes: (count("minProperties"), count("maxProperties")),
        unique: flag("uniqueItems"),
        pattern,
        format: text("format"),
        all_of: many("allOf")?,
        any_of: many("anyOf")?,
        one_of: many("oneOf")?,
        not: one("not")?,
        list_set: list_type == "set",
        list_keys: if list_type == "map" { texts("x-kubernetes-list-map-keys") } else { Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer", "default": 3},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string", "default": "d"}}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        }}}}))
        .unwrap()
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        let mut doc = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"anything": 1}, "other": 1,
            "spec": {"size": 1, "nope": 2, "free": {"a": {"b": 1}}, "map": {"k": {"x": "1", "y": 2}}, "list": [{"n": 1, "m": 2}]}});
        let mut unknown = Vec::new();
        schema().prune_root(&mut doc, &mut unknown);
        unknown.sort();
        assert_eq!(unknown, ["other", "spec.list[0].m", "spec.map.k.y", "spec.nope"]);
        assert_eq!(doc["spec"], json!({"size": 1, "free": {"a": {"b": 1}}, "map": {"k": {"x": "1"}}, "list": [{"n": 1}]}));
    }

    #[test]
    fn defaults_fill_what_is_missing() {
        let mut doc = json!({"spec": {"map": {"k": {}}, "size": null}});
        schema().default_root(&mut doc);
        assert_eq!(doc["spec"], json!({"size": 3, "map": {"k": {"x": "d"}}}));
        let mut none = json!({});
        schema().default_root(&mut none);
        assert_eq!(none, json!({}), "no parent is made for a default");
    }

    #[test]
    fn bad_schemas_are_refused() {
        assert!(Schema::parse(&json!({"properties": {"a": {"pattern": "("}}})).is_err());
        assert!(Schema::parse(&json!({"properties": {"a": 3}})).is_err());
    }
}
