//! Printed columns, `meta.k8s.io/v1 Table`: what `kubectl get` shows.

use serde_json::{Value, json};

mod cells;
pub(crate) mod pod;

use crate::{Document, resource::Column, resource::Resource};

pub(crate) use cells::*;

pub(crate) const NAME_DESCRIPTION: &str = "Name must be unique within a namespace.";

/// What of each object a row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The `includeObject` query parameter.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "None" => Some(IncludeObject::None),
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// A column of type string with no format.
pub fn column(name: &str, description: &str) -> Column {
    typed_column(name, "string", 0, description)
}

/// A column of any type and priority.
pub fn typed_column(name: &str, type_: &str, priority: i32, description: &str) -> Column {
    let format = if name == "Name" { "name" } else { "" };
    Column { name: name.into(), type_: type_.into(), format: format.into(), description: description.into(), priority }
}

/// NAME and AGE.
pub fn default_columns() -> Vec<Column> {
    vec![
        column("Name", NAME_DESCRIPTION),
        column("Age", "CreationTimestamp is a timestamp representing the server time when this object was created."),
    ]
}

/// The cells of [`default_columns`].
pub fn default_cells(doc: &Document, now: i64) -> Vec<Value> {
    vec![doc["metadata"]["name"].clone(), age(&doc["metadata"]["creationTimestamp"], now)]
}

/// `5d3h`: how long since `timestamp`; `<unknown>` when there is none.
pub fn age(timestamp: &Value, now: i64) -> Value {
    let parsed = timestamp.as_str().and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok());
    match parsed {
        Some(t) => human_duration(now - t.timestamp()).into(),
        None => "<unknown>".into(),
    }
}

/// Upstream's `duration.HumanDuration`, for whole seconds.
pub fn human_duration(seconds: i64) -> String {
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (m, h, d, y) = (seconds / 60, seconds / 3600, seconds / 86_400, seconds / (86_400 * 365));
    match seconds {
        // Clocks a little apart are no reason to print a negative age.
        i64::MIN..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if m < 10 => pair(m, "m", seconds % 60, "s"),
        _ if m < 180 => format!("{m}m"),
        _ if h < 8 => pair(h, "h", m % 60, "m"),
        _ if h < 48 => format!("{h}h"),
        _ if h < 192 => pair(d, "d", h % 24, "h"),
        _ if d < 730 => format!("{d}d"),
        _ if y < 8 => pair(y, "y", d % 365, "d"),
        _ => format!("{y}y"),
    }
}

fn columns_document(columns: &[Column]) -> Vec<Value> {
    columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority}))
        .collect()
}

/// One row; watch events carry a table of one.
pub fn row(resource: &Resource, doc: &Document, include: IncludeObject, now: i64) -> Value {
    let mut row = json!({ "cells": resource.hooks.cells(doc, now) });
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": doc["metadata"]});
        }
        IncludeObject::Object => {
            let mut object = doc.clone();
            object["kind"] = resource.kind.as_str().into();
            object["apiVersion"] = resource.api_version().into();
            row["object"] = object;
        }
    }
    row
}

/// The whole table. `list_metadata` is the list's `metadata` (resourceVersion, continue); `columns` may be left out of
/// the later events of a watch by passing `with_columns` false.
pub fn table<'a>(
    resource: &Resource,
    docs: impl IntoIterator<Item = &'a Document>,
    list_metadata: Value,
    include: IncludeObject,
    with_columns: bool,
    now: i64,
) -> Value {
    let columns = if with_columns { columns_document(&resource.hooks.columns()) } else { Vec::new() };
    let rows: Vec<Value> = docs.into_iter().map(|doc| row(resource, doc, include, now)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_upstreams() {
        for (seconds, want) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (8 * 86_400, "8d"),
            (730 * 86_400, "2y"),
            (731 * 86_400, "2y1d"),
            (3000 * 86_400, "8y"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }

    #[test]
    fn rows_carry_what_is_asked() {
        let resource = crate::builtin::by_kind("v1", "ConfigMap").unwrap();
        let doc = json!({"metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:00Z"}, "data": {}});
        let t = table(resource, [&doc], json!({"resourceVersion": "7"}), IncludeObject::Metadata, true, 60);
        assert_eq!(t["rows"][0]["object"]["metadata"]["name"], "a");
        assert_eq!(t["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let object = row(resource, &doc, IncludeObject::Object, 60);
        assert_eq!((&object["object"]["kind"], &object["object"]["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
        assert!(row(resource, &doc, IncludeObject::None, 60).get("object").is_none());
    }
}
