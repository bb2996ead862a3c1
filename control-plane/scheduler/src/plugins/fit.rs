//! Resources: NodeResourcesFit (filter and least-allocated score), NodeResourcesBalancedAllocation.

use std::borrow::Cow;

use super::{MAX_SCORE, Plugin, Rejection};
use crate::cluster::NodeInfo;
use crate::pod_info::PodInfo;

/// Whether what the pod needs is left on the node; names everything that is short.
pub fn filter(node: &NodeInfo, pod: &PodInfo) -> Result<(), Rejection> {
    let (want, have, used) = (&pod.requests, &node.allocatable, &node.requested);
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut resolvable = true;
    if node.pods.len() as i64 + 1 > have.pods {
        reasons.push("Too many pods".into());
    }
    let mut check = |want: i64, have: i64, used: i64, reason: Cow<'static, str>| {
        if want > 0 && want > have - used {
            reasons.push(reason);
            // More than the whole node: no eviction helps.
            resolvable &= want <= have;
        }
    };
    check(want.cpu, have.cpu, used.cpu, "Insufficient cpu".into());
    check(want.memory, have.memory, used.memory, "Insufficient memory".into());
    check(want.ephemeral_storage, have.ephemeral_storage, used.ephemeral_storage, "Insufficient ephemeral-storage".into());
    for (name, want) in &want.other {
        let of = |r: &crate::resources::Resources| r.other.get(name).copied().unwrap_or(0);
        check(*want, of(have), of(used), format!("Insufficient {name}").into());
    }
    if reasons.is_empty() { Ok(()) } else { Err(Rejection { plugin: Plugin::NodeResourcesFit, reasons, resolvable }) }
}

/// The mean share of CPU and memory left free, with the pod placed.
pub fn score_least_allocated(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let free = |used: i64, have: i64| if used > have { 0 } else { (have - used) * MAX_SCORE / have };
    nodes
        .iter()
        .map(|n| {
            let pairs = [(n.scoring.0 + pod.scoring.0, n.allocatable.cpu), (n.scoring.1 + pod.scoring.1, n.allocatable.memory)];
            let offered: Vec<_> = pairs.into_iter().filter(|(_, have)| *have > 0).collect();
            let sum: i64 = offered.iter().map(|(used, have)| free(*used, *have)).sum();
            if offered.is_empty() { 0 } else { sum / offered.len() as i64 }
        })
        .collect()
}

/// CPU and memory used in equal shares, with the pod placed, is best.
pub fn score_balanced(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    // A pod that asks for nothing changes no balance.
    if pod.requests.cpu == 0 && pod.requests.memory == 0 {
        return vec![0; nodes.len()];
    }
    let share = |used: i64, have: i64| if have == 0 { 0.0 } else { (used as f64 / have as f64).min(1.0) };
    nodes
        .iter()
        .map(|n| {
            let cpu = share(n.requested.cpu + pod.requests.cpu, n.allocatable.cpu);
            let memory = share(n.requested.memory + pod.requests.memory, n.allocatable.memory);
            // Of two shares the standard deviation is half the difference.
            ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node_with, pod_info};
    use serde_json::json;

    fn asking(requests: serde_json::Value) -> PodInfo {
        pod_info(json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
    }

    #[test]
    fn names_everything_that_is_short() {
        let node = node_with("n", json!({"cpu": "1", "memory": "1Gi", "pods": "1"}), vec![asking(json!({"cpu": "500m"}))]);
        let rejection = filter(&node, &asking(json!({"cpu": "600m", "memory": "2Gi", "x.y/gpu": "1"}))).unwrap_err();
        assert_eq!(rejection.reasons, ["Too many pods", "Insufficient cpu", "Insufficient memory", "Insufficient x.y/gpu"]);
        assert!(!rejection.resolvable);
    }

    #[test]
    fn a_pod_that_asks_for_nothing_fits_an_overfull_node() {
        let node = node_with("n", json!({"cpu": "1", "pods": "10"}), vec![asking(json!({"cpu": "3"}))]);
        assert_eq!(filter(&node, &asking(json!({}))), Ok(()));
        assert!(filter(&node, &asking(json!({"cpu": "1"}))).unwrap_err().resolvable);
    }

    #[test]
    fn emptier_nodes_score_higher() {
        let full = node_with("a", json!({"cpu": "4", "memory": "4Gi", "pods": "10"}), vec![asking(json!({"cpu": "3", "memory": "3Gi"}))]);
        let empty = node_with("b", json!({"cpu": "4", "memory": "4Gi", "pods": "10"}), vec![]);
        let scores = score_least_allocated(&asking(json!({"cpu": "1", "memory": "1Gi"})), &[&full, &empty]);
        assert_eq!(scores, [0, 75]);
    }
}
