//! Node selector and node affinity.

use k8s_openapi::api::core::v1::NodeSelectorTerm;
use xebec_loops::placement::{selector_allows, term_holds};

use super::{Plugin, Rejection, normalize};
use crate::cluster::NodeInfo;
use crate::pod_info::PodInfo;

/// Whether the pod's node selector and required node affinity allow the node.
pub fn allows(node: &NodeInfo, pod: &PodInfo) -> bool {
    pod.pod.spec.as_ref().is_none_or(|spec| selector_allows(spec, &node.name, node.labels()))
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
    let empty =
        term.match_expressions.as_deref().unwrap_or_default().is_empty() && term.match_fields.as_deref().unwrap_or_default().is_empty();
    empty || term_holds(term, &node.name, node.labels())
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
