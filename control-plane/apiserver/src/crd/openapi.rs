//! Schemas of custom resources in the OpenAPI documents.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use xebec_api::resource::Resource;

use crate::rows::Table;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The index of version 3 with addresses that change with the schemas, which clients cache by them.
pub(crate) fn in_v3_index(table: &Table, mut index: Value) -> Value {
    let mut digests: HashMap<String, Sha256> = HashMap::new();
    for row in table.rows() {
        if let Some(custom) = table.custom(row) {
            digests.entry(format!("apis/{}", row.api_version())).or_default().update(custom.openapi.to_string());
        }
    }
    for (path, digest) in digests {
        let hash: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
        index["paths"][&path]["serverRelativeURL"] = format!("/openapi/v3/{path}?hash={hash}").into();
    }
    index
}

/// The document of a group version with the schemas its definitions give.
pub(crate) fn in_v3(table: &Table, group: &str, version: &str, mut doc: Value) -> Value {
    let metadata = json!({"allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}]});
    let rows = table.rows().iter().filter(|row| row.group == group && row.version == version);
    put(table, rows, doc["components"]["schemas"].as_object_mut(), |schema| complete(schema.clone(), &metadata));
    doc
}

/// The document of version 2 with the schemas of all definitions, as far as version 2 and its readers can say them.
pub(crate) fn in_v2(table: &Table, mut doc: Value) -> Value {
    let metadata = json!({"$ref": format!("#/definitions/{OBJECT_META}")});
    put(table, table.rows().iter(), doc["definitions"].as_object_mut(), |schema| {
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            // Readers take the fields of a schema that has some for all there are.
            return json!({"type": "object"});
        }
        let mut reduced = schema.clone();
        reduce(&mut reduced);
        complete(reduced, &metadata)
    });
    doc
}

/// Replaces the place-holders of custom rows.
fn put<'a>(
    table: &Table,
    rows: impl Iterator<Item = &'a std::sync::Arc<Resource>>,
    schemas: Option<&mut Map<String, Value>>,
    make: impl Fn(&Value) -> Value,
) {
    let Some(schemas) = schemas else { return };
    for row in rows {
        let Some(custom) = table.custom(row) else { continue };
        let kinds = json!([{"group": row.group, "version": row.version, "kind": row.kind}]);
        let Some(place) = schemas.values_mut().find(|schema| schema["x-kubernetes-group-version-kind"] == kinds) else { continue };
        *place = if custom.openapi.is_object() { make(&custom.openapi) } else { json!({"type": "object"}) };
        place["x-kubernetes-group-version-kind"] = kinds;
    }
}

/// Adds the fields every object has, also to those within objects (`x-kubernetes-embedded-resource`).
fn complete(mut schema: Value, metadata: &Value) -> Value {
    embed(&mut schema, metadata);
    common(&mut schema, metadata);
    schema
}

fn common(schema: &mut Value, metadata: &Value) {
    schema["properties"]["apiVersion"] =
        json!({"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."});
    schema["properties"]["kind"] = json!({"type": "string", "description": "Kind is the REST resource this object represents."});
    schema["properties"]["metadata"] = metadata.clone();
}

fn embed(schema: &mut Value, metadata: &Value) {
    for child in children(schema) {
        embed(child, metadata);
        if child["x-kubernetes-embedded-resource"] == true && child["x-kubernetes-preserve-unknown-fields"] != true {
            common(child, metadata);
        }
    }
}

/// Takes away what version 2 has no word for, and what kubectl's reading of it trips over.
fn reduce(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for key in ["allOf", "oneOf", "anyOf", "not"] {
        map.remove(key);
    }
    let preserves = map.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| v == true);
    if map.remove("nullable").is_some_and(|v| v == true) {
        // There is no null in version 2: a value of no type may be one. Such a value has no parts.
        for key in ["type", "items", "properties"] {
            map.remove(key);
        }
    }
    if preserves {
        map.remove("items");
        map.remove("properties");
    }
    let is = |map: &Map<String, Value>, name: &str| map.get("type").is_some_and(|t| t == name);
    if (is(map, "array") && !map.contains_key("items")) || (preserves && is(map, "object")) {
        map.remove("type");
    }
    let nullable: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .map(|fields| fields.iter().filter(|(_, field)| field["nullable"] == true).map(|(name, _)| name.clone()).collect())
        .unwrap_or_default();
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| !nullable.iter().any(|n| name == n));
        if required.is_empty() {
            map.remove("required");
        }
    }
    for child in children(schema) {
        reduce(child);
    }
}

fn children(schema: &mut Value) -> Vec<&mut Value> {
    let mut out = Vec::new();
    for (key, value) in schema.as_object_mut().into_iter().flatten() {
        match key.as_str() {
            "properties" => out.extend(value.as_object_mut().into_iter().flatten().map(|(_, field)| field)),
            "items" | "additionalProperties" if value.is_object() => out.push(value),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(mut schema: Value) -> Value {
        reduce(&mut schema);
        schema
    }

    #[test]
    fn version_2_keeps_what_it_can_say() {
        let plain =
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "pattern": "x+", "description": "d"}}});
        assert_eq!(reduced(plain.clone()), plain);
        assert_eq!(
            reduced(
                json!({"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {"type": "integer", "not": {"minimum": 3}}}})
            ),
            json!({"type": "object", "properties": {"a": {"type": "integer"}}})
        );
    }

    #[test]
    fn what_may_be_null_or_anything_has_no_parts() {
        assert_eq!(
            reduced(json!({"type": "object", "required": ["n", "m"], "properties": {
                "n": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}},
                "m": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
                "l": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {"type": "string"}}}})),
            json!({"type": "object", "required": ["m"], "properties": {
                "n": {}, "m": {"x-kubernetes-preserve-unknown-fields": true}, "l": {"x-kubernetes-preserve-unknown-fields": true}}})
        );
    }

    #[test]
    fn embedded_objects_have_the_fields_of_objects() {
        let metadata = json!({"$ref": "#/definitions/M"});
        let schema = complete(
            json!({"type": "object", "properties": {
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
                "any": {"x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}),
            &metadata,
        );
        assert_eq!(schema["properties"]["metadata"], metadata);
        assert_eq!(schema["properties"]["template"]["properties"]["metadata"], metadata);
        assert_eq!(schema["properties"]["any"].get("properties"), None);
    }
}
