//! Printed columns of custom resources.

use serde_json::Value;
use xebec_api::{Document, resource::Column, table};

use super::jsonpath::Path;

/// One of `additionalPrinterColumns`.
pub(super) struct PrinterColumn {
    column: Column,
    path: Path,
}

/// Reads the columns of a version; those that cannot be read are left out. Without any there is the age.
pub(super) fn parse(version: &Value) -> Vec<PrinterColumn> {
    let Some(list) = version["additionalPrinterColumns"].as_array().filter(|list| !list.is_empty()) else {
        let column = table::default_columns().pop();
        let path = Path::parse(".metadata.creationTimestamp");
        return column
            .zip(path)
            .map(|(column, path)| PrinterColumn { column: Column { type_: "date".into(), ..column }, path })
            .into_iter()
            .collect();
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    list.iter()
        .filter_map(|entry| {
            let column = Column {
                name: text(&entry["name"]),
                type_: text(&entry["type"]),
                format: text(&entry["format"]),
                description: entry["description"].as_str().map_or_else(
                    || format!("Custom resource definition column (in JSONPath format): {}", text(&entry["jsonPath"])),
                    str::to_string,
                ),
                priority: entry["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            };
            Some(PrinterColumn { column, path: Path::parse(entry["jsonPath"].as_str()?)? })
        })
        .collect()
}

/// The table's columns, the name first.
pub(super) fn definitions(columns: &[PrinterColumn]) -> Vec<Column> {
    let name = table::default_columns().into_iter().take(1);
    name.chain(columns.iter().map(|c| c.column.clone())).collect()
}

/// The cells of an object.
pub(super) fn cells(columns: &[PrinterColumn], doc: &Document, now: i64) -> Vec<Value> {
    let name = std::iter::once(doc["metadata"]["name"].clone());
    name.chain(columns.iter().map(|c| cell(c, doc, now))).collect()
}

fn cell(column: &PrinterColumn, doc: &Document, now: i64) -> Value {
    let found = column.path.find(doc);
    let Some(first) = found.first() else { return Value::Null };
    match (column.column.type_.as_str(), first) {
        (_, Value::Null) => Value::Null,
        ("date", value) => table::age(value, now),
        ("integer", Value::Number(n)) => n.as_i64().map_or_else(|| Value::Null, Value::from),
        ("number", Value::Number(n)) => Value::Number(n.clone()),
        ("boolean", Value::Bool(b)) => (*b).into(),
        ("string", _) => {
            let texts: Vec<String> = found.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string)).collect();
            texts.join(",").into()
        }
        _ => Value::Null,
    }
}
