//! The document of OpenAPI 2 as a protobuf message: `openapi.v2.Document` of gnostic's `OpenAPIv2.proto`, which Go
//! clients ask for (`com.github.proto-openapi.spec.v2@v1.0+protobuf`).
//!
//! Only the vocabulary of [`v2`](super::v2) documents is known; what else a schema holds has no place in the message.

use prost::encoding::{WireType, encode_key};
use serde_json::{Map, Value};

use crate::protobuf::wire::{bytes, varint};

/// The message of a document made by [`v2`](super::v2).
pub fn encode(doc: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(1, &doc["swagger"], &mut out);
    message(2, &mut out, |out| {
        text(1, &doc["info"]["title"], out);
        text(2, &doc["info"]["version"], out);
    });
    message(8, &mut out, |out| named(2, &doc["paths"], out, path_item));
    message(9, &mut out, |out| named(1, &doc["definitions"], out, schema));
    for requirement in list(&doc["security"]) {
        message(12, &mut out, |out| named(1, requirement, out, |scopes, out| texts(1, scopes, out)));
    }
    message(13, &mut out, |out| {
        named(1, &doc["securityDefinitions"], out, |definition, out| message(2, out, |out| api_key(definition, out)))
    });
    out
}

fn api_key(definition: &Value, out: &mut Vec<u8>) {
    for (number, key) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
        text(number, &definition[key], out);
    }
}

fn path_item(item: &Value, out: &mut Vec<u8>) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")] {
        if let Some(given) = item.get(method) {
            message(number, out, |out| operation(given, out));
        }
    }
    for given in list(&item["parameters"]) {
        message(9, out, |out| message(1, out, |out| parameter(given, out)));
    }
    extensions(10, item, out);
}

fn operation(given: &Value, out: &mut Vec<u8>) {
    texts(1, &given["tags"], out);
    text(3, &given["description"], out);
    text(5, &given["operationId"], out);
    texts(6, &given["produces"], out);
    texts(7, &given["consumes"], out);
    for given in list(&given["parameters"]) {
        message(8, out, |out| message(1, out, |out| parameter(given, out)));
    }
    message(9, out, |out| named(1, &given["responses"], out, |answer, out| message(1, out, |out| response(answer, out))));
    extensions(13, given, out);
}

fn response(answer: &Value, out: &mut Vec<u8>) {
    text(1, &answer["description"], out);
    if let Some(given) = answer.get("schema") {
        message(2, out, |out| message(1, out, |out| schema(given, out)));
    }
}

fn parameter(given: &Value, out: &mut Vec<u8>) {
    let place = given["in"].as_str().unwrap_or_default();
    if place == "body" {
        return message(1, out, |out| {
            text(1, &given["description"], out);
            text(2, &given["name"], out);
            text(3, &given["in"], out);
            flag(4, &given["required"], out);
            message(5, out, |out| schema(&given["schema"], out));
        });
    }
    // The two places number alike up to the name; a query's `allowEmptyValue` pushes the rest back by one.
    let (kind, shift) = if place == "path" { (4, 0) } else { (3, 1) };
    message(2, out, |out| {
        message(kind, out, |out| {
            flag(1, &given["required"], out);
            text(2, &given["in"], out);
            text(3, &given["description"], out);
            text(4, &given["name"], out);
            text(5 + shift, &given["type"], out);
            flag(19 + shift, &given["uniqueItems"], out);
        });
    });
}

