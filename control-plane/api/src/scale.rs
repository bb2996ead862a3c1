//! The `scale` subresource: `autoscaling/v1 Scale` of anything with replicas.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::{
    Document, meta,
    selector::LabelSelector,
    status::{ApiError, FieldError, conflict, invalid_kind},
    value::{child, entries, set, text},
};

/// The `Scale` of a deployment, replica set, stateful set or replication controller.
pub fn scale_of(doc: &Document) -> Value {
    let (metadata, spec, status) = (&doc["metadata"], &doc["spec"], &doc["status"]);
    let selector = match &spec["selector"] {
        // Replication controllers select by a plain map.
        s if doc["kind"] == "ReplicationController" => entries(s).map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(","),
        s => LabelSelector::from_document(s).to_string(),
    };
    let mut own = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[key].is_null() {
            own[key] = metadata[key].clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": own,
        "spec": {"replicas": spec["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": status["replicas"].as_i64().unwrap_or(0), "selector": selector},
    })
}

/// `doc` with the replicas a client asks for in `scale`. Errors: 409 for another revision or object, 422 for a
/// negative count.
pub fn apply_scale(resource: &Resource, doc: &Document, scale: &Value) -> Result<Document, ApiError> {
    let name = meta::name(doc);
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(invalid_kind("autoscaling", "Scale", name, &[error]));
    }
    for key in ["resourceVersion", "uid"] {
        let wanted = text(&scale["metadata"][key]);
        if !wanted.is_empty() && wanted != "0" && wanted != text(&doc["metadata"][key]) {
            return Err(conflict(resource, name));
        }
    }
    let mut out = doc.clone();
    if let Some(spec) = child(&mut out, "spec") {
        set(spec, "replicas", replicas);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;

    #[test]
    fn scale_reads_and_writes_replicas() {
        let resource = by_kind("apps/v1", "Deployment").unwrap();
        let doc = json!({"kind": "Deployment", "metadata": {"name": "a", "resourceVersion": "5"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let mut scale = scale_of(&doc);
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
        scale["spec"]["replicas"] = 7.into();
        assert_eq!(apply_scale(resource, &doc, &scale).unwrap()["spec"]["replicas"], 7);
        scale["metadata"]["resourceVersion"] = "4".into();
        assert_eq!(apply_scale(resource, &doc, &scale).unwrap_err().code, 409);
        let negative = json!({"spec": {"replicas": -1}});
        assert_eq!(apply_scale(resource, &doc, &negative).unwrap_err().code, 422);
    }
}
