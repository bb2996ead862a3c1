//! Bodies to documents: types checked and normalised as Go's decoder would, unknown fields found and dropped.

use base64::Engine;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};

use super::{
    StructId, Type,
    parse::{self, Parsed},
    schemas,
};
use crate::{
    Document,
    quantity::{PATTERN_ERROR, Quantity},
    resource::Resource,
    status::{ApiError, FieldError, bad_request, invalid_kind, unsupported_media_type},
};

/// What to do about unknown and duplicate fields: the `fieldValidation` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Strict,
    /// Upstream's default.
    Warn,
    Ignore,
}

impl FieldValidation {
    /// The query parameter; empty is the default. Errors are 400.
    pub fn parse(text: &str) -> Result<FieldValidation, ApiError> {
        match text {
            "Strict" => Ok(FieldValidation::Strict),
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            other => Err(bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// A body of `resource`'s kind. Answers the document and warnings for the client.
/// Errors: 400 for what cannot be read, 415 for other media types than JSON and YAML.
pub fn decode(
    resource: &Resource,
    bytes: &[u8],
    content_type: &str,
    validation: FieldValidation,
) -> Result<(Document, Vec<String>), ApiError> {
    decode_kind(&resource.api_version(), &resource.kind, bytes, content_type, validation)
}

/// A body of any built-in kind (`Scale`, `Binding`, `DeleteOptions` ...); of an unknown kind only the metadata is checked.
pub fn decode_kind(
    api_version: &str,
    kind: &str,
    bytes: &[u8],
    content_type: &str,
    validation: FieldValidation,
) -> Result<(Document, Vec<String>), ApiError> {
    let unreadable = |error: String| {
        let shown = bytes.iter().take(30).map(|b| format!("{b:02x}")).collect::<String>();
        let more = if bytes.len() > 30 { " ..." } else { "" };
        bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: \
             {error} ({shown}{more})"
        ))
    };
    let parsed = match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" | "*/*" => parse::json(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => parse::yaml(bytes),
        _ => return Err(unsupported_media_type(&["application/json", "application/yaml"])),
    };
    let Parsed { mut value, duplicates } = parsed.map_err(unreadable)?;
    if !value.is_object() {
        let go = format!("json: cannot unmarshal {} into Go value of type struct", json_kind(&value));
        return Err(unreadable(go));
    }
    check_kind(&value, api_version, kind)?;
    let cannot = |error: String| {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
    };
    let mut complaints: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
    let unknown = coerce(api_version, kind, &mut value).map_err(cannot)?;
    complaints.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => Err(cannot(format!("strict decoding error: {}", complaints.join(", ")))),
        FieldValidation::Warn => Ok((value, complaints)),
        FieldValidation::Strict | FieldValidation::Ignore => Ok((value, Vec::new())),
    }
}

/// The result of a patch: checked like a body. `patch` is what the client sent, for the error (422).
pub fn decode_patched(
    resource: &Resource,
    mut doc: Document,
    patch: &[u8],
    validation: FieldValidation,
) -> Result<(Document, Vec<String>), ApiError> {
    let rejected = |error: String| {
        let shown = String::from_utf8_lossy(patch).into_owned();
        invalid_kind("", "", "", &[FieldError::invalid("patch", shown, error)])
    };
    if !doc.is_object() {
        return Err(rejected(format!("json: cannot unmarshal {} into Go value of type struct", json_kind(&doc))));
    }
    let unknown = coerce(&resource.api_version(), &resource.kind, &mut doc).map_err(rejected)?;
    let complaints: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => Err(rejected(format!("strict decoding error: {}", complaints.join(", ")))),
        FieldValidation::Warn => Ok((doc, complaints)),
        FieldValidation::Strict | FieldValidation::Ignore => Ok((doc, Vec::new())),
    }
}

/// The body's own `apiVersion` and `kind` must be the endpoint's; either may be left out.
fn check_kind(doc: &Value, api_version: &str, kind: &str) -> Result<(), ApiError> {
    let text = |key: &str| doc[key].as_str().filter(|t| !t.is_empty());
    if let Some(given) = text("kind").filter(|k| *k != kind) {
        let version = |v: &str| v.rsplit('/').next().unwrap_or_default().to_owned();
        let theirs = version(text("apiVersion").unwrap_or(api_version));
        return Err(bad_request(format!(
            "{given} in version {theirs:?} cannot be handled as a {kind}: converting ({theirs}.{given}) to ({}.{kind}): \
             unknown conversion",
            version(api_version)
        )));
    }
    if let Some(given) = text("apiVersion").filter(|v| *v != api_version) {
        return Err(bad_request(format!("the API version in the data ({given}) does not match the expected API version ({api_version})")));
    }
    Ok(())
}

fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Checks and normalises `doc`, dropping nulls and unknown fields. Answers the paths of unknown fields;
/// the error is about a wrong type.
fn coerce(api_version: &str, kind: &str, doc: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk::default();
    match schemas().kind(api_version, kind) {
        Some(id) => walk.structure(id, doc)?,
        None => {
            let meta = schemas().kind("v1", "ConfigMap").map(|id| &schemas().get(id).fields["metadata"].ty);
            if let (Some(ty), Some(metadata)) = (meta, doc.get_mut("metadata")) {
                walk.within("metadata", |w| w.value(ty, metadata))?;
            }
        }
    }
    Ok(walk.unknown)
}

#[derive(Default)]
struct Walk {
    unknown: Vec<String>,
    /// `spec.containers[0].image`
    path: String,
    /// `spec.containers.image`, how Go's decoder names the place.
    go_path: String,
    /// The struct the current field is in.
    owner: &'static str,
}

impl Walk {
    fn within<T>(&mut self, field: &str, step: impl FnOnce(&mut Walk) -> T) -> T {
        let (path, go_path) = (self.path.len(), self.go_path.len());
        for text in [&mut self.path, &mut self.go_path] {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(field);
        }
        let result = step(self);
        self.path.truncate(path);
        self.go_path.truncate(go_path);
        result
    }

    fn at_index<T>(&mut self, index: usize, step: impl FnOnce(&mut Walk) -> T) -> T {
        let path = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let result = step(self);
        self.path.truncate(path);
        result
    }

    fn mismatch(&self, value: &Value, ty: &Type) -> String {
        let literal = match value {
            Value::Number(n) if matches!(ty, Type::Int32 | Type::Int64) => format!("number {n}"),
            other => json_kind(other).to_owned(),
        };
        if self.owner.is_empty() {
            return format!("json: cannot unmarshal {literal} into Go value of type {}", go_type(ty));
        }
        format!("json: cannot unmarshal {literal} into Go struct field {}.{} of type {}", self.owner, self.go_path, go_type(ty))
    }

    fn structure(&mut self, id: StructId, value: &mut Value) -> Result<(), String> {
        let Value::Object(map) = value else { return Err(self.mismatch(value, &Type::Struct(id))) };
        let schema = schemas().get(id);
        // A struct without fields stands for any object.
        if schema.fields.is_empty() {
            return Ok(());
        }
        let outer = std::mem::replace(&mut self.owner, schema.short_name());
        let mut dropped = Vec::new();
        for (key, value) in map.iter_mut() {
            match schema.fields.get(key.as_str()) {
                _ if value.is_null() => {
                    dropped.push(key.clone());
                    if !schema.fields.contains_key(key.as_str()) {
                        self.report(key);
                    }
                }
                Some(field) => self.within(key, |w| w.value(&field.ty, value))?,
                None => {
                    dropped.push(key.clone());
                    self.report(key);
                }
            }
        }
        for key in dropped {
            map.remove(&key);
        }
        self.owner = outer;
        Ok(())
    }

    fn report(&mut self, key: &str) {
        let path = self.within(key, |w| w.path.clone());
        self.unknown.push(path);
    }

    fn value(&mut self, ty: &Type, value: &mut Value) -> Result<(), String> {
        match (ty, &mut *value) {
            (Type::Any, _) | (Type::Bool, Value::Bool(_)) | (Type::String, Value::String(_)) => Ok(()),
            (Type::Float, Value::Number(_)) => Ok(()),
            (Type::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Type::Int64, Value::Number(n)) if n.as_i64().is_some() => Ok(()),
            (Type::IntOrString, Value::String(_)) => Ok(()),
            (Type::IntOrString, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Type::Bytes, Value::String(text)) => bytes(text),
            (Type::Time | Type::MicroTime, Value::String(text)) => time(text, *ty == Type::MicroTime),
            (Type::Quantity, Value::String(_) | Value::Number(_)) => {
                *value = Quantity::from_value(value).ok_or(PATTERN_ERROR)?.to_string().into();
                Ok(())
            }
            (Type::Struct(id), _) => self.structure(*id, value),
            (Type::List(item), Value::Array(list)) => {
                for (i, value) in list.iter_mut().enumerate() {
                    zero_null(item, value);
                    self.at_index(i, |w| w.value(item, value))?;
                }
                Ok(())
            }
            (Type::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    zero_null(item, value);
                    // Go names the map, not the key, in type errors.
                    let length = self.path.len();
                    self.path.push_str(&format!(".{key}"));
                    let result = self.value(item, value);
                    self.path.truncate(length);
                    result?;
                }
                Ok(())
            }
            (Type::Either(first, second), _) => {
                let ty = if has_form(first, value) { first } else { second };
                self.value(ty, value)
            }
            _ => Err(self.mismatch(value, ty)),
        }
    }
}

/// Go leaves the zero value where a list or map holds null.
fn zero_null(ty: &Type, value: &mut Value) {
    if value.is_null() {
        *value = match ty {
            Type::Bool => false.into(),
            Type::Int32 | Type::Int64 | Type::Float | Type::IntOrString => 0.into(),
            Type::String | Type::Bytes => "".into(),
            Type::Quantity => "0".into(),
            Type::Struct(_) | Type::Map(_) => Value::Object(Map::new()),
            Type::List(_) => Value::Array(Vec::new()),
            Type::Any | Type::Time | Type::MicroTime | Type::Either(..) => Value::Null,
        };
    }
}

fn has_form(ty: &Type, value: &Value) -> bool {
    match ty {
        Type::Struct(_) | Type::Map(_) => value.is_object(),
        Type::List(_) => value.is_array(),
        Type::Bool => value.is_boolean(),
        _ => true,
    }
}

fn go_type(ty: &Type) -> String {
    match ty {
        Type::Any => "interface {}".into(),
        Type::Bool => "bool".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Float => "float64".into(),
        Type::String | Type::Time | Type::MicroTime | Type::IntOrString | Type::Quantity => "string".into(),
        Type::Bytes => "[]uint8".into(),
        Type::List(item) => format!("[]{}", go_type(item)),
        Type::Map(item) => format!("map[string]{}", go_type(item)),
        Type::Struct(id) => schemas().get(*id).go_name(),
        Type::Either(first, _) => go_type(first),
    }
}

fn bytes(text: &mut String) -> Result<(), String> {
    use base64::DecodeError;
    if text.contains(['\n', '\r']) {
        text.retain(|c| c != '\n' && c != '\r');
    }
    let at = match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
        Ok(_) => return Ok(()),
        Err(DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _)) => at,
        // A group that is cut off is reported at its start.
        Err(DecodeError::InvalidLength(_) | DecodeError::InvalidPadding) => text.len() / 4 * 4,
    };
    Err(format!("illegal base64 data at input byte {at}"))
}

fn time(text: &mut String, micro: bool) -> Result<(), String> {
    let parsed = DateTime::parse_from_rfc3339(text)
        .map_err(|_| format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""))?;
    let precision = if micro { SecondsFormat::Micros } else { SecondsFormat::Secs };
    *text = parsed.with_timezone(&Utc).to_rfc3339_opts(precision, true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use proptest::prelude::*;
    use serde_json::json;

    fn deployment(body: &str, validation: FieldValidation) -> Result<(Document, Vec<String>), ApiError> {
        decode(by_kind("apps/v1", "Deployment").unwrap(), body.as_bytes(), "application/json", validation)
    }

    #[test]
    fn messages_are_upstreams() {
        let strict = |body: &str| deployment(body, FieldValidation::Strict).unwrap_err().message;
        let prefix = "Deployment in version \"v1\" cannot be handled as a Deployment: ";
        for (body, want) in [
            (r#"{"spec":{"foo":1}}"#, "strict decoding error: unknown field \"spec.foo\""),
            (
                r#"{"spec":{"replicas":1,"replicas":2,"template":{"spec":{"containers":[{"Name":"a"}]}}}}"#,
                "strict decoding error: duplicate field \"spec.replicas\", unknown field \
                 \"spec.template.spec.containers[0].Name\"",
            ),
            (
                r#"{"spec":{"replicas":"x"}}"#,
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":[{"env":[{"value":1}]}]}}}}"#,
                "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of \
                 type string",
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type \
                 []v1.Container",
            ),
            (
                r#"{"spec":{"replicas":1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#, PATTERN_ERROR),
        ] {
            assert_eq!(strict(body), format!("{prefix}{want}"));
        }
        assert_eq!(
            strict("abc"),
            "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse \
             error: invalid character 'a' looking for beginning of value (616263)"
        );
        assert_eq!(
            strict(r#"{"kind":"Pod","apiVersion":"v1"}"#),
            "Pod in version \"v1\" cannot be handled as a Deployment: converting (v1.Pod) to (v1.Deployment): unknown \
             conversion"
        );
        assert_eq!(
            strict(r#"{"kind":"Deployment","apiVersion":"apps/v1beta1"}"#),
            "the API version in the data (apps/v1beta1) does not match the expected API version (apps/v1)"
        );
    }

    #[test]
    fn values_become_what_go_prints() {
        let body = r#"{"metadata":{"name":"a","creationTimestamp":null,"annotations":{"a":null}},"spec":{"extra":1,
            "template":{"metadata":{"creationTimestamp":"2026-01-01T01:00:00.5+01:00"},
            "spec":{"containers":[{"resources":{"limits":{"memory":"1024Ki","cpu":0.5}}}]}}}}"#;
        let (doc, warnings) = deployment(body, FieldValidation::Warn).unwrap();
        assert_eq!(warnings, ["unknown field \"spec.extra\""]);
        assert_eq!(
            doc,
            json!({"metadata": {"name": "a", "annotations": {"a": ""}}, "spec": {
                "template": {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                    "spec": {"containers": [{"resources": {"limits": {"memory": "1Mi", "cpu": "500m"}}}]}}}})
        );
    }

    #[test]
    fn yaml_secrets_and_schemas() {
        let secret = by_kind("v1", "Secret").unwrap();
        let read = |text: &str| decode(secret, text.as_bytes(), "application/yaml", FieldValidation::Strict);
        assert_eq!(read("data:\n  a: aGk=\n").unwrap().0["data"]["a"], "aGk=");
        assert!(read("data:\n  a: '*'\n").unwrap_err().message.ends_with("illegal base64 data at input byte 0"));
        assert_eq!(decode(secret, b"{}", "text/plain", FieldValidation::Warn).unwrap_err().code, 415);
        let crd = by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").unwrap();
        let body = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": {"default": [1],
            "items": {"type": "string"}, "additionalProperties": true, "x-kubernetes-int-or-string": true}}}}}]}});
        let bytes = body.to_string();
        assert_eq!(decode(crd, bytes.as_bytes(), "", FieldValidation::Strict).unwrap().0, body);
    }

    proptest! {
        #[test]
        fn any_document_is_read_or_refused(doc in crate::patch::merge_tests::documents()) {
            let body = json!({"metadata": doc, "spec": doc, "status": doc, "data": doc}).to_string();
            for r in crate::builtin::resources() {
                let _ = decode(r, body.as_bytes(), "", FieldValidation::Strict);
            }
        }
    }
}
