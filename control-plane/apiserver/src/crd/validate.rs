//! Validation of a custom object against its schema, with the messages upstream's validator gives.

use serde_json::Value;
use xebec_api::status::FieldError;

use super::schema::{Additional, Schema};

impl Schema {
    /// Reports everything that is wrong with an object. Its metadata is checked elsewhere.
    pub fn validate_root(&self, doc: &Value, errors: &mut Vec<FieldError>) {
        let mut without = doc.clone();
        if let Some(map) = without.as_object_mut() {
            map.remove("metadata");
        }
        let required: Vec<&String> = self.required.iter().filter(|key| *key != "metadata").collect();
        self.check(&without, "", &required, errors);
    }

    fn validate(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let required: Vec<&String> = self.required.iter().collect();
        self.check(value, path, &required, errors);
    }

    fn check(&self, value: &Value, path: &str, required: &[&String], errors: &mut Vec<FieldError>) {
        if value.is_null() && self.nullable {
            return;
        }
        let shown = if path.is_empty() { "<nil>" } else { path };
        if !self.has_type(value) {
            let wanted = if self.int_or_string { "integer,string" } else { &self.type_ };
            let detail = format!("{shown} in body must be of type {wanted}: {:?}", type_name(value));
            errors.push(FieldError::type_invalid(path, Value::from(type_name(value)), detail));
            return;
        }
        if let Some(allowed) = &self.enum_
            && !allowed.contains(value)
        {
            let names: Vec<String> = allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            errors.push(FieldError::not_supported(path, value.clone(), &names));
        }
        match value {
            Value::Number(_) => self.check_number(value, path, shown, errors),
            Value::String(text) => self.check_text(text, path, shown, errors),
            Value::Array(list) => self.check_list(list, path, errors),
            Value::Object(map) => self.check_object(map, path, shown, required, errors),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_combined(value, path, shown, errors);
    }

    fn has_type(&self, value: &Value) -> bool {
        if self.int_or_string {
            return value.is_string() || is_integer(value);
        }
        match self.type_.as_str() {
            "" => true,
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => is_integer(value),
            "number" => value.is_number(),
            _ => false,
        }
    }

    fn check_number(&self, value: &Value, path: &str, shown: &str, errors: &mut Vec<FieldError>) {
        let Some(number) = value.as_f64() else { return };
        if let Some((minimum, exclusive)) = self.minimum
            && (number < minimum || (exclusive && number == minimum))
        {
            let than = if exclusive { "greater than" } else { "greater than or equal to" };
            errors.push(FieldError::invalid(path, value.clone(), format!("{shown} in body should be {than} {minimum}")));
        }
        if let Some((maximum, exclusive)) = self.maximum
            && (number > maximum || (exclusive && number == maximum))
        {
            let than = if exclusive { "less than" } else { "less than or equal to" };
            errors.push(FieldError::invalid(path, value.clone(), format!("{shown} in body should be {than} {maximum}")));
        }
        if let Some(multiple) = self.multiple_of.filter(|m| *m > 0.0)
            && (number / multiple).fract() != 0.0
        {
            errors.push(FieldError::invalid(path, value.clone(), format!("{shown} in body should be a multiple of {multiple}")));
        }
    }

    fn check_text(&self, text: &str, path: &str, shown: &str, errors: &mut Vec<FieldError>) {
        let length = text.chars().count() as u64;
        if let Some(minimum) = self.lengths.0.filter(|m| length < *m) {
            errors.push(FieldError::invalid(path, text, format!("{shown} in body should be at least {minimum} chars long")));
        }
        if let Some(maximum) = self.lengths.1.filter(|m| length > *m) {
            errors.push(FieldError::too_long(path, usize::try_from(maximum).unwrap_or(usize::MAX)));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.is_match(text)) {
            errors.push(FieldError::invalid(path, text, format!("{shown} in body should match '{pattern}'")));
        }
        if !has_format(&self.format, text) {
            errors.push(FieldError::invalid(path, text, format!("{shown} in body must be of type {}: {text:?}", self.format)));
        }
    }

    fn check_list(&self, list: &[Value], path: &str, errors: &mut Vec<FieldError>) {
        let count = list.len() as u64;
        if let Some(minimum) = self.counts.0.filter(|m| count < *m) {
            errors.push(FieldError::invalid(path, count, format!("{path} in body should have at least {minimum} items")));
        }
        if let Some(maximum) = self.counts.1.filter(|m| count > *m) {
            errors.push(FieldError::too_many(path, list.len(), usize::try_from(maximum).unwrap_or(usize::MAX)));
        }
        for (i, item) in list.iter().enumerate() {
            let at = format!("{path}[{i}]");
            if (self.unique || self.list_set) && list[..i].contains(item) {
                errors.push(FieldError::duplicate(&at, item.clone()));
            }
            if !self.list_keys.is_empty() {
                let key = |item: &Value| -> Vec<Value> { self.list_keys.iter().map(|k| item[k.as_str()].clone()).collect() };
                let own = key(item);
                if list[..i].iter().any(|other| key(other) == own) {
                    let shown: serde_json::Map<String, Value> = self.list_keys.iter().cloned().zip(own).collect();
                    errors.push(FieldError::duplicate(&at, Value::Object(shown)));
                }
            }
            if let Some(items) = &self.items {
                items.validate(item, &at, errors);
            }
        }
    }

    fn check_object(
        &self,
        map: &serde_json::Map<String, Value>,
        path: &str,
        shown: &str,
        required: &[&String],
        errors: &mut Vec<FieldError>,
    ) {
        let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        for key in required {
            if !map.contains_key(key.as_str()) {
                errors.push(FieldError::required(below(key), ""));
            }
        }
        let count = map.len() as u64;
        if let Some(minimum) = self.sizes.0.filter(|m| count < *m) {
            errors.push(FieldError::invalid(path, count, format!("{shown} in body should have at least {minimum} properties")));
        }
        if let Some(maximum) = self.sizes.1.filter(|m| count > *m) {
            errors.push(FieldError::too_many(path, map.len(), usize::try_from(maximum).unwrap_or(usize::MAX)));
        }
        for (key, value) in map {
            match (self.properties.get(key), &self.additional) {
                (Some(schema), _) => schema.validate(value, &below(key), errors),
                (None, Additional::Schema(schema)) => schema.validate(value, &below(key), errors),
                (None, Additional::None | Additional::Any) => {}
            }
        }
    }

    fn check_combined(&self, value: &Value, path: &str, shown: &str, errors: &mut Vec<FieldError>) {
        let holds = |schema: &Schema| {
            let mut found = Vec::new();
            schema.validate(value, path, &mut found);
            found.is_empty()
        };
        for schema in &self.all_of {
            schema.validate(value, path, errors);
        }
        let mut fail =
            |what: &str| errors.push(FieldError::invalid(path, value.clone(), format!("{shown:?} {what}").replace("\"<nil>\"", "\"\"")));
        if !self.any_of.is_empty() && !self.any_of.iter().any(holds) {
            fail("must validate at least one schema (anyOf)");
        }
        if !self.one_of.is_empty() {
            let count = self.one_of.iter().filter(|schema| holds(schema)).count();
            if count != 1 {
                let found = if count == 0 { "Found none valid".to_string() } else { format!("Found {count} valid alternatives") };
                fail(&format!("must validate one and only one schema (oneOf). {found}"));
            }
        }
        if self.not.as_ref().is_some_and(|schema| holds(schema)) {
            fail("must not validate the schema (not)");
        }
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Formats upstream checks; unknown ones are ignored.
fn has_format(format: &str, text: &str) -> bool {
    use base64::{Engine, engine::general_purpose::STANDARD};
    match format {
        "date-time" | "datetime" => chrono::DateTime::parse_from_rfc3339(text).is_ok(),
        "date" => chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "byte" => STANDARD.decode(text).is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "uri" => text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme().is_some()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: Value, value: Value, expected: &[(&str, &str)]) {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"f": schema}})).unwrap();
        let mut errors = Vec::new();
        schema.validate_root(&json!({"metadata": {}, "f": value}), &mut errors);
        let got: Vec<(&str, &str)> = errors.iter().map(|e| (e.field.as_str(), e.message.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn messages_are_upstreams() {
        check(json!({"type": "integer"}), json!("x"), &[("f", "Invalid value: \"string\": f in body must be of type integer: \"string\"")]);
        check(
            json!({"type": "integer", "maximum": 3}),
            json!(5),
            &[("f", "Invalid value: 5: f in body should be less than or equal to 3")],
        );
        check(json!({"type": "string", "pattern": "^a$"}), json!("b"), &[("f", "Invalid value: \"b\": f in body should match '^a$'")]);
        check(
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            &[("f", "Unsupported value: \"c\": supported values: \"a\", \"b\"")],
        );
        check(json!({"type": "object", "required": ["x"]}), json!({}), &[("f.x", "Required value")]);
        check(
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", 1]),
            &[
                ("f", "Too many: 2: must have at most 1 item"),
                ("f[1]", "Invalid value: \"integer\": f[1] in body must be of type string: \"integer\""),
            ],
        );
        check(json!({"x-kubernetes-int-or-string": true}), json!("5%"), &[]);
        check(json!({"type": "string", "nullable": true}), Value::Null, &[]);
        check(json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), json!(1), &[]);
        check(json!({"type": "string", "format": "date-time"}), json!("2026-01-02T03:04:05Z"), &[]);
    }

    #[test]
    fn lists_with_keys_hold_each_once() {
        let schema =
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object"}});
        check(schema, json!([{"k": 1}, {"k": 2}, {"k": 1}]), &[("f[2]", "Duplicate value: {\"k\":1}")]);
    }
}
