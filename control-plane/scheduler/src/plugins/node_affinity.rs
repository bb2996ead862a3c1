//! Node selector and node affinity.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::{Plugin, Rejection, normalize};
use crate::cluster::NodeInfo;
use crate::pod_info::PodInfo;

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

fn term_holds(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without a condition selects nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement_holds(r, node.label(&r.key)))
        && fields.iter().all(|r| requirement_holds(r, (r.key == "metadata.name").then_some(node.name.as_str())))
}

/// Whether the pod's node selector and required node affinity allow the node.
pub fn allows(node: &NodeInfo, pod: &PodInfo) -> bool {
    let Some(spec) = &pod.pod.spec else { return true };
    if !spec.node_selector.iter().flatten().all(|(k, v)| node.label(k) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        Some(required) => required.node_selector_terms.iter().any(|t| term_holds(t, node)),
        None => true,
    }
}

/// Node selector and required node affinity.
pub fn filter(node: &NodeInfo, pod: &PodInfo) -> Result<(), Rejection> {
    if allows(node, pod) {
        return Ok(());
    }
    Err(Rejection::of(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector", false))
}

/// Preferred node affinity: the sum of the weights of terms that hold.
pub fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let affinity = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let preferred = preferred.unwrap_or_default();
    let sum = |node: &&NodeInfo| {
        let holding = preferred.iter().filter(|p| p.weight != 0 && preference_holds(&p.preference, node));
        holding.map(|p| i64::from(p.weight)).sum()
    };
    normalize(nodes.iter().map(sum).collect(), false)
}

/// Unlike a required term, an empty preference holds everywhere.
fn preference_holds(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let empty = term.match_expressions.as_deref().unwrap_or_default().is_empty()
        && term.match_fields.as_deref().unwrap_or_default().is_empty();
    empty || term_holds(term, node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node_from, pod_info};
    use serde_json::json;

    #[test]
    fn selector_and_affinity_follow_the_api() {
        let node = node_from(json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}}));
        let required = |terms: serde_json::Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}}})
        };
        let e = |key: &str, op: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": op, "values": values}]});
        for (spec, want) in [
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (required(json!([e("zone", "In", &["a", "b"])])), true),
            (required(json!([e("zone", "NotIn", &["a"])])), false),
            (required(json!([e("zone", "In", &["b"]), e("cores", "Gt", &["4"])])), true),
            (required(json!([e("cores", "Lt", &["8"])])), false),
            (required(json!([e("zone", "Gt", &["1"])])), false),
            (required(json!([{}])), false),
            (required(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}])), true),
            (required(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}])), false),
        ] {
            assert_eq!(allows(&node, &pod_info(json!({"spec": spec.clone()}))), want, "{spec}");
        }
    }
}
