//! The conditions of a namespace that is being deleted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What an attempt to empty a namespace found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Why the kinds are not known.
    pub discovery_error: Option<String>,
    /// Why something could not be listed or deleted.
    pub errors: Vec<String>,
    /// Objects left, by "plural.group".
    pub remaining: BTreeMap<String, usize>,
    /// Objects left that have a finalizer, by finalizer.
    pub finalizers: BTreeMap<String, usize>,
    /// How long what is left may take.
    pub wait_seconds: f64,
}

/// The conditions, with their transition times kept where the status stays.
pub fn conditions(namespace: &Namespace, findings: &Findings, now: &Time) -> Vec<NamespaceCondition> {
    let listed = |what: &BTreeMap<String, usize>, noun: &str| {
        let parts: Vec<String> = what.iter().map(|(name, n)| format!("{name} {noun} {n} resource instances")).collect();
        parts.join(", ")
    };
    let discovery = &findings.discovery_error;
    let errors = (!findings.errors.is_empty()).then(|| findings.errors.join(", "));
    let remaining =
        (!findings.remaining.is_empty()).then(|| format!("Some resources are remaining: {}", listed(&findings.remaining, "has")));
    let finalizers = (!findings.finalizers.is_empty())
        .then(|| format!("Some content in the namespace has finalizers remaining: {}", listed(&findings.finalizers, "in")));
    let rows: [(&str, &Option<String>, &str, &str, &str); 5] = [
        ("NamespaceDeletionDiscoveryFailure", discovery, "DiscoveryFailed", "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            &None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            &errors,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        ("NamespaceContentRemaining", &remaining, "SomeResourcesRemain", "ContentRemoved", "All content successfully removed"),
        (
            "NamespaceFinalizersRemaining",
            &finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let old = namespace.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<NamespaceCondition> = old.iter().filter(|c| !rows.iter().any(|r| r.0 == c.type_)).cloned().collect();
    for (type_, problem, bad, good, fine) in rows {
        let status = if problem.is_some() { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
        conditions.push(NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(if problem.is_some() { bad } else { good }.into()),
            message: Some(problem.clone().unwrap_or_else(|| fine.into())),
            last_transition_time: Some(before.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| now.clone())),
        });
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_left_in_upstreams_words() {
        let findings =
            Findings { remaining: [("pods.".to_owned(), 2)].into(), finalizers: [("x.io/f".to_owned(), 1)].into(), ..Findings::default() };
        let now = xebec_loops::clock::now();
        let c = conditions(&Namespace::default(), &findings, &now);
        let text: Vec<String> = c.iter().map(|c| format!("{} {}: {}", c.type_, c.status, c.message.as_deref().unwrap())).collect();
        assert_eq!(text[3], "NamespaceContentRemaining True: Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            text[4],
            "NamespaceFinalizersRemaining True: Some content in the namespace has finalizers remaining: x.io/f in 1 resource instances"
        );
        assert_eq!(text[2], "NamespaceDeletionContentFailure False: All content successfully deleted, may be waiting on finalization");
    }
}
