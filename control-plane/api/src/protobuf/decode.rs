//! Bytes to documents.

use std::borrow::Cow;

use base64::Engine;
use prost::{
    Message as _,
    bytes::Buf,
    encoding::{self, DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use serde_json::{Map, Value};

use super::{
    MAGIC, MAX_DEPTH,
    numbers::{self, Message, Slot},
    scalars::{IntOrString, Quantity, Raw, Timestamp, Unknown},
};
use crate::{
    Document,
    schema::{Struct, StructId, Type, schemas},
};

/// The document in a message, with the `apiVersion` and `kind` the message gives it.
///
/// Values that Go leaves out of JSON (zeros of fields that are no pointers) are left out here too.
///
/// # Errors
/// What is wrong with the message, for the client.
pub fn decode(bytes: &[u8]) -> Result<Document, String> {
    let unknown = unwrap(bytes)?;
    let meta = unknown.type_meta.unwrap_or_default();
    let (api_version, kind) = (meta.api_version.unwrap_or_default(), meta.kind.unwrap_or_default());
    // Options are sent in the version of what they are for.
    let known_as = if kind == "DeleteOptions" { "v1" } else { &api_version };
    let id = schemas().kind(known_as, &kind).ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?}"))?;
    let mut object = Map::from_iter([("apiVersion".to_owned(), api_version.into()), ("kind".to_owned(), kind.into())]);
    structure(id, &unknown.raw.unwrap_or_default(), &mut object, 0)?;
    Ok(Value::Object(object))
}

fn unwrap(bytes: &[u8]) -> Result<Unknown, String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    Unknown::decode(body).map_err(|e| e.to_string())
}

fn structure(id: StructId, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    let structure = schemas().get(id);
    let message = numbers::message(structure).ok_or_else(|| format!("{} has no protobuf form", structure.short_name()))?;
    fields(structure, message, bytes, object, depth)
}

fn fields(structure: &Struct, message: &Message, mut bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("nested too deep".into());
    }
    let broken = |e: prost::DecodeError| format!("{}: {e}", structure.short_name());
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(broken)?;
        let Some(slot) = message.slot(number) else {
            skip_field(wire, number, &mut bytes, DecodeContext::default()).map_err(broken)?;
            continue;
        };
        let payload = Payload::read(wire, &mut bytes).map_err(|e| format!("{}: {e}", structure.short_name()))?;
        match slot {
            Slot::Inline(inner) => fields(structure, inner, payload.bytes()?, object, depth + 1)?,
            Slot::Field { name, pointer } => {
                let Some(field) = structure.fields.get(name) else { continue };
                put(object, name, pointer, &field.ty, &payload, depth).map_err(|e| format!("{}.{name}: {e}", structure.short_name()))?;
            }
        }
    }
    Ok(())
}

/// Adds one occurrence of a field: repeated ones grow their list or map.
fn put(object: &mut Map<String, Value>, name: &str, pointer: bool, ty: &Type, payload: &Payload<'_>, depth: usize) -> Result<(), String> {
    match ty {
        Type::List(item) => {
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Err("is no list".into()) };
            items(item, payload, list, depth)
        }
        Type::Map(item) => {
            let (key, value) = entry(payload.bytes()?)?;
            let value = match (item.as_ref(), value) {
                // A list as a map's value is a message with one repeated field.
                (Type::List(inner), value) => {
                    let mut list = Vec::new();
                    wrapped_items(inner, value.as_ref().map_or(Ok(&[][..]), Payload::bytes)?, &mut list, depth)?;
                    Value::Array(list)
                }
                (item, Some(value)) => one(item, &value, depth)?,
                (item, None) => zero(item),
            };
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(map) = map else { return Err("is no map".into()) };
            map.insert(key, value);
            Ok(())
        }
        _ => {
            let value = one(ty, payload, depth)?;
            if pointer || !left_out(&value, ty) {
                object.insert(name.into(), value);
            }
            Ok(())
        }
    }
}

/// Whether Go's JSON has no such field.
fn left_out(value: &Value, ty: &Type) -> bool {
    match ty {
        Type::Time | Type::MicroTime | Type::Any => value.is_null(),
        Type::String | Type::Bytes => value == "",
        Type::Bool => value == false,
        Type::Int32 | Type::Int64 => value == 0,
        Type::Float | Type::IntOrString | Type::Quantity | Type::List(_) | Type::Map(_) | Type::Struct(_) | Type::Either(..) => false,
    }
}

fn items(item: &Type, payload: &Payload<'_>, list: &mut Vec<Value>, depth: usize) -> Result<(), String> {
    match (item, payload) {
        // Packed scalars.
        (Type::Int32 | Type::Int64 | Type::Bool, Payload::Bytes(packed)) => {
            let mut packed = *packed;
            while packed.has_remaining() {
                let number = decode_varint(&mut packed).map_err(|e| e.to_string())?;
                list.push(one(item, &Payload::Varint(number), depth)?);
            }
        }
        (Type::List(inner), Payload::Bytes(bytes)) => {
            let mut inner_list = Vec::new();
            wrapped_items(inner, bytes, &mut inner_list, depth)?;
            list.push(Value::Array(inner_list));
        }
        _ => list.push(one(item, payload, depth)?),
    }
    Ok(())
}

/// The repeated field 1 of a message.
fn wrapped_items(item: &Type, mut bytes: &[u8], list: &mut Vec<Value>, depth: usize) -> Result<(), String> {
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(|e| e.to_string())?;
        let payload = Payload::read(wire, &mut bytes)?;
        if number == 1 {
            list.push(one(item, &payload, depth)?);
        }
    }
    Ok(())
}

