//! Cells that several kinds have.

use serde_json::Value;

use crate::{
    selector::LabelSelector,
    value::{entries, list, strings, text},
};

pub(crate) const NONE: &str = "<none>";

/// The text, or `<none>`.
pub(crate) fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// The text, or `<unset>`.
pub(crate) fn or_unset(value: &Value) -> Value {
    if text(value).is_empty() { "<unset>".into() } else { value.clone() }
}

/// A number, 0 when absent.
pub(crate) fn count(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels(map: &Value) -> Value {
    or_none(entries(map).map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(","))
}

/// A label selector in query form, or `<none>`.
pub(crate) fn selector(document: &Value) -> Value {
    or_none(LabelSelector::from_document(document).to_string())
}

/// The names of a pod spec's containers.
pub(crate) fn containers(spec: &Value) -> Value {
    list(&spec["containers"]).iter().map(|c| text(&c["name"])).collect::<Vec<_>>().join(",").into()
}

/// Their images.
pub(crate) fn images(spec: &Value) -> Value {
    list(&spec["containers"]).iter().map(|c| text(&c["image"])).collect::<Vec<_>>().join(",").into()
}

/// `RWO,ROX`
pub(crate) fn access_modes(modes: &Value) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    strings(modes).map(short).collect::<Vec<_>>().join(",").into()
}

/// A scalar as text, `fallback` when absent.
pub(crate) fn scalar(value: &Value, fallback: &str) -> Value {
    match value {
        Value::Null => fallback.into(),
        Value::String(s) => s.as_str().into(),
        other => other.to_string().into(),
    }
}

/// The condition of this type.
pub(crate) fn condition<'a>(doc: &'a Value, type_: &str) -> Option<&'a Value> {
    list(&doc["status"]["conditions"]).iter().find(|c| c["type"] == type_)
}