fn schema(given: &Value, out: &mut Vec<u8>) {
    for (number, key) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description"), (13, "pattern")] {
        text(number, &given[key], out);
    }
    for (number, key) in [(5, "default"), (30, "example")] {
        if let Some(value) = given.get(key) {
            message(number, out, |out| any(value, out));
        }
    }
    for (number, key) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        if let Some(value) = given[key].as_f64() {
            encode_key(number, WireType::SixtyFourBit, out);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
    for (number, key) in
        [(11, "maxLength"), (12, "minLength"), (14, "maxItems"), (15, "minItems"), (17, "maxProperties"), (18, "minProperties")]
    {
        if let Some(value) = given[key].as_i64() {
            // Two's complement in 64 bits, as protobuf has it for negative numbers.
            varint(number, value as u64, out);
        }
    }
    for (number, key) in [(8, "exclusiveMaximum"), (10, "exclusiveMinimum"), (16, "uniqueItems"), (27, "readOnly")] {
        flag(number, &given[key], out);
    }
    texts(19, &given["required"], out);
    for value in list(&given["enum"]) {
        message(20, out, |out| any(value, out));
    }
    match &given["additionalProperties"] {
        Value::Bool(allowed) => message(21, out, |out| varint(2, u64::from(*allowed), out)),
        Value::Object(_) => message(21, out, |out| message(1, out, |out| schema(&given["additionalProperties"], out))),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
    if given["type"].is_string() {
        message(22, out, |out| text(1, &given["type"], out));
    }
    if let Some(item) = given.get("items") {
        message(23, out, |out| message(1, out, |out| schema(item, out)));
    }
    for part in list(&given["allOf"]) {
        message(24, out, |out| schema(part, out));
    }
    if given["properties"].is_object() {
        message(25, out, |out| named(1, &given["properties"], out, schema));
    }
    extensions(31, given, out);
}

/// Members that begin with `x-`.
fn extensions(number: u32, given: &Value, out: &mut Vec<u8>) {
    for (name, value) in members(given).filter(|(name, _)| name.starts_with("x-")) {
        message(number, out, |out| {
            bytes(1, name.as_bytes(), out);
            message(2, out, |out| any(value, out));
        });
    }
}

/// A value of any type travels as YAML, which JSON is.
fn any(value: &Value, out: &mut Vec<u8>) {
    bytes(2, value.to_string().as_bytes(), out);
}

/// An object as name-value messages.
fn named(number: u32, object: &Value, out: &mut Vec<u8>, each: impl Fn(&Value, &mut Vec<u8>)) {
    for (name, value) in members(object) {
        message(number, out, |out| {
            bytes(1, name.as_bytes(), out);
            message(2, out, |out| each(value, out));
        });
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(number: u32, value: &Value, out: &mut Vec<u8>) {
    list(value).for_each(|item| text(number, item, out));
}

fn text(number: u32, value: &Value, out: &mut Vec<u8>) {
    if let Some(text) = value.as_str() {
        bytes(number, text.as_bytes(), out);
    }
}

fn flag(number: u32, value: &Value, out: &mut Vec<u8>) {
    if value == &Value::Bool(true) {
        varint(number, 1, out);
    }
}

fn message(number: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    fill(&mut body);
    bytes(number, &body, out);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// What a Go client looks at, in its own declaration.
    #[derive(Clone, PartialEq, Message)]
    struct Document {
        #[prost(string, tag = "1")]
        swagger: String,
        #[prost(message, optional, tag = "8")]
        paths: Option<Paths>,
        #[prost(message, optional, tag = "9")]
        definitions: Option<Definitions>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Paths {
        #[prost(message, repeated, tag = "2")]
        path: Vec<NamedPathItem>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedPathItem {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        value: Option<PathItem>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct PathItem {
        #[prost(message, optional, tag = "8")]
        patch: Option<Operation>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Operation {
        #[prost(message, repeated, tag = "8")]
        parameters: Vec<ParametersItem>,
        #[prost(message, repeated, tag = "13")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ParametersItem {
        #[prost(message, optional, tag = "1")]
        parameter: Option<Parameter>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Parameter {
        #[prost(message, optional, tag = "2")]
        non_body: Option<NonBody>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NonBody {
        #[prost(message, optional, tag = "3")]
        query: Option<Query>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Query {
        #[prost(string, tag = "4")]
        name: String,
        #[prost(string, tag = "6")]
        type_: String,
        #[prost(bool, tag = "20")]
        unique_items: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Definitions {
        #[prost(message, repeated, tag = "1")]
        additional_properties: Vec<NamedSchema>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedSchema {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, boxed, tag = "2")]
        value: Option<Box<Schema>>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Schema {
        #[prost(string, tag = "1")]
        reference: String,
        #[prost(string, tag = "4")]
        description: String,
        #[prost(message, optional, tag = "22")]
        type_: Option<Strings>,
        #[prost(message, optional, tag = "25")]
        properties: Option<Definitions>,
        #[prost(message, repeated, tag = "31")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Strings {
        #[prost(string, repeated, tag = "1")]
        value: Vec<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedAny {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        value: Option<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Any {
        #[prost(string, tag = "2")]
        yaml: String,
    }

    #[test]
    fn a_client_finds_kinds_fields_and_parameters() {
        let rows: Vec<&crate::resource::Resource> = crate::builtin::resources().iter().collect();
        let doc = Document::decode(encode(&super::super::v2(&rows)).as_slice()).unwrap();
        assert_eq!(doc.swagger, "2.0");
        let definitions = doc.definitions.unwrap().additional_properties;
        let deployment = definitions.iter().find(|d| d.name == "io.k8s.api.apps.v1.Deployment").unwrap().value.clone().unwrap();
        assert_eq!(deployment.type_.unwrap().value, ["object"]);
        let kinds = deployment.vendor_extension.iter().find(|e| e.name == "x-kubernetes-group-version-kind").unwrap();
        assert_eq!(kinds.value.as_ref().unwrap().yaml, r#"[{"group":"apps","kind":"Deployment","version":"v1"}]"#);
        let spec = deployment.properties.unwrap().additional_properties.into_iter().find(|p| p.name == "spec").unwrap().value.unwrap();
        assert_eq!(spec.reference, "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
        assert!(!spec.description.is_empty());
        let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
        let item = doc.paths.unwrap().path.into_iter().find(|p| p.name == path).unwrap().value.unwrap();
        let patch = item.patch.unwrap();
        assert!(patch.vendor_extension.iter().any(|e| e.name == "x-kubernetes-group-version-kind"));
        let queries = patch.parameters.into_iter().filter_map(|p| p.parameter?.non_body?.query);
        let validation = queries.into_iter().find(|q| q.name == "fieldValidation").unwrap();
        assert_eq!((validation.type_.as_str(), validation.unique_items), ("string", true));
    }
}
