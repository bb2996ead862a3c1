//! `application/vnd.kubernetes.protobuf`: typed Go clients send built-in kinds in it. Bodies are turned into JSON as they
//! come in; what follows knows only documents.
//!
//! The wire form is described in <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>: four magic
//! bytes, then a `runtime.Unknown` that names the kind and holds the object.

mod table;
mod wire;

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use table::{Field, Kind, Shape, Special};
use wire::{Item, Reader};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper than this are refused; JSONSchemaProps nest without bound.
const MAX_DEPTH: usize = 64;

/// Why a body is no object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("the body does not begin with the bytes of Kubernetes' protobuf encoding")]
    NoMagic,
    #[error("proto: the message breaks off or is malformed")]
    Malformed,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("messages are nested too deeply")]
    TooDeep,
    #[error("embedded object is no JSON")]
    EmbeddedNotJson,
}

type Result<T> = std::result::Result<T, Error>;

/// The document a body stands for, with its `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value> {
    let body = body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for item in Reader::new(body) {
        match item? {
            (1, Item::Bytes(type_meta)) => {
                for item in Reader::new(type_meta) {
                    match item? {
                        (1, Item::Bytes(text)) => api_version = string(text)?,
                        (2, Item::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let unknown = || Error::UnknownKind { api_version: api_version.clone(), kind: kind.clone() };
    let fields = table::of_kind(&api_version, &kind).ok_or_else(unknown)?;
    let mut object = Map::new();
    message(raw, fields, &mut object, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message(bytes: &[u8], fields: &[Field], into: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    for item in Reader::new(bytes) {
        let (number, item) = item?;
        let Some(field) = fields.iter().find(|f| f.number == number) else { continue };
        match field.shape {
            Shape::Inline => {
                let (Kind::Message(name), Item::Bytes(inner)) = (&field.kind, item) else { return Err(Error::Malformed) };
                message(inner, table::named(name).unwrap_or_default(), into, depth + 1)?;
            }
            Shape::Repeated => {
                let list = into.entry(field.name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Err(Error::Malformed) };
                // Numbers may come packed.
                match (&field.kind, item) {
                    (Kind::Int32 | Kind::Int64 | Kind::Bool, Item::Bytes(packed)) => {
                        for number in wire::packed_varints(packed) {
                            list.push(value(&field.kind, Item::Varint(number?), depth)?.unwrap_or(Value::Null));
                        }
                    }
                    (kind, item) => list.push(value(kind, item, depth)?.unwrap_or(Value::Null)),
                }
            }
            Shape::Map => {
                let Item::Bytes(entry) = item else { return Err(Error::Malformed) };
                let (key, entry_value) = map_entry(entry, &field.kind, depth)?;
                let map = into.entry(field.name.clone()).or_insert_with(|| json!({}));
                map[key] = entry_value;
            }
            Shape::One => {
                if let Some(value) = value(&field.kind, item, depth)?
                    && (field.keeps_zero || !is_zero(&value))
                {
                    into.insert(field.name.clone(), value);
                }
            }
        }
    }
    Ok(())
}

/// Go sends scalars that are not pointers even when they are not set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

fn map_entry(bytes: &[u8], kind: &Kind, depth: usize) -> Result<(String, Value)> {
    let (mut key, mut found) = (String::new(), None);
    for item in Reader::new(bytes) {
        match item? {
            (1, Item::Bytes(text)) => key = string(text)?,
            (2, item) => found = value(kind, item, depth)?,
            _ => {}
        }
    }
    let absent = || match kind {
        Kind::String | Kind::Bytes => "".into(),
        Kind::Message(_) => json!({}),
        _ => Value::Null,
    };
    Ok((key, found.unwrap_or_else(absent)))
}

/// `None` where Go's JSON would leave the field out.
fn value(kind: &Kind, item: Item<'_>, depth: usize) -> Result<Option<Value>> {
    Ok(Some(match (kind, item) {
        (Kind::String, Item::Bytes(bytes)) => string(bytes)?.into(),
        (Kind::Bytes, Item::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Bool, Item::Varint(n)) => (n != 0).into(),
        (Kind::Int32, Item::Varint(n)) => (n as i32).into(),
        (Kind::Int64, Item::Varint(n)) => (n as i64).into(),
        (Kind::Double, Item::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (Kind::Message(name), Item::Bytes(bytes)) => {
            let mut object = Map::new();
            message(bytes, table::named(name).unwrap_or_default(), &mut object, depth + 1)?;
            Value::Object(object)
        }
        (Kind::Special(special), Item::Bytes(bytes)) => return special_value(*special, bytes, depth),
        _ => return Err(Error::Malformed),
    }))
}

fn special_value(special: Special, bytes: &[u8], depth: usize) -> Result<Option<Value>> {
    let mut numbers = [0_i64; 4];
    let mut parts: [Option<&[u8]>; 4] = [None; 4];
    let mut all: Vec<(u32, &[u8])> = Vec::new();
    for item in Reader::new(bytes) {
        match item? {
            (n @ 1..4, Item::Varint(number)) => numbers[n as usize] = number as i64,
            (n @ 1..4, Item::Bytes(part)) => {
                parts[n as usize] = Some(part);
                all.push((n, part));
            }
            _ => {}
        }
    }
    let schema = |bytes: &[u8]| -> Result<Value> {
        let mut object = Map::new();
        message(bytes, table::named("apiextensions.v1.JSONSchemaProps").unwrap_or_default(), &mut object, depth + 1)?;
        Ok(Value::Object(object))
    };
    let strings = |number: u32| -> Result<Value> {
        all.iter().filter(|(n, _)| *n == number).map(|(_, text)| string(text).map(Value::String)).collect::<Result<Vec<_>>>().map(Value::Array)
    };
    Ok(match special {
        Special::Quantity => Some(string(parts[1].unwrap_or_default())?.into()),
        Special::IntOrString if numbers[1] == 0 => Some((numbers[2] as i32).into()),
        Special::IntOrString => Some(string(parts[3].unwrap_or_default())?.into()),
        Special::Time | Special::MicroTime => {
            // An empty message is the zero time, which means none.
            if bytes.is_empty() || (numbers[1] == 0 && numbers[2] == 0) {
                return Ok(None);
            }
            let precision = if special == Special::Time { SecondsFormat::Secs } else { SecondsFormat::Micros };
            let nanos = u32::try_from(numbers[2]).map_err(|_| Error::Malformed)?;
            let time = DateTime::from_timestamp(numbers[1], nanos).ok_or(Error::Malformed)?;
            Some(time.to_rfc3339_opts(precision, true).into())
        }
        Special::Raw => {
            let raw = parts[1].unwrap_or_default();
            if raw.is_empty() {
                return Ok(None);
            }
            Some(if raw.starts_with(MAGIC) { decode(raw)? } else { serde_json::from_slice(raw).map_err(|_| Error::EmbeddedNotJson)? })
        }
        Special::Strings => Some(strings(1)?),
        Special::SchemaOrBool => Some(match parts[2] {
            Some(bytes) => schema(bytes)?,
            None => (numbers[1] != 0).into(),
        }),
        Special::SchemaOrArray => Some(match parts[1] {
            Some(bytes) => schema(bytes)?,
            None => all.iter().filter(|(n, _)| *n == 2).map(|(_, bytes)| schema(bytes)).collect::<Result<Vec<_>>>()?.into(),
        }),
        Special::SchemaOrStrings => Some(match parts[1] {
            Some(bytes) => schema(bytes)?,
            None => strings(2)?,
        }),
    })
}

fn string(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![(number << 3 | 2) as u8, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, object), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_namespace_as_kubectl_creates_it() {
        let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x1b\x0a\x13\x0a\x03foo\x12\x00\x1a\x00\x22\x00*\x002\x008\x00B\x00\x12\x00\x1a\x02\x0a\x00\x1a\x00\x22\x00";
        assert_eq!(decode(body).unwrap(), json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}, "spec": {}, "status": {}}));
    }

    #[test]
    fn inline_messages_maps_and_special_forms() {
        // A pod with one volume (emptyDir, inline source), a container with a quantity and an HTTP probe (inline handler, named port).
        let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
        let request = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let port = [vec![1 << 3, 1], field(3, b"web")].concat();
        let probe = [field(1, &field(2, &field(2, &port))), vec![2 << 3, 0]].concat();
        let container = [field(1, b"c"), field(8, &field(2, &request)), field(10, &probe)].concat();
        let spec = [field(1, &volume), field(2, &container), vec![4 << 3, 0]].concat();
        let pod = field(2, &spec);
        assert_eq!(
            decode(&envelope("v1", "Pod", &pod)).unwrap()["spec"],
            json!({
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "web"}}}],
                "terminationGracePeriodSeconds": 0,
            })
        );
        let secret = field(2, &[field(1, b"k"), field(2, b"hi")].concat());
        assert_eq!(decode(&envelope("v1", "Secret", &secret)).unwrap()["data"], json!({"k": "aGk="}));
    }

    #[test]
    fn bad_input_is_refused() {
        assert_eq!(decode(b"{}"), Err(Error::NoMagic));
        assert!(matches!(decode(&envelope("v1", "Nonsense", b"")), Err(Error::UnknownKind { .. })));
        let good = envelope("v1", "Pod", &field(1, &field(1, b"name")));
        for end in MAGIC.len() + 1..good.len() {
            // Whatever breaks off is refused or incomplete, never a panic.
            let _ = decode(&good[..end]);
        }
        assert_eq!(decode(&envelope("v1", "Pod", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])), Err(Error::Malformed));
    }
}
