//! Config maps, secrets, service accounts, events, limits and quotas.

use base64::Engine;
use serde_json::{Value, json};

use super::{PLAIN, Rules, age, field};
use crate::{
    Document, table,
    validate::{self, core},
    value::{child, default, each, entries, list, set, text, unset},
};

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "ConfigMap" => Rules {
            validate: core::config_map,
            validate_update: core::config_map_update,
            columns: &[("Data", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![(entries(&doc["data"]).count() + entries(&doc["binaryData"]).count()).into(), age(doc, now)],
            ..PLAIN
        },
        "Secret" => Rules {
            default: default_secret,
            validate: core::secret,
            validate_update: core::secret_update,
            fields: |doc| vec![("type", field(doc, "/type"))],
            columns: &[("Type", "string", 0), ("Data", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![doc["type"].clone(), entries(&doc["data"]).count().into(), age(doc, now)],
            ..PLAIN
        },
        "ServiceAccount" => Rules {
            columns: &[("Secrets", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![list(&doc["secrets"]).len().into(), age(doc, now)],
            ..PLAIN
        },
        "Event" => Rules {
            validate: core::event,
            fields: |doc| {
                let mut fields = event_fields(doc);
                fields.push(("source", event_source(doc)));
                fields
            },
            ..event_rules()
        },
        "LimitRange" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    each(spec, "limits", default_limit);
                }
            },
            validate: core::limit_range,
            columns: &[("Created At", "string", 0)],
            cells: super::pods::created_at,
            ..PLAIN
        },
        "ResourceQuota" => Rules {
            validate: core::resource_quota,
            columns: &[("Request", "string", 0), ("Limit", "string", 0), ("Age", "string", 0)],
            cells: quota_cells,
            ..PLAIN
        },
        _ => return None,
    })
}

/// `stringData` is a way to write `data`, never stored.
fn default_secret(doc: &mut Document) {
    default(doc, "type", "Opaque");
    let plain: Vec<(String, String)> = entries(&doc["stringData"]).map(|(k, v)| (k.to_owned(), text(v).to_owned())).collect();
    unset(doc, "stringData");
    if plain.is_empty() {
        return;
    }
    if let Some(data) = child(doc, "data") {
        for (key, value) in plain {
            set(data, &key, base64::engine::general_purpose::STANDARD.encode(value));
        }
    }
}

fn default_limit(item: &mut Value) {
    if item["type"] != "Container" {
        return;
    }
    let pairs = |v: &Value| entries(v).map(|(k, v)| (k.to_owned(), v.clone())).collect::<Vec<_>>();
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let source = pairs(&item[from]);
        if let Some(target) = child(item, to) {
            for (name, amount) in source {
                default(target, &name, amount);
            }
        }
    }
}

fn quota_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (hard, used) = (&doc["status"]["hard"], &doc["status"]["used"]);
    let shown = |limits: bool| {
        let names = entries(hard).filter(|(name, _)| name.starts_with("limits.") == limits);
        let pairs = names.map(|(name, amount)| format!("{name}: {}/{}", used[name].as_str().unwrap_or("0"), text(amount)));
        pairs.collect::<Vec<_>>().join(", ").into()
    };
    vec![shown(false), shown(true), age(doc, now)]
}

fn event_source(doc: &Document) -> String {
    match field(doc, "/source/component") {
        source if source.is_empty() => field(doc, "/reportingComponent"),
        source => source,
    }
}

fn event_fields(doc: &Document) -> Vec<(&'static str, String)> {
    let about = if doc.get("regarding").is_some() { "/regarding" } else { "/involvedObject" };
    let of = |key: &str| field(doc, &format!("{about}/{key}"));
    vec![
        ("involvedObject.kind", of("kind")),
        ("involvedObject.namespace", of("namespace")),
        ("involvedObject.name", of("name")),
        ("involvedObject.uid", of("uid")),
        ("involvedObject.apiVersion", of("apiVersion")),
        ("involvedObject.resourceVersion", of("resourceVersion")),
        ("involvedObject.fieldPath", of("fieldPath")),
        ("reason", field(doc, "/reason")),
        ("reportingComponent", field(doc, "/reportingComponent")),
        ("type", field(doc, "/type")),
    ]
}

fn event_rules() -> Rules {
    Rules {
        columns: &[
            ("Last Seen", "string", 0),
            ("Type", "string", 0),
            ("Reason", "string", 0),
            ("Object", "string", 0),
            ("Subobject", "string", 1),
            ("Source", "string", 1),
            ("Message", "string", 0),
            ("First Seen", "string", 1),
            ("Count", "string", 1),
            ("Name", "string", 1),
        ],
        columns_are_all: true,
        cells: event_cells,
        ..PLAIN
    }
}

