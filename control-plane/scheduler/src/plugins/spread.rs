//! PodTopologySpread: pods of a group evenly over the values of a node label.

use std::collections::HashMap;

use super::{MAX_SCORE, Plugin, Rejection, View, node_affinity, taints};
use crate::cluster::NodeInfo;
use crate::pod_info::{PodInfo, Spread};

/// Counts of the whole cluster for a pod's hard constraints.
pub struct Filter<'a> {
    pod: &'a PodInfo,
    hard: Vec<Counted<'a>>,
}

struct Counted<'a> {
    constraint: &'a Spread,
    /// Matching pods in each domain.
    domains: HashMap<&'a str, i64>,
    /// Matching pods in the least filled domain.
    least: i64,
}

impl<'a> Filter<'a> {
    /// `None` if the pod has no hard constraint.
    pub fn new(view: View<'a>, pod: &'a PodInfo) -> Option<Self> {
        let constraints: Vec<&Spread> = pod.spread.iter().filter(|c| c.hard).collect();
        if constraints.is_empty() {
            return None;
        }
        let hard = constraints
            .iter()
            .map(|constraint| {
                let mut domains = HashMap::new();
                for node in view.nodes() {
                    let complete = constraints.iter().all(|c| node.label(&c.topology_key).is_some());
                    if let (true, true, Some(value)) = (complete, counts(constraint, node, pod), node.label(&constraint.topology_key)) {
                        *domains.entry(value).or_default() += matching(constraint, node, pod);
                    }
                }
                let enough = domains.len() as i64 >= constraint.min_domains;
                let least = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
                Counted { constraint, domains, least }
            })
            .collect();
        Some(Filter { pod, hard })
    }

    /// Whether the pod on this node keeps every domain within the allowed difference.
    pub fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for c in &self.hard {
            let Some(value) = node.label(&c.constraint.topology_key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::of(Plugin::PodTopologySpread, reason, false));
            };
            let own = i64::from(c.constraint.selector.matches(self.pod.pod.metadata.labels.as_ref()));
            let there = c.domains.get(value).copied().unwrap_or(0);
            if there + own - c.least > c.constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::of(Plugin::PodTopologySpread, reason, true));
            }
        }
        Ok(())
    }
}

/// Whether the constraint looks at this node at all.
fn counts(constraint: &Spread, node: &NodeInfo, pod: &PodInfo) -> bool {
    (!constraint.honor_affinity || node_affinity::allows(node, pod)) && (!constraint.honor_taints || taints::tolerates_all(node, pod))
}

/// Pods of the group on the node; those on their way out do not count.
fn matching(constraint: &Spread, node: &NodeInfo, pod: &PodInfo) -> i64 {
    let in_group = |other: &&std::sync::Arc<PodInfo>| {
        other.namespace == pod.namespace
            && other.pod.metadata.deletion_timestamp.is_none()
            && constraint.selector.matches(other.pod.metadata.labels.as_ref())
    };
    node.pods.values().filter(in_group).count() as i64
}

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Soft constraints: the fewer pods of the group in the node's domains the better; rarer domains weigh more.
pub fn score(view: View<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let soft: Vec<&Spread> = pod.spread.iter().filter(|c| !c.hard).collect();
    if soft.is_empty() {
        return vec![0; nodes.len()];
    }
    let ignored = |n: &NodeInfo| soft.iter().any(|c| n.label(&c.topology_key).is_none());
    let mut sums = vec![0.0; nodes.len()];
    for c in &soft {
        let mut domains: HashMap<&str, i64> = HashMap::new();
        for node in nodes.iter().filter(|n| !ignored(n)) {
            if let Some(value) = node.label(&c.topology_key) {
                domains.entry(value).or_default();
            }
        }
        let size = if c.topology_key == HOSTNAME { nodes.iter().filter(|n| !ignored(n)).count() } else { domains.len() };
        if c.topology_key != HOSTNAME {
            for node in view.nodes().filter(|n| !ignored(n) && counts(c, n, pod)) {
                if let Some(n) = node.label(&c.topology_key).and_then(|v| domains.get_mut(v)) {
                    *n += matching(c, node, pod);
                }
            }
        }
        let weight = ((size + 2) as f64).ln();
        for (sum, node) in sums.iter_mut().zip(nodes) {
            if ignored(node) {
                continue;
            }
            let there = match node.label(&c.topology_key) {
                Some(_) if c.topology_key == HOSTNAME => matching(c, node, pod),
                Some(value) => domains.get(value).copied().unwrap_or(0),
                None => 0,
            };
            *sum += there as f64 * weight + (c.max_skew - 1) as f64;
        }
    }
    let scores: Vec<Option<i64>> = nodes.iter().zip(sums).map(|(n, s)| (!ignored(n)).then_some(s.round() as i64)).collect();
    let max = scores.iter().flatten().copied().max().unwrap_or(0);
    let min = scores.iter().flatten().copied().min().unwrap_or(0);
    scores
        .into_iter()
        .map(|s| match s {
            None => 0,
            Some(_) if max == 0 => MAX_SCORE,
            Some(s) => MAX_SCORE * (max + min - s) / max,
        })
        .collect()
}
