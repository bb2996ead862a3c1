//! Object metadata, the same for every kind: what a create or update may set, what the server sets, what is valid.
//!
//! [`before_create`] and [`before_update`] run the whole of it, hooks included, in kube-apiserver's order.

mod validate;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Map, Value};

use crate::{
    Document,
    resource::Resource,
    status::{ApiError, FieldError, bad_request, conflict_because, invalid, unknown},
};

pub use validate::{annotations as validate_annotations, labels as validate_labels, validate_create, validate_update};

/// Letters of generated names: no vowels, so no words; nothing that looks like something else.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Names are generated so that they also fit a label value.
const MAX_PREFIX: usize = 58;

/// What a new object takes from the world: time, identity, chance.
#[derive(Debug, Clone)]
pub struct Fresh {
    pub now: DateTime<Utc>,
    pub uid: String,
    /// Five letters to end a generated name with.
    pub suffix: String,
}

impl Fresh {
    pub fn generate() -> Fresh {
        Fresh { now: Utc::now(), uid: uuid::Uuid::new_v4().to_string(), suffix: suffix(rand::random()) }
    }
}

/// Five letters from the alphabet of generated names.
pub fn suffix(mut seed: u64) -> String {
    let mut letter = || {
        let index = seed % ALPHABET.len() as u64;
        seed /= ALPHABET.len() as u64;
        ALPHABET[index as usize] as char
    };
    (0..5).map(|_| letter()).collect()
}

