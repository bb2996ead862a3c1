//! `pods/binding` and `bindings`: the scheduler puts a pod on a node.

use chrono::Utc;
use http::StatusCode;
use serde_json::{Value, json};
use xebec_api::{
    Document, meta,
    resource::Resource,
    schema::{self, FieldValidation},
    status::{self, ApiError, FieldError},
};

use super::{
    Call,
    body::{self, Received},
    options, write,
};
use crate::http::Response;

/// POST of a Binding; `name` is the pod's, empty when the body alone names it.
pub(crate) async fn create(mut call: Call, received: Received, name: &str) -> Result<Response, ApiError> {
    let dry_run = options::dry_run(call.query(), "CreateOptions")?;
    let received = body::as_json(received)?;
    let (binding, _) = schema::decode_kind(
        "v1",
        "Binding",
        &received.bytes,
        &received.media_type,
        FieldValidation::parse(call.query().get("fieldValidation"))?,
    )?;
    let own = meta::name(&binding);
    if !name.is_empty() && !own.is_empty() && own != name {
        return Err(status::bad_request(format!("name in URL does not match name in Binding object: {name} != {own}")));
    }
    let pod = if name.is_empty() { own.to_string() } else { name.to_string() };
    let namespace = meta::namespace(&binding);
    if !namespace.is_empty() && namespace != call.info.namespace {
        return Err(status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    validate(&binding, &pod)?;
    let Some(pods) = call.core.rows.table().find("", "v1", "pods") else { return Err(status::no_such_path()) };
    call.resource = pods.clone();
    let bound = pod.clone();
    write::modify(&call, &pod, dry_run, move |doc| assign(&pods, doc, &bound, &binding)).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    call.answer_plain(StatusCode::CREATED, &success)
}

fn validate(binding: &Document, name: &str) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let target = &binding["target"];
    let kind = target["kind"].as_str().unwrap_or_default();
    if !["", "Node"].contains(&kind) {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if target["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if errors.is_empty() { Ok(()) } else { Err(status::invalid_kind("", "Binding", name, &errors)) }
}

fn assign(pods: &Resource, pod: &mut Document, name: &str, binding: &Document) -> Result<(), ApiError> {
    let conflict = |cause: String| {
        let mut error = status::conflict_because(pods, name, &cause);
        error.message = format!("Operation cannot be fulfilled on pods/binding {name:?}: {cause}");
        error
    };
    for field in ["uid", "resourceVersion"] {
        if let Some(given) = binding["metadata"][field].as_str().filter(|v| !v.is_empty())
            && pod["metadata"][field] != given
        {
            return Err(conflict(format!(
                "Precondition failed: {field} in precondition: {given}, {field} in object meta: {}",
                pod["metadata"][field].as_str().unwrap_or_default()
            )));
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
        return Err(conflict(format!("pod {name} is already assigned to node {node:?}")));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            if !pod["metadata"][field].is_object() {
                pod["metadata"][field] = json!({});
            }
            pod["metadata"][field][key] = value.clone();
        }
    }
    set_scheduled(pod);
    Ok(())
}

fn set_scheduled(pod: &mut Document) {
    let now = meta::timestamp(Utc::now());
    if !pod["status"].is_object() {
        pod["status"] = json!({"phase": "Pending"});
    }
    let status = &mut pod["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Value::Array(conditions) = &mut status["conditions"] else { return };
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
}