fn event_cells(doc: &Document, now: i64) -> Vec<Value> {
    // Rows of events.k8s.io are printed from their stored form.
    let doc = if doc.get("regarding").is_some() { &event_to_core(doc.clone()) } else { doc };
    let object = &doc["involvedObject"];
    let first = match &doc["firstTimestamp"] {
        Value::Null => &doc["eventTime"],
        at => at,
    };
    let series = &doc["series"];
    let (last, count) = match (series["lastObservedTime"].is_null(), &doc["lastTimestamp"]) {
        (false, _) => (&series["lastObservedTime"], series["count"].as_i64().unwrap_or(0)),
        (true, Value::Null) => (first, doc["count"].as_i64().unwrap_or(1)),
        (true, at) => (at, doc["count"].as_i64().unwrap_or(1)),
    };
    let host = text(&doc["source"]["host"]);
    let source = if host.is_empty() { event_source(doc) } else { format!("{}, {host}", event_source(doc)) };
    let count = if count == 0 { 1 } else { count };
    vec![
        table::age(last, now),
        doc["type"].clone(),
        doc["reason"].clone(),
        format!("{}/{}", text(&object["kind"]).to_lowercase(), text(&object["name"])).into(),
        object["fieldPath"].as_str().unwrap_or_default().into(),
        source.into(),
        text(&doc["message"]).trim().into(),
        table::age(first, now),
        count.into(),
        doc["metadata"]["name"].clone(),
    ]
}

/// `events.k8s.io`: the same objects under newer field names.
pub(super) fn events_rules(_kind: &str) -> Option<Rules> {
    Some(Rules {
        validate: validate::core::new_event,
        fields: |doc| {
            let rename = |name: &'static str| match name {
                "involvedObject.kind" => "regarding.kind",
                "involvedObject.namespace" => "regarding.namespace",
                "involvedObject.name" => "regarding.name",
                "involvedObject.uid" => "regarding.uid",
                "involvedObject.apiVersion" => "regarding.apiVersion",
                "involvedObject.resourceVersion" => "regarding.resourceVersion",
                "involvedObject.fieldPath" => "regarding.fieldPath",
                "reportingComponent" => "reportingController",
                other => other,
            };
            let mut fields: Vec<_> = event_fields(doc).into_iter().map(|(n, v)| (rename(n), v)).collect();
            if let Some(f) = fields.iter_mut().find(|(n, _)| *n == "reportingController") {
                f.1 = field(doc, "/reportingController");
            }
            fields
        },
        from_storage: event_from_core,
        to_storage: event_to_core,
        ..event_rules()
    })
}

/// (name in core/v1, name in events.k8s.io/v1)
const EVENT_NAMES: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
];

fn rename_event(mut doc: Document, api_version: &str, to_core: bool) -> Document {
    if let Some(map) = doc.as_object_mut() {
        map.insert("apiVersion".into(), json!(api_version));
        for (core, new) in EVENT_NAMES {
            let (from, to) = if to_core { (new, core) } else { (core, new) };
            if from != to
                && let Some(value) = map.remove(from)
            {
                map.insert(to.into(), value);
            }
        }
    }
    doc
}

fn event_from_core(doc: Document) -> Document {
    rename_event(doc, "events.k8s.io/v1", false)
}

fn event_to_core(doc: Document) -> Document {
    rename_event(doc, "v1", true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_convert_and_back() {
        let core = json!({"apiVersion": "v1", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m",
            "source": {"component": "c"}, "reason": "r", "count": 2});
        let new = event_from_core(core.clone());
        assert_eq!((&new["regarding"]["name"], &new["note"], &new["deprecatedCount"]), (&json!("p"), &json!("m"), &json!(2)));
        assert_eq!(event_to_core(new), core);
    }

    #[test]
    fn string_data_becomes_data() {
        let mut doc = json!({"data": {"a": "eA=="}, "stringData": {"a": "hi", "b": ""}});
        default_secret(&mut doc);
        assert_eq!(doc, json!({"type": "Opaque", "data": {"a": "aGk=", "b": ""}}));
    }

    #[test]
    fn limits_fill_requests() {
        let mut item = json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}});
        default_limit(&mut item);
        assert_eq!((&item["default"], &item["defaultRequest"]), (&json!({"cpu": "2"}), &json!({"cpu": "2", "memory": "1Mi"})));
    }
}