/// `2026-01-02T03:04:05Z`, as `metav1.Time` prints.
pub fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `metadata.name`, empty when there is none.
pub fn name(doc: &Document) -> &str {
    doc["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`, empty when there is none.
pub fn namespace(doc: &Document) -> &str {
    doc["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// The `metadata` object of a document, made when missing. Errors (400) when the document or its metadata is no object.
pub fn metadata_mut(doc: &mut Document) -> Result<&mut Map<String, Value>, ApiError> {
    let not_an_object = || bad_request("the object provided is unrecognized (must be of type Object)");
    let metadata = doc.as_object_mut().ok_or_else(not_an_object)?.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(not_an_object)
}

fn set_kind(resource: &Resource, doc: &mut Document) {
    if let Some(map) = doc.as_object_mut() {
        map.insert("apiVersion".into(), resource.api_version().into());
        map.insert("kind".into(), resource.kind.as_str().into());
    }
}

/// Puts the object into the namespace of the request. Errors (400) when it names another one.
pub fn set_namespace(doc: &mut Document, namespace: Option<&str>) -> Result<(), ApiError> {
    let metadata = metadata_mut(doc)?;
    let own = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    match namespace {
        None => {
            metadata.remove("namespace");
        }
        Some(ns) if own.is_empty() => {
            metadata.insert("namespace".into(), ns.into());
        }
        Some(ns) if own == ns => {}
        Some(_) => {
            return Err(bad_request("the namespace of the provided object does not match the namespace sent on the request"));
        }
    }
    Ok(())
}

/// Checks a body against the name in the URL. Errors are 400.
pub fn check_name(doc: &Document, url_name: &str) -> Result<(), ApiError> {
    match name(doc) {
        "" => Err(bad_request("name must be provided")),
        n if n != url_name => Err(bad_request(format!("the name of the object ({n}) does not match the name on the URL ({url_name})"))),
        _ => Ok(()),
    }
}

/// Metadata of a new object: names, identity, time; clears what only the server sets.
pub fn prepare_create(resource: &Resource, doc: &mut Document, namespace: Option<&str>, fresh: &Fresh) -> Result<(), ApiError> {
    set_namespace(doc, namespace.filter(|_| resource.is_namespaced()))?;
    set_kind(resource, doc);
    let metadata = metadata_mut(doc)?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty() && v != "0") {
        return Err(unknown("resourceVersion should not be set on objects to be created"));
    }
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), fresh.uid.as_str().into());
    metadata.insert("creationTimestamp".into(), timestamp(fresh.now).into());
    if resource.counts_generation {
        metadata.insert("generation".into(), 1.into());
    }
    generate_name(metadata, &fresh.suffix);
    Ok(())
}

fn generate_name(metadata: &mut Map<String, Value>, suffix: &str) {
    let text = |key| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("name").is_empty() && !text("generateName").is_empty() {
        let prefix: String = text("generateName").chars().take(MAX_PREFIX).collect();
        metadata.insert("name".into(), format!("{prefix}{suffix}").into());
    }
}

/// Metadata of an update: what the client left out or may not set comes from `old`.
/// Errors: 409 when the client means another object of that name.
pub fn prepare_update(resource: &Resource, new: &mut Document, old: &Document) -> Result<(), ApiError> {
    set_kind(resource, new);
    let before = &old["metadata"];
    let metadata = metadata_mut(new)?;
    let uid = metadata.get("uid").and_then(Value::as_str).unwrap_or_default();
    let old_uid = before["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != old_uid {
        let cause = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(conflict_because(resource, name(old), &cause));
    }
    metadata.remove("selfLink");
    let absent = |m: &Map<String, Value>, key: &str| m.get(key).is_none_or(Value::is_null);
    // The generation is the server's; the others may be left out, and are checked for equality when given.
    metadata.remove("generation");
    for key in ["uid", "namespace", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        match before.get(key) {
            Some(value) if absent(metadata, key) => {
                metadata.insert(key.into(), value.clone());
            }
            None if key == "deletionTimestamp" || key == "deletionGracePeriodSeconds" => {
                metadata.remove(key);
            }
            _ => {}
        }
    }
    // An empty list means nothing was said; one empty entry means that they shall be forgotten.
    match metadata.get("managedFields").and_then(Value::as_array).map(Vec::as_slice) {
        None | Some([]) => match before.get("managedFields") {
            Some(fields) => {
                metadata.insert("managedFields".into(), fields.clone());
            }
            None => {
                metadata.remove("managedFields");
            }
        },
        Some([only]) if only.as_object().is_some_and(Map::is_empty) => {
            metadata.remove("managedFields");
        }
        Some(_) => {}
    }
    Ok(())
}

/// Counts a change outside `metadata` and `status`.
pub fn bump_generation(resource: &Resource, new: &mut Document, old: &Document) {
    if !resource.counts_generation {
        return;
    }
    let counted = |doc: &Document| -> Vec<(String, Value)> {
        let fields = doc.as_object().into_iter().flatten();
        let own = |k: &str| !matches!(k, "metadata" | "status" | "apiVersion" | "kind");
        fields.filter(|(k, _)| own(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    // Deployments roll back by annotations, so these count too.
    let annotations = resource.kind == "Deployment" && resource.group == "apps";
    let annotated = annotations && !same(&new["metadata"]["annotations"], &old["metadata"]["annotations"]);
    if annotated || counted(new) != counted(old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        if let Ok(metadata) = metadata_mut(new) {
            metadata.insert("generation".into(), generation.into());
        }
    }
}

/// Equal, an empty collection being as good as none.
pub fn same(a: &Value, b: &Value) -> bool {
    let empty = |v: &Value| match v {
        Value::Null => true,
        Value::Object(m) => m.is_empty(),
        Value::Array(l) => l.is_empty(),
        _ => false,
    };
    a == b || (empty(a) && empty(b))
}

/// Starts a graceful deletion: the time it is due, the seconds allowed, one more generation.
pub fn mark_deleted(doc: &mut Document, now: DateTime<Utc>, grace_seconds: i64) -> Result<(), ApiError> {
    let metadata = metadata_mut(doc)?;
    let due = TimeDelta::try_seconds(grace_seconds).and_then(|d| now.checked_add_signed(d)).unwrap_or(now);
    metadata.insert("deletionTimestamp".into(), timestamp(due).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace_seconds.into());
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|g| *g > 0) {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    Ok(())
}

/// All that happens to a new object between admission and the store: metadata, hooks, validation.
/// `doc` has been decoded and defaulted; admission may have changed it.
pub fn before_create(resource: &Resource, doc: &mut Document, namespace: Option<&str>, fresh: &Fresh) -> Result<(), ApiError> {
    prepare_create(resource, doc, namespace, fresh)?;
    resource.hooks.prepare_for_create(doc);
    let mut errors = validate_create(resource, doc);
    errors.extend(resource.hooks.validate_create(doc));
    fail_if_any(resource, name(doc), errors)
}

/// All that happens to an update between admission and the store; `sub` is the subresource written through, or empty.
pub fn before_update(resource: &Resource, new: &mut Document, old: &Document, sub: &str) -> Result<(), ApiError> {
    prepare_update(resource, new, old)?;
    resource.hooks.prepare_for_update(new, old, sub);
    bump_generation(resource, new, old);
    let mut errors = validate_update(resource, new, old);
    errors.extend(resource.hooks.validate_update(new, old, sub));
    fail_if_any(resource, name(old), errors)
}

fn fail_if_any(resource: &Resource, name: &str, errors: Vec<FieldError>) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(invalid(resource, name, &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    fn fresh() -> Fresh {
        Fresh { now: DateTime::from_timestamp(60, 0).unwrap(), uid: "u".into(), suffix: suffix(123_456_789) }
    }

    #[test]
    fn create_sets_what_the_server_sets() {
        let cm = by_kind("v1", "ConfigMap").unwrap();
        let mut doc = json!({"metadata": {"generateName": "a-", "uid": "mine", "deletionTimestamp": "x"}});
        before_create(cm, &mut doc, Some("ns"), &fresh()).unwrap();
        let m = &doc["metadata"];
        assert_eq!((&m["uid"], &m["creationTimestamp"], &m["namespace"]), (&json!("u"), &json!("1970-01-01T00:01:00Z"), &json!("ns")));
        assert!(m.get("deletionTimestamp").is_none() && m.get("generation").is_none());
        assert_eq!(name(&doc).len(), 7);
        assert_eq!(doc["kind"], "ConfigMap");
    }

    #[test]
    fn create_refuses() {
        let cm = by_kind("v1", "ConfigMap").unwrap();
        let error = |doc: Value| before_create(cm, &mut doc.clone(), Some("ns"), &fresh()).unwrap_err();
        assert_eq!(
            error(json!({"metadata": {}})).message,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
        );
        assert_eq!(error(json!({"metadata": {"name": "a", "namespace": "b"}})).code, 400);
        assert_eq!(error(json!({"metadata": {"name": "a", "resourceVersion": "5"}})).code, 500);
        assert_eq!(error(json!([])).code, 400);
        assert_eq!(error(json!({"metadata": 1})).code, 400);
    }

    #[test]
    fn update_keeps_and_counts() {
        let rs = by_kind("apps/v1", "ReplicaSet").unwrap();
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 3, "creationTimestamp": "1970-01-01T00:00:00Z"},
                         "spec": {"replicas": 1}, "status": {"replicas": 0}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9}, "spec": {"replicas": 2}});
        prepare_update(rs, &mut new, &old).unwrap();
        bump_generation(rs, &mut new, &old);
        assert_eq!((&new["metadata"]["generation"], &new["metadata"]["uid"]), (&json!(4), &json!("u")));
        let mut same = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1}, "status": {"replicas": 5}});
        prepare_update(rs, &mut same, &old).unwrap();
        bump_generation(rs, &mut same, &old);
        assert_eq!(same["metadata"]["generation"], 3);
        let mut other = json!({"metadata": {"name": "a", "uid": "v"}});
        assert_eq!(prepare_update(rs, &mut other, &old).unwrap_err().code, 409);
    }

    #[test]
    fn managed_fields_outlive_writers_that_leave_them_out() {
        let cm = by_kind("v1", "ConfigMap").unwrap();
        let old = json!({"metadata": {"name": "a", "managedFields": [{"manager": "m"}]}});
        let after = |fields: Value| {
            let mut new = json!({"metadata": {"name": "a", "managedFields": fields}});
            prepare_update(cm, &mut new, &old).unwrap();
            new["metadata"].get("managedFields").cloned()
        };
        assert_eq!(after(json!([])), Some(json!([{"manager": "m"}])));
        assert_eq!(after(Value::Null), Some(json!([{"manager": "m"}])));
        assert_eq!(after(json!([{}])), None);
        assert_eq!(after(json!([{"manager": "n"}])), Some(json!([{"manager": "n"}])));
    }

    #[test]
    fn deletion_is_due_after_grace() {
        let mut doc = json!({"metadata": {"generation": 1}});
        mark_deleted(&mut doc, DateTime::from_timestamp(0, 0).unwrap(), 30).unwrap();
        assert_eq!(doc["metadata"]["deletionTimestamp"], "1970-01-01T00:00:30Z");
        assert_eq!(doc["metadata"]["generation"], 2);
    }
}