fn entry(mut bytes: &[u8]) -> Result<(String, Option<Payload<'_>>), String> {
    let (mut key, mut value) = (String::new(), None);
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(|e| e.to_string())?;
        let payload = Payload::read(wire, &mut bytes)?;
        match number {
            1 => key = text(payload.bytes()?)?.into_owned(),
            2 => value = Some(payload),
            _ => {}
        }
    }
    Ok((key, value))
}

fn zero(ty: &Type) -> Value {
    match ty {
        Type::String | Type::Bytes => "".into(),
        Type::Quantity => "0".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Float | Type::IntOrString => 0.into(),
        Type::Struct(_) | Type::Map(_) => Value::Object(Map::new()),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Any | Type::Time | Type::MicroTime | Type::Either(..) => Value::Null,
    }
}

fn one(ty: &Type, payload: &Payload<'_>, depth: usize) -> Result<Value, String> {
    let read = |e: prost::DecodeError| e.to_string();
    Ok(match ty {
        Type::Bool => (payload.varint()? != 0).into(),
        // Negative numbers are sent as their 64-bit two's complement.
        Type::Int32 => (payload.varint()? as i32).into(),
        Type::Int64 => (payload.varint()? as i64).into(),
        Type::Float => match payload {
            Payload::Fixed64(bits) => f64::from_bits(*bits).into(),
            Payload::Fixed32(bits) => f64::from(f32::from_bits(*bits)).into(),
            Payload::Varint(_) | Payload::Bytes(_) => return Err("is no floating-point number".into()),
        },
        Type::String => text(payload.bytes()?)?.into(),
        Type::Bytes => base64::engine::general_purpose::STANDARD.encode(payload.bytes()?).into(),
        Type::Time | Type::MicroTime => match payload.bytes()? {
            // The zero time.
            [] => Value::Null,
            bytes => Timestamp::decode(bytes).map_err(read)?.to_json(*ty == Type::MicroTime)?,
        },
        Type::IntOrString => IntOrString::decode(payload.bytes()?).map_err(read)?.to_json(),
        Type::Quantity => match Quantity::decode(payload.bytes()?).map_err(read)?.string.unwrap_or_default() {
            empty if empty.is_empty() => "0".into(),
            text => text.into(),
        },
        Type::Any => match Raw::decode(payload.bytes()?).map_err(read)?.raw {
            None => Value::Null,
            Some(raw) if raw.is_empty() => Value::Null,
            Some(raw) => serde_json::from_slice(&raw).map_err(|e| e.to_string())?,
        },
        Type::Struct(id) => {
            let mut object = Map::new();
            structure(*id, payload.bytes()?, &mut object, depth + 1)?;
            Value::Object(object)
        }
        Type::Either(first, second) => either(first, second, payload.bytes()?, depth)?,
        Type::List(_) | Type::Map(_) => return Err("is nested in an unknown way".into()),
    })
}

/// `JSONSchemaPropsOrArray`, `...OrStringArray`: schema, or list. `...OrBool`: the bool is first, and false beside a schema.
fn either(first: &Type, second: &Type, mut bytes: &[u8], depth: usize) -> Result<Value, String> {
    let bool_first = *second == Type::Bool;
    let (mut schema, mut other) = (None, None);
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(|e| e.to_string())?;
        let payload = Payload::read(wire, &mut bytes)?;
        match (number, bool_first) {
            (1, false) | (2, true) => schema = Some(one(first, &payload, depth)?),
            (1, true) => other = Some(one(second, &payload, depth)?),
            (2, false) => {
                let Type::List(item) = second else { return Err("is nested in an unknown way".into()) };
                let Value::Array(list) = other.get_or_insert_with(|| Value::Array(Vec::new())) else { continue };
                list.push(one(item, &payload, depth)?);
            }
            _ => {}
        }
    }
    Ok(schema.or(other).unwrap_or(Value::Null))
}

fn text(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| "string field contains invalid UTF-8".into())
}

/// A field's value as it stands on the wire.
enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn read(wire: WireType, bytes: &mut &'a [u8]) -> Result<Payload<'a>, String> {
        let broken = |e: prost::DecodeError| e.to_string();
        Ok(match wire {
            WireType::Varint => Payload::Varint(decode_varint(bytes).map_err(broken)?),
            WireType::SixtyFourBit => Payload::Fixed64(u64::from_le_bytes(take(bytes)?)),
            WireType::ThirtyTwoBit => Payload::Fixed32(u32::from_le_bytes(take(bytes)?)),
            WireType::LengthDelimited => {
                let length = encoding::decode_varint(bytes).map_err(broken)?;
                let length = usize::try_from(length).ok().filter(|l| *l <= bytes.len()).ok_or("unexpected EOF")?;
                let (head, tail) = bytes.split_at(length);
                *bytes = tail;
                Payload::Bytes(head)
            }
            WireType::StartGroup | WireType::EndGroup => return Err("groups are not used".into()),
        })
    }

    fn varint(&self) -> Result<u64, String> {
        match self {
            Payload::Varint(number) => Ok(*number),
            Payload::Fixed64(_) | Payload::Fixed32(_) | Payload::Bytes(_) => Err("is no integer".into()),
        }
    }

    fn bytes(&self) -> Result<&'a [u8], String> {
        match self {
            Payload::Bytes(bytes) => Ok(bytes),
            Payload::Varint(_) | Payload::Fixed64(_) | Payload::Fixed32(_) => Err("is no length-delimited field".into()),
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or("unexpected EOF")?;
    *bytes = tail;
    Ok(*head)
}
