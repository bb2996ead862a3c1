//! Schemas by name, with the extensions that say how lists and maps merge.

use serde_json::{Map, Value, json};

use crate::{
    resource::{Resource, Verb},
    schema,
};

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V2,
    V3,
}

impl Version {
    pub fn reference(self, name: &str) -> Value {
        let root = if self == Version::V2 { "#/definitions/" } else { "#/components/schemas/" };
        json!({ "$ref": format!("{root}{name}") })
    }
}

pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The definition of a kind: its type's, or one made of the group's name for custom resources.
pub(super) fn name_of(r: &Resource) -> String {
    match schema::schemas().of(r) {
        Some(id) => schema::schemas().get(id).name.to_string(),
        None => {
            let mut parts: Vec<&str> = r.group.split('.').collect();
            parts.reverse();
            format!("{}.{}.{}", parts.join("."), r.version, r.kind)
        }
    }
}

pub(super) fn list_name_of(r: &Resource) -> String {
    let name = name_of(r);
    format!("{}{}", name.strip_suffix(&r.kind).unwrap_or(&name), r.list_kind)
}

fn gvk(r: &Resource, kind: &str) -> Value {
    json!([{"group": r.group, "version": r.version, "kind": kind}])
}

/// The definitions the rows need, references included.
pub(super) fn of(rows: &[&Resource], version: Version) -> Map<String, Value> {
    let (all, kinds) = schema::definitions();
    let mut out = Map::new();
    out.insert(PATCH.into(), json!({"type": "object", "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body."}));
    out.insert(LIST_META.into(), list_meta());
    let mut wanted: Vec<String> = vec![STATUS.into(), DELETE_OPTIONS.into(), object_meta()];
    for r in rows {
        wanted.push(name_of(r));
        for (group, api_version, kind) in r.subresources.iter().filter_map(|s| s.kind) {
            let api_version = if group.is_empty() { api_version.to_owned() } else { format!("{group}/{api_version}") };
            wanted.extend(kinds.iter().find(|(v, k, _)| *v == api_version && *k == kind).map(|(_, _, n)| n.clone()));
        }
        if r.allows(Verb::List) {
            out.insert(list_name_of(r), list_definition(r, version));
        }
    }
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let Some(definition) = all.get(&name) else { continue };
        let converted = convert(&name, definition, version, &mut wanted);
        out.insert(name, converted);
    }
    for r in rows {
        let entry = out.entry(name_of(r)).or_insert_with(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        entry["x-kubernetes-group-version-kind"] = gvk(r, &r.kind);
    }
    out
}

fn object_meta() -> String {
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta".into()
}

fn list_meta() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({"type": "object", "description": "ListMeta describes metadata that synthetic resources must have.", "properties": {
        "continue": text("Set when more results are available than were asked for: pass it to get them."),
        "remainingItemCount": {"type": "integer", "format": "int64", "description": "How many items follow this page, when known."},
        "resourceVersion": text("The revision the list was read at."),
        "selfLink": text("Deprecated, never set.")}})
}

fn list_definition(r: &Resource, version: Version) -> Value {
    json!({"type": "object", "description": format!("{} is a list of {}.", r.list_kind, r.kind), "required": ["items"],
        "x-kubernetes-group-version-kind": gvk(r, &r.list_kind), "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": version.reference(LIST_META),
        "items": {"type": "array", "items": version.reference(&name_of(r))}}})
}

fn convert(name: &str, definition: &Value, version: Version, wanted: &mut Vec<String>) -> Value {
    let text = &definition["description"];
    match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" if version == Version::V3 => {
            return json!({"description": text, "oneOf": [{"type": "string"}, {"type": "number"}]});
        }
        "IntOrString" if version == Version::V3 => {
            return json!({"description": text, "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
        }
        "Quantity" => return json!({"description": text, "type": "string"}),
        "IntOrString" => return json!({"description": text, "type": "string", "format": "int-or-string"}),
        short if short == "JSON" || short.starts_with("JSONSchemaPropsOr") => return json!({ "description": text }),
        _ => {}
    }
    let mut out = value(definition, version, wanted);
    if schema::is_atomic_struct(name) {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(properties) = out.get_mut("properties").and_then(Value::as_object_mut) {
        for (field, schema) in properties {
            extend(name, field, schema);
        }
    }
    out
}

/// A schema in the form of `version`; what it refers to is added to `wanted`.
fn value(schema: &Value, version: Version, wanted: &mut Vec<String>) -> Value {
    let Some(map) = schema.as_object() else { return schema.clone() };
    let reference = map.get("$ref").or_else(|| map.get("allOf").and_then(|l| l.get(0)?.get("$ref"))).and_then(Value::as_str);
    if let Some(name) = reference.and_then(|r| r.rsplit('/').next()) {
        wanted.push(name.to_owned());
        let target = version.reference(name);
        let Some(description) = map.get("description") else { return target };
        return match version {
            // Version 3.0 ignores what stands beside a reference.
            Version::V3 => json!({"description": description, "allOf": [target]}),
            Version::V2 => json!({"description": description, "$ref": target["$ref"]}),
        };
    }
    let mut out = Map::new();
    for (key, child) in map {
        let converted = match key.as_str() {
            "items" | "additionalProperties" => value(child, version, wanted),
            "properties" => {
                let fields = child.as_object().into_iter().flatten();
                fields.map(|(k, v)| (k.clone(), value(v, version, wanted))).collect()
            }
            "$schema" | "title" => continue,
            _ => child.clone(),
        };
        out.insert(key.clone(), converted);
    }
    Value::Object(out)
}

fn extend(definition: &str, field: &str, schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let merge = schema::merge_of(definition, field);
    let mut put = |key: &str, value: Value| {
        map.insert(format!("x-kubernetes-{key}"), value);
    };
    if merge.atomic_map {
        put("map-type", "atomic".into());
    }
    if merge.set {
        put("list-type", "set".into());
    } else if !merge.list_keys.is_empty() {
        put("list-type", "map".into());
        put("list-map-keys", merge.list_keys.into());
    }
    let mut strategies = Vec::new();
    if let Some(key) = merge.patch_key {
        strategies.push("merge");
        if !key.is_empty() {
            put("patch-merge-key", key.into());
        }
    }
    if merge.retain_keys {
        strategies.push("retainKeys");
    }
    if merge.replace {
        strategies.push("replace");
    }
    if !strategies.is_empty() {
        put("patch-strategy", strategies.join(",").into());
    }
    if !merge.set && merge.list_keys.is_empty() && map.get("type").is_some_and(|t| t == "array") {
        map.insert("x-kubernetes-list-type".into(), "atomic".into());
    }
}
