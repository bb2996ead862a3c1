//! Access reviews: the authorizer's answer as an API object.

use serde_json::{Value, json};
use xebec_api::status::{self, ApiError, FieldError};

use crate::auth::{Attributes, Authorizer, Decision, UserInfo};

const GROUP: &str = "authorization.k8s.io";

/// Answers a SubjectAccessReview, LocalSubjectAccessReview (in `namespace`) or SelfSubjectAccessReview of `requester`.
/// `kind` is the document's. Returns the document with its status.
///
/// # Errors
/// 422 when the spec contradicts itself, 400 when the namespaces differ.
pub fn access(authorizer: &dyn Authorizer, kind: &str, mut doc: Value, namespace: &str, requester: &UserInfo) -> Result<Value, ApiError> {
    let spec = doc["spec"].clone();
    let mut errors = Vec::new();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), path.is_object()) {
        (true, true) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path.clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let user = if kind == "SelfSubjectAccessReview" {
        requester.clone()
    } else {
        let user = subject(&spec);
        if user.name.is_empty() && user.groups.is_empty() {
            errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
        }
        user
    };
    if kind == "LocalSubjectAccessReview" {
        if path.is_object() {
            errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), "disallowed on this kind of request"));
        }
        let inside = text(&resource["namespace"]);
        if inside != namespace {
            return Err(status::bad_request(format!("spec.resourceAttributes.namespace must match namespace: {namespace}")));
        }
    }
    if !errors.is_empty() {
        return Err(status::invalid_kind(GROUP, kind, "", &errors));
    }
    let field_selector = selector(&resource["fieldSelector"]);
    let attributes = if resource.is_object() {
        Attributes {
            user: &user,
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            path: "",
            field_selector: &field_selector,
            label_selector: "",
        }
    } else {
        Attributes {
            user: &user,
            verb: text(&path["verb"]),
            group: "",
            version: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path: text(&path["path"]),
            field_selector: "",
            label_selector: "",
        }
    };
    doc["status"] = match authorizer.authorize(&attributes) {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
    };
    Ok(doc)
}

/// Answers a SelfSubjectRulesReview of `requester`.
///
/// # Errors
/// 400 without a namespace.
pub fn rules(authorizer: &dyn Authorizer, mut doc: Value, requester: &UserInfo) -> Result<Value, ApiError> {
    let namespace = text(&doc["spec"]["namespace"]).to_string();
    if namespace.is_empty() {
        return Err(status::bad_request("no namespace on request"));
    }
    let (resources, urls, incomplete) = authorizer.rules(requester, &namespace);
    doc["status"] = json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": incomplete});
    if incomplete {
        doc["status"]["evaluationError"] = "the node authorizer does not support user rule resolution".into();
    }
    Ok(doc)
}

fn subject(spec: &Value) -> UserInfo {
    let strings = |v: &Value| v.as_array().map(|l| l.iter().filter_map(Value::as_str).map(str::to_string).collect()).unwrap_or_default();
    UserInfo {
        name: text(&spec["user"]).to_string(),
        uid: text(&spec["uid"]).to_string(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"].as_object().map(|m| m.iter().map(|(k, v)| (k.to_lowercase(), strings(v))).collect()).unwrap_or_default(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A review's field selector as it would stand in a query.
fn selector(value: &Value) -> String {
    if let Some(raw) = value["rawSelector"].as_str() {
        return raw.to_string();
    }
    let requirements = value["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let exact = requirements.iter().filter(|r| r["operator"] == "In" && r["values"].as_array().is_some_and(|v| v.len() == 1));
    exact.map(|r| format!("{}={}", text(&r["key"]), text(&r["values"][0]))).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::authz::Chain;
    use crate::objects::fixed::Fixed;

    #[test]
    fn reviews_answer_as_requests_would() {
        let chain = Chain::new(Arc::new(Fixed::new(vec![
            ("clusterroles", json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})),
            (
                "rolebindings",
                json!({"metadata": {"namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "jo"}]}),
            ),
        ])));
        let jo = UserInfo { name: "jo".into(), ..UserInfo::default() };
        let root = UserInfo::loopback();
        let pods = |namespace: &str| json!({"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": namespace}});
        let own = |namespace: &str| access(&chain, "SelfSubjectAccessReview", json!({"spec": pods(namespace)}), "", &jo).unwrap();
        assert_eq!(own("a")["status"], json!({"allowed": true}));
        assert_eq!(own("b")["status"], json!({"allowed": false}));
        let mut spec = pods("a");
        spec["user"] = "jo".into();
        let of = |kind: &str, spec: &Value, namespace: &str| access(&chain, kind, json!({"spec": spec}), namespace, &root);
        assert_eq!(of("SubjectAccessReview", &spec, "").unwrap()["status"]["allowed"], true);
        assert_eq!(of("LocalSubjectAccessReview", &spec, "a").unwrap()["status"]["allowed"], true);
        assert_eq!(of("LocalSubjectAccessReview", &spec, "b").unwrap_err().code, 400);
        assert_eq!(of("SubjectAccessReview", &json!({"user": "x"}), "").unwrap_err().code, 422);
        assert_eq!(of("SubjectAccessReview", &pods("a"), "").unwrap_err().code, 422);
        let listed = rules(&chain, json!({"spec": {"namespace": "a"}}), &jo).unwrap();
        assert_eq!(listed["status"]["resourceRules"][0]["resources"], json!(["pods"]));
        assert_eq!(rules(&chain, json!({"spec": {}}), &jo).unwrap_err().code, 400);
    }
}
