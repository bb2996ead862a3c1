//! Validation of `metadata`.

use serde_json::Value;

use super::{name, namespace, same};
use crate::{Document, resource::Resource, status::FieldError, validate::names};

/// Bytes all annotations of an object may have together.
const MAX_ANNOTATIONS: usize = 256 * 1024;
const IMMUTABLE: &str = "field is immutable";

/// What is wrong with the metadata of a new object (after `prepare_create`).
pub fn validate_create(resource: &Resource, doc: &Document) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let check = resource.hooks.name_check();
    let (own, prefix) = (name(doc), doc["metadata"]["generateName"].as_str().unwrap_or_default());
    let invalid = |field: &str, value: &str| {
        let text = if field == "generateName" { names::as_prefix(value) } else { value.to_owned() };
        let field = format!("metadata.{field}");
        check(&text).into_iter().map(move |m| FieldError::invalid(field.clone(), value, m)).collect::<Vec<_>>()
    };
    if !prefix.is_empty() {
        errors.extend(invalid("generateName", prefix));
    }
    if own.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        errors.extend(invalid("name", own));
    }
    if resource.is_namespaced() {
        if namespace(doc).is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            let messages = names::dns1123_label(namespace(doc)).into_iter();
            errors.extend(messages.map(|m| FieldError::invalid("metadata.namespace", namespace(doc), m)));
        }
    }
    errors.extend(validate_common(&doc["metadata"]));
    errors
}

/// What is wrong with the metadata of an update (after `prepare_update`).
pub fn validate_update(resource: &Resource, new: &Document, old: &Document) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (after, before) = (&new["metadata"], &old["metadata"]);
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if key == "namespace" && !resource.is_namespaced() {
            continue;
        }
        if !same(&after[key], &before[key]) {
            errors.push(FieldError::invalid(format!("metadata.{key}"), after[key].clone(), IMMUTABLE));
        }
    }
    if !before["deletionTimestamp"].is_null() {
        let has = |list: &Value, f: &str| strings(list).any(|g| g == f);
        let added: Vec<&str> = strings(&after["finalizers"]).filter(|f| !has(&before["finalizers"], f)).collect();
        if !added.is_empty() {
            let list = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"),
            ));
        }
    }
    errors.extend(validate_common(after));
    errors
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn validate_common(metadata: &Value) -> Vec<FieldError> {
    let mut errors = labels(&metadata["labels"], "metadata.labels");
    errors.extend(annotations(&metadata["annotations"], "metadata.annotations"));
    errors.extend(owner_references(&metadata["ownerReferences"]));
    for finalizer in strings(&metadata["finalizers"]) {
        let messages = names::qualified_name(finalizer).into_iter();
        errors.extend(messages.map(|m| FieldError::invalid("metadata.finalizers", finalizer, m)));
    }
    let both = |name| strings(&metadata["finalizers"]).any(|f| f == name);
    if both("orphan") && both("foregroundDeletion") {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            metadata["finalizers"].clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

/// Label keys and values, at `path`.
pub fn labels(map: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in map.as_object().into_iter().flatten() {
        let keys = names::qualified_name(key).into_iter();
        errors.extend(keys.map(|m| FieldError::invalid(path, key.as_str(), m)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).into_iter().map(|m| FieldError::invalid(path, value, m)));
    }
    errors
}

/// Annotation keys and the size of all, at `path`.
pub fn annotations(map: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in map.as_object().into_iter().flatten() {
        // Unlike labels', keys of annotations may be of any case.
        let messages = names::qualified_name(&key.to_lowercase()).into_iter();
        errors.extend(messages.map(|m| FieldError::invalid(path, key.as_str(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
    errors
}

fn owner_references(list: &Value) -> Vec<FieldError> {
    const PATH: &str = "metadata.ownerReferences";
    let mut errors = Vec::new();
    let mut controller: Option<&Value> = None;
    for owner in list.as_array().into_iter().flatten() {
        let text = |key: &str| owner[key].as_str().unwrap_or_default();
        if text("apiVersion").rsplit('/').next().unwrap_or_default().is_empty() {
            let detail = "version must not be empty";
            errors.push(FieldError::invalid(format!("{PATH}.apiVersion"), text("apiVersion"), detail));
        }
        for key in ["kind", "name", "uid"] {
            if text(key).is_empty() {
                errors.push(FieldError::invalid(format!("{PATH}.{key}"), "", "must not be empty"));
            }
        }
        if (text("apiVersion"), text("kind")) == ("v1", "Event") {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(PATH, owner.clone(), detail));
        }
        if owner["controller"] == true {
            if let Some(first) = controller {
                let name = |o: &Value| format!("{}/{}", o["kind"].as_str().unwrap_or_default(), o["name"].as_str().unwrap_or_default());
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    name(first),
                    name(owner)
                );
                errors.push(FieldError::invalid(PATH, list.clone(), detail));
            }
            controller.get_or_insert(owner);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    fn messages(metadata: Value) -> Vec<String> {
        let cm = by_kind("v1", "ConfigMap").unwrap();
        validate_create(cm, &json!({ "metadata": metadata })).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn good_metadata_passes() {
        let metadata = json!({"name": "a.b", "namespace": "n", "labels": {"a.io/b": "c"}, "annotations": {"A/b": "x y"},
            "finalizers": ["a.io/b"], "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]});
        assert_eq!(messages(metadata), Vec::<String>::new());
    }

    #[test]
    fn bad_metadata_is_named() {
        let m = messages(json!({"name": "A", "namespace": "n"}));
        assert!(m[0].starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must"), "{m:?}");
        let m = messages(json!({"name": "a", "namespace": "n", "labels": {"a": "b c"}}));
        assert!(m[0].starts_with("metadata.labels: Invalid value: \"b c\": a valid label must be"), "{m:?}");
        let m = messages(json!({"name": "a", "namespace": "n", "annotations": {"a": "x".repeat(MAX_ANNOTATIONS)}}));
        assert_eq!(m, ["metadata.annotations: Too long: may not be more than 262144 bytes"]);
        let owner = json!({"apiVersion": "", "kind": "", "name": "x", "uid": "u"});
        let m = messages(json!({"name": "a", "namespace": "n", "ownerReferences": [owner]}));
        assert_eq!(
            m,
            [
                "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
                "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty"
            ]
        );
    }

    #[test]
    fn deleting_objects_take_no_new_finalizers() {
        let cm = by_kind("v1", "ConfigMap").unwrap();
        let old = json!({"metadata": {"name": "a", "namespace": "n", "deletionTimestamp": "t", "finalizers": ["a/b"]}});
        let new = json!({"metadata": {"name": "a", "namespace": "n", "deletionTimestamp": "t", "finalizers": ["a/b", "c/d"]}});
        assert_eq!(
            validate_update(cm, &new, &old)[0].to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
             finalizers []string{\"c/d\"}"
        );
    }
}
