//! Small helpers over documents: absent, null and of another type all read as empty.

use serde_json::{Map, Value};

/// The string, or "".
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list, or none.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The entries of a map, or none.
pub fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

/// The strings of a list.
pub fn strings(value: &Value) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Value::as_str)
}

/// Whether Go would leave the value out: null, "", 0, false, and empty collections.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(l) => l.is_empty(),
        Value::Object(m) => m.is_empty(),
    }
}

/// Whether the key is there at all (`{}` counts, null does not).
pub fn has(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(|v| !v.is_null())
}

/// Sets `key` when it is absent, or holds "" where text is due.
pub fn default(value: &mut Value, key: &str, fallback: impl Into<Value>) {
    let Some(map) = value.as_object_mut() else { return };
    if map.get(key).is_none_or(|v| v.is_null() || v == "") {
        map.insert(key.into(), fallback.into());
    }
}

/// Sets `key`.
pub fn set(value: &mut Value, key: &str, to: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.into(), to.into());
    }
}

/// Removes `key`.
pub fn unset(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(key);
    }
}

/// `key` of `from` into `to`, removed where absent.
pub fn copy(to: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(v) => set(to, key, v.clone()),
        None => unset(to, key),
    }
}

/// The object under `key`, made when absent. `None` when something else is there.
pub fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let slot = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}

/// Runs `step` on the value under `key`, if there is one.
pub fn with(value: &mut Value, key: &str, step: impl FnOnce(&mut Value)) {
    if let Some(v) = value.get_mut(key).filter(|v| !v.is_null()) {
        step(v);
    }
}

/// Runs `step` on every item of the list under `key`.
pub fn each(value: &mut Value, key: &str, step: impl FnMut(&mut Value)) {
    if let Some(list) = value.get_mut(key).and_then(Value::as_array_mut) {
        list.iter_mut().for_each(step);
    }
}
