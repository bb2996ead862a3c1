//! What a failed pod means by a Job's pod failure policy, and when a success policy is met.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes;

/// What a failed pod does to its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Counts against the back-off limit.
    Count,
    /// Does not count.
    Ignore,
    /// Its index fails for good.
    FailIndex,
    /// The Job fails; the text says why.
    FailJob(String),
}

/// The first rule that speaks of the pod decides.
pub fn action(job: &Job, pod: &Pod) -> Action {
    let rules = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref()).map(|p| p.rules.as_slice());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for (i, rule) in rules.unwrap_or_default().iter().enumerate() {
        let Some(found) = matching(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Action::Ignore,
            "FailIndex" => Action::FailIndex,
            "FailJob" => Action::FailJob(match found {
                Found::Exit(container, code) => {
                    format!(
                        "Container {container} for pod {namespace}/{name} failed with exit code {code} matching FailJob rule at index {i}"
                    )
                }
                Found::Condition(type_) => {
                    format!("Pod {namespace}/{name} has condition {type_} matching FailJob rule at index {i}")
                }
            }),
            _ => Action::Count,
        };
    }
    Action::Count
}

enum Found {
    Exit(String, i32),
    Condition(String),
}

fn matching(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<Found> {
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        for c in all.filter(|c| codes.container_name.as_deref().is_none_or(|n| n == c.name)) {
            if let Some(code) = exit_code(c).filter(|code| *code != 0) {
                let listed = codes.values.contains(&code);
                if if codes.operator == "In" { listed } else { !listed } {
                    return Some(Found::Exit(c.name.clone(), code));
                }
            }
        }
        return None;
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let there = conditions.iter().any(|c| c.type_ == pattern.type_ && c.status == wanted);
        there.then(|| Found::Condition(pattern.type_.clone()))
    })
}

fn exit_code(c: &ContainerStatus) -> Option<i32> {
    Some(c.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// Whether enough of the right indexes succeeded; says by which rule.
pub fn success(job: &Job, succeeded: &BTreeSet<i32>) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let limit = spec.completions.unwrap_or(0);
    for (i, rule) in spec.success_policy.as_ref()?.rules.iter().enumerate() {
        let counted: BTreeSet<i32> = match &rule.succeeded_indexes {
            Some(text) => indexes::parse(text, limit).intersection(succeeded).copied().collect(),
            None => succeeded.clone(),
        };
        let needed = match (rule.succeeded_count, &rule.succeeded_indexes) {
            (Some(count), _) => count,
            (None, Some(text)) => indexes::parse(text, limit).len() as i32,
            (None, None) => continue,
        };
        if counted.len() as i32 >= needed {
            return Some(format!("Matched rules at index {i}"));
        }
    }
    None
}
