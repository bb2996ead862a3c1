//! JSON and YAML to documents, remembering fields that were given twice.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A document and the paths of fields given more than once (the last one counts).
pub(super) struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// The error is in the words of Go's decoder, as far as they carry information.
pub(super) fn json(bytes: &[u8]) -> Result<Parsed, String> {
    let state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&state).deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    match value {
        Ok(value) => Ok(Parsed { value, duplicates: state.duplicates.into_inner() }),
        Err(error) => Err(go_words(&error, bytes)),
    }
}

/// The first document of a YAML stream.
pub(super) fn yaml(bytes: &[u8]) -> Result<Parsed, String> {
    let state = State::default();
    let value = match serde_yaml_ng::Deserializer::from_slice(bytes).next() {
        Some(document) => Node(&state).deserialize(document).map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))?,
        None => Value::Null,
    };
    Ok(Parsed { value, duplicates: state.duplicates.into_inner() })
}

fn go_words(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let line = bytes.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let text = String::from_utf8_lossy(line.get(error.column().saturating_sub(1)..).unwrap_or_default()).into_owned();
    let message = error.to_string();
    let place = [
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing characters", "after top-level value"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
        ("expected value", "looking for beginning of value"),
        ("expected ident", "looking for beginning of value"),
        ("trailing comma", "looking for beginning of value"),
    ]
    .iter()
    .find(|(theirs, _)| message.starts_with(theirs));
    match (place, text.chars().next()) {
        (Some((_, place)), Some(c)) => format!("invalid character {c:?} {place}"),
        _ => message,
    }
}

#[derive(Default)]
struct State {
    path: RefCell<String>,
    duplicates: RefCell<Vec<String>>,
}

impl State {
    /// Runs `step` with `segment` at the end of the path.
    fn within<T>(&self, segment: &str, step: impl FnOnce() -> T) -> T {
        let length = self.path.borrow().len();
        {
            let mut path = self.path.borrow_mut();
            if !path.is_empty() && !segment.starts_with('[') {
                path.push('.');
            }
            path.push_str(segment);
        }
        let result = step();
        self.path.borrow_mut().truncate(length);
        result
    }
}

struct Node<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = self.0.within(&format!("[{}]", list.len()), || seq.next_element_seed(Node(self.0)))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let value = self.0.within(&key, || {
                if map.contains_key(&key) {
                    self.0.duplicates.borrow_mut().push(self.0.path.borrow().clone());
                }
                access.next_value_seed(Node(self.0))
            })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Keys are strings; YAML's scalars count as their text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string key")
    }
    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.into())
    }
    fn visit_bool<E>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }
    fn visit_i64<E>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }
    fn visit_u64<E>(self, v: u64) -> Result<String, E> {
        Ok(v.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_named_and_the_last_counts() {
        let parsed = json(br#"{"a":1,"b":[{"c":1,"c":2}],"a":3}"#).unwrap();
        assert_eq!(parsed.value, json!({"a": 3, "b": [{"c": 2}]}));
        assert_eq!(parsed.duplicates, ["b[0].c", "a"]);
    }

    #[test]
    fn errors_sound_like_go() {
        let error = |text: &str| json(text.as_bytes()).err().unwrap();
        assert_eq!(error("abc"), "invalid character 'a' looking for beginning of value");
        assert_eq!(error("{\"a\" 1}"), "invalid character '1' after object key");
        assert_eq!(error("{\"a\":"), "unexpected end of JSON input");
        assert_eq!(error("{} x"), "invalid character 'x' after top-level value");
    }

    #[test]
    fn yaml_keys_become_text() {
        assert_eq!(yaml(b"1: a\ntrue: b\nc: [1, x]").unwrap().value, json!({"1": "a", "true": "b", "c": [1, "x"]}));
        assert!(yaml(b"a: b: c").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), text in "[-{}\\[\\]:, a0\"\n&*|!]{0,40}") {
            let _ = (json(&bytes), yaml(&bytes), json(text.as_bytes()), yaml(text.as_bytes()));
        }
    }
}
