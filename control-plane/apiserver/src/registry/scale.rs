//! The `scale` subresource: an `autoscaling/v1` Scale as a view of an object's replicas.

use http::StatusCode;
use serde_json::{Value, json};
use xebec_api::{
    Document, patch as patches,
    schema::{self, FieldValidation},
    status::{self, ApiError, FieldError},
};

use super::{
    Call,
    body::{self, Received},
    options, patch, write,
};
use crate::{crd::Custom, http::Response};

/// Where a kind keeps what a Scale shows; JSON pointers.
pub(crate) struct Paths {
    pub spec_replicas: String,
    pub status_replicas: String,
    /// A label selector document, a map of labels, or a string.
    pub selector: Option<String>,
}

impl Paths {
    /// The built-in kinds all use the same places; custom resources say theirs.
    pub fn of(custom: Option<&Custom>) -> Paths {
        if let Some((spec, status, selector)) = custom.and_then(|custom| custom.scale.clone()) {
            return Paths { spec_replicas: spec, status_replicas: status, selector };
        }
        Paths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        }
    }
}

/// GET of the scale.
pub(crate) async fn get(mut call: Call) -> Result<Response, ApiError> {
    let name = call.info.name.clone();
    let Some((_, doc)) = write::read(&call, &name).await? else { return Err(status::not_found(&call.resource, &name)) };
    let scale = scale_of(call.custom.as_deref(), &doc);
    call.answer_plain(StatusCode::OK, &scale)
}

/// PUT of the scale.
pub(crate) async fn update(mut call: Call, received: Received) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "UpdateOptions")?;
    let validation = FieldValidation::parse(call.query().get("fieldValidation"))?;
    let received = body::as_json(received)?;
    let (scale, warnings) = schema::decode_kind("autoscaling/v1", "Scale", &received.bytes, &received.media_type, validation)?;
    call.warnings.extend(warnings);
    write_scale(call, move |_| Ok(scale.clone())).await
}

/// PATCH of the scale.
pub(crate) async fn patch(call: Call, received: Received) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "PatchOptions")?;
    let body: Value = serde_json::from_slice(&received.bytes).map_err(|e| status::bad_request(format!("error decoding patch: {e}")))?;
    let json_patch = match received.media_type.as_str() {
        patch::JSON => true,
        // A Scale has neither lists nor maps with merge rules: both merges are one.
        patch::MERGE | patch::STRATEGIC => false,
        _ => return Err(status::unsupported_media_type(&[patch::JSON, patch::MERGE, patch::STRATEGIC])),
    };
    write_scale(call, move |scale| if json_patch { patches::json_patch(scale, &body) } else { patches::merge_patch(scale, &body) }).await
}

async fn write_scale<F>(mut call: Call, change: F) -> Result<Response, ApiError>
where
    F: Fn(&Document) -> Result<Document, ApiError> + Send,
{
    let dry_run = options::dry_run(call.query(), "UpdateOptions")?;
    let name = call.info.name.clone();
    let resource = call.resource.clone();
    let own_name = name.clone();
    let custom = call.custom.clone();
    let make = move |old: &Document| -> Result<(Document, Vec<String>), ApiError> {
        let scale = change(&scale_of(custom.as_deref(), old))?;
        let metadata = &scale["metadata"];
        if let Some(given) = metadata["name"].as_str().filter(|n| !n.is_empty() && *n != own_name) {
            return Err(status::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({own_name})")));
        }
        if let Some(uid) = metadata["uid"].as_str().filter(|uid| !uid.is_empty() && old["metadata"]["uid"] != *uid) {
            return Err(status::conflict_because(&resource, &own_name, &format!("Precondition failed: UID in precondition: {uid}")));
        }
        let replicas = match &scale["spec"]["replicas"] {
            Value::Null => 0,
            value => value.as_i64().ok_or_else(|| status::bad_request("Scale: spec.replicas must be an integer"))?,
        };
        if replicas < 0 {
            let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(status::invalid_kind("autoscaling", "Scale", &own_name, &[error]));
        }
        let mut new = old.clone();
        set(&mut new, &Paths::of(custom.as_deref()).spec_replicas, replicas.into());
        new["metadata"]["resourceVersion"] = metadata["resourceVersion"].clone();
        Ok((new, Vec::new()))
    };
    let updated = write::update_with(&mut call, &name, "scale", dry_run, make).await?;
    let scale = scale_of(call.custom.as_deref(), &updated);
    call.answer_plain(StatusCode::OK, &scale)
}

/// The Scale of an object.
fn scale_of(custom: Option<&Custom>, doc: &Document) -> Document {
    let paths = Paths::of(custom);
    let metadata = &doc["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"]},
        "spec": {},
        "status": {"replicas": doc.pointer(&paths.status_replicas).and_then(Value::as_i64).unwrap_or(0)},
    });
    if let Some(replicas) = doc.pointer(&paths.spec_replicas).and_then(Value::as_i64).filter(|r| *r != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Some(selector) = paths.selector.and_then(|path| doc.pointer(&path)) {
        let text = selector_text(selector);
        if !text.is_empty() {
            scale["status"]["selector"] = text.into();
        }
    }
    scale
}

fn set(doc: &mut Document, pointer: &str, value: Value) {
    let mut at = doc;
    for part in pointer.trim_start_matches('/').split('/') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

/// A selector in the form of the `labelSelector` parameter, terms in order of their keys.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_string();
    }
    let pairs = |map: &Value| -> Vec<(String, String)> {
        map.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), format!("{k}={}", v.as_str()?)))).collect()
    };
    let structured =
        selector.get("matchLabels").is_some_and(Value::is_object) || selector.get("matchExpressions").is_some_and(Value::is_array);
    let mut terms = if structured { pairs(&selector["matchLabels"]) } else { pairs(selector) };
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("Exists") => key.to_string(),
            Some("DoesNotExist") => format!("!{key}"),
            _ => continue,
        };
        terms.push((key.to_string(), text));
    }
    terms.sort();
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_queries() {
        assert_eq!(selector_text(&json!({"matchLabels": {"b": "2", "a": "1"}})), "a=1,b=2");
        assert_eq!(selector_text(&json!({"app": "x"})), "app=x");
        let expressions =
            json!({"matchExpressions": [{"key": "t", "operator": "In", "values": ["b", "a"]}, {"key": "q", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&expressions), "!q,t in (a,b)");
    }

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let doc =
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 2}});
        let scale = scale_of(None, &doc);
        assert_eq!(
            (&scale["spec"]["replicas"], &scale["status"]["replicas"], &scale["status"]["selector"]),
            (&json!(3), &json!(2), &json!("a=b"))
        );
    }
}
