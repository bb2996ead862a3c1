//! Taints and cordons: TaintToleration, NodeUnschedulable.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use xebec_loops::placement::{self, tolerates};

use super::{Plugin, Rejection, normalize};
use crate::cluster::NodeInfo;
use crate::pod_info::PodInfo;

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Whether the pod may be placed in spite of the node's NoSchedule and NoExecute taints.
pub fn tolerates_all(node: &NodeInfo, pod: &PodInfo) -> bool {
    placement::tolerates_all(tolerations(pod), node.taints(), &["NoSchedule", "NoExecute"])
}

/// A cordoned node takes only pods that tolerate the taint of the same meaning.
pub fn filter_unschedulable(node: &NodeInfo, pod: &PodInfo) -> Result<(), Rejection> {
    if !node.unschedulable() {
        return Ok(());
    }
    let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    if tolerations(pod).iter().any(|t| tolerates(t, &taint)) {
        return Ok(());
    }
    Err(Rejection::of(Plugin::NodeUnschedulable, "node(s) were unschedulable", false))
}

/// NoSchedule and NoExecute taints.
pub fn filter(node: &NodeInfo, pod: &PodInfo) -> Result<(), Rejection> {
    if tolerates_all(node, pod) {
        return Ok(());
    }
    Err(Rejection::of(Plugin::TaintToleration, "node(s) had untolerated taint(s)", false))
}

/// Fewer PreferNoSchedule taints that the pod does not tolerate are better.
pub fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let relevant: Vec<&Toleration> =
        tolerations(pod).iter().filter(|t| matches!(t.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule")).collect();
    let count = |node: &&NodeInfo| {
        let taints = node.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
        taints.filter(|taint| !relevant.iter().any(|t| tolerates(t, taint))).count() as i64
    };
    normalize(nodes.iter().map(count).collect(), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn toleration_matches_as_the_api_says() {
        let taint: Taint = from_value(json!({"key": "k", "value": "5", "effect": "NoSchedule"})).unwrap();
        for (toleration, want) in [
            (json!({"key": "k", "value": "5", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "5"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "6"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Lt", "value": "6"}), true),
            (json!({"key": "k", "operator": "Gt", "value": "6"}), false),
            (json!({"key": "k", "operator": "Near", "value": "5"}), false),
        ] {
            let t: Toleration = from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&t, &taint), want, "{toleration}");
        }
    }
}
