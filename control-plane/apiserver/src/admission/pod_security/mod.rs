//! PodSecurity: the namespace's labels say which of the Pod Security Standards its pods must keep to.

mod checks;

use xebec_api::{
    Document,
    status::{self, ApiError, FieldError},
    value::text,
};

use super::{BuiltIn, is, refuse};
use crate::extension::{Change, Operation};
use checks::Level;

const PREFIX: &str = "pod-security.kubernetes.io";

/// Kinds that carry a pod template, and where; they are warned about, never refused.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "replicationcontrollers", "/spec/template"),
    ("", "podtemplates", "/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

pub(super) async fn validate(plugins: &BuiltIn, change: &mut Change<'_>) -> Result<(), ApiError> {
    if !matches!(change.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if is(change, "", "namespaces") && change.subresource.is_empty() {
        return labels(change);
    }
    let is_pod = is(change, "", "pods")
        && matches!((change.operation, change.subresource), (Operation::Create, "") | (Operation::Update, "ephemeralcontainers"));
    let pod = match (&change.object, is_pod) {
        (Some(pod), true) => pod,
        (Some(object), false) if change.subresource.is_empty() => {
            let of = |(group, plural, _): &&(&str, &str, &str)| is(change, group, plural);
            let Some(template) = TEMPLATES.iter().find(of).and_then(|(_, _, at)| object.pointer(at)) else { return Ok(()) };
            template
        }
        _ => return Ok(()),
    };
    let Some(namespace) = plugins.fresh("namespaces", "", change.namespace).await? else { return Ok(()) };
    if is_pod && let Some((policy, violations)) = violated(&namespace, "enforce", pod) {
        return Err(refuse(change, format!("violates PodSecurity {policy:?}: {violations}")));
    }
    if let Some((policy, violations)) = violated(&namespace, "warn", pod) {
        change.warnings.push(format!("would violate PodSecurity {policy:?}: {violations}"));
    }
    Ok(())
}

/// The policy of a mode and what of it the pod breaks.
fn violated(namespace: &Document, mode: &str, pod: &Document) -> Option<(String, String)> {
    let labels = &namespace["metadata"]["labels"];
    let level = text(&labels[format!("{PREFIX}/{mode}")]);
    let version = Some(text(&labels[format!("{PREFIX}/{mode}-version")])).filter(|v| !v.is_empty()).unwrap_or("latest");
    // A level nobody knows is the strictest: it was meant to restrict.
    let parsed = if level.is_empty() { Level::Privileged } else { Level::parse(level).unwrap_or(Level::Restricted) };
    let violations = checks::violations(parsed, pod);
    (!violations.is_empty()).then(|| (format!("{level}:{version}"), violations.join(", ")))
}

fn labels(change: &Change<'_>) -> Result<(), ApiError> {
    let Some(namespace) = &change.object else { return Ok(()) };
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}/{mode}");
        let value = &namespace["metadata"]["labels"][&key];
        if !value.is_null() && Level::parse(text(value)).is_none() {
            errors.push(FieldError::invalid(
                format!("metadata.labels[{key}]"),
                value.clone(),
                "must be one of privileged, baseline, restricted",
            ));
        }
        let key = format!("{key}-version");
        let value = &namespace["metadata"]["labels"][&key];
        let minor = |v: &str| v.strip_prefix("v1.").is_some_and(|n| n.parse::<u32>().is_ok());
        if !value.is_null() && text(value) != "latest" && !minor(text(value)) {
            errors.push(FieldError::invalid(format!("metadata.labels[{key}]"), value.clone(), "must be \"latest\" or \"v1.x\""));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(status::invalid(change.resource, xebec_api::meta::name(namespace), &errors)) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::*;
    use crate::auth::UserInfo;

    #[tokio::test]
    async fn the_namespace_decides() {
        let namespace = |level: &str| {
            (
                "namespaces",
                json!({"metadata": {"name": "a", "labels": {"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "restricted"}}}),
            )
        };
        let account = ("serviceaccounts", json!({"metadata": {"name": "default", "namespace": "a"}}));
        let pod = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
        let user = UserInfo::loopback();
        let (baseline, _dir) = built_in(vec![namespace("baseline"), account.clone()]);
        create(&baseline, &user, ("v1", "Pod"), pod(json!({"containers": [{"name": "c"}]}))).await.unwrap();
        let error = create(
            &baseline,
            &user,
            ("v1", "Pod"),
            pod(json!({"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]})),
        )
        .await
        .unwrap_err();
        assert_eq!(
            error.message,
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true), privileged (container \"c\" must not set securityContext.privileged=true)"
        );
        let (restricted, _dir) = built_in(vec![namespace("restricted"), account]);
        let error = create(&restricted, &user, ("v1", "Pod"), pod(json!({"containers": [{"name": "c"}]}))).await.unwrap_err();
        assert_eq!(
            error.message,
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let label = json!({"metadata": {"name": "x", "labels": {"pod-security.kubernetes.io/enforce": "strict"}}});
        assert_eq!(create(&restricted, &user, ("v1", "Namespace"), label).await.unwrap_err().code, 422);
    }
}
