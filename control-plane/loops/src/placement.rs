//! Which nodes a pod may be on: node selectors, node affinity, taints. The scheduler and the DaemonSet controller agree
//! on these.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    let taint_value = taint.value.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => value == taint_value,
        "Exists" => true,
        // KEP-5471: numbers compare as numbers; what is not a number is not tolerated.
        operator @ ("Lt" | "Gt") => match (taint_value.parse::<i64>(), value.parse::<i64>()) {
            (Ok(taint), Ok(limit)) => {
                if operator == "Lt" {
                    taint < limit
                } else {
                    taint > limit
                }
            }
            _ => false,
        },
        _ => false,
    }
}

/// Whether every taint with one of the effects is covered.
pub fn tolerates_all(tolerations: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    let relevant = taints.iter().filter(|t| effects.contains(&t.effect.as_str()));
    relevant.into_iter().all(|taint| tolerations.iter().any(|t| tolerates(t, taint)))
}

fn requirement_holds(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let compare = |f: fn(i64, i64) -> bool| {
        let (Some(have), [want]) = (value.and_then(|v| v.parse().ok()), values) else { return false };
        want.parse().is_ok_and(|want| f(have, want))
    };
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| !values.iter().any(|x| x == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, want| have > want),
        "Lt" => compare(|have, want| have < want),
        _ => false,
    }
}

/// Whether a term selects the node. A term without a condition selects nothing.
pub fn term_holds(term: &NodeSelectorTerm, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &String| labels.and_then(|l| l.get(key)).map(String::as_str);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement_holds(r, label(&r.key)))
        && fields.iter().all(|r| requirement_holds(r, (r.key == "metadata.name").then_some(name)))
}

/// Whether the pod's node selector and required node affinity allow the node.
pub fn selector_allows(spec: &PodSpec, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        Some(required) => required.node_selector_terms.iter().any(|t| term_holds(t, name, labels)),
        None => true,
    }
}
