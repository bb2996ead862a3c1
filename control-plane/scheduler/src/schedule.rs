//! One pod's placement: a pure function of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Cluster, NodeInfo};
use crate::plugins::{self, Plugin, Prepared, Rejection, View};
use crate::pod_info::PodInfo;

/// Nodes below this number are all looked at.
const MIN_FEASIBLE: usize = 100;

/// What was decided for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Goes to this node.
    Place {
        /// The node.
        node: String,
        /// Where the next pod starts looking, so that all nodes get their turn.
        next_start: usize,
    },
    /// Fits nowhere.
    Unschedulable(Diagnosis),
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Number of nodes.
    pub nodes: usize,
    /// Each node's objection.
    pub rejections: BTreeMap<String, Rejection>,
}

impl Diagnosis {
    /// The plugins that objected.
    pub fn plugins(&self) -> BTreeSet<Plugin> {
        self.rejections.values().map(|r| r.plugin).collect()
    }

    /// The text users read in the event and the condition; `post_filter` is what preemption says.
    pub fn message(&self, post_filter: Option<&str>) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let reasons = self.rejections.values().flat_map(|r| r.reasons.iter().map(|s| s.as_ref()));
        let mut text = not_available(self.nodes, reasons);
        if let Some(post_filter) = post_filter.filter(|p| !p.is_empty()) {
            text.push(' ');
            text.push_str(post_filter);
        }
        text
    }
}

/// "0/3 nodes are available: 1 that, 2 this." with equal reasons counted and sorted by text.
pub fn not_available<'a>(nodes: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    let mut histogram: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *histogram.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = histogram.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    let mut text = format!("0/{nodes} nodes are available:");
    if !parts.is_empty() {
        text.push_str(&format!(" {}.", parts.join(", ")));
    }
    text
}

/// Chooses a node. `start` is where the search begins, `seed` breaks ties between equally good nodes.
pub fn schedule(cluster: &Cluster, pod: &PodInfo, start: usize, seed: u64) -> Decision {
    let view = View::of(cluster);
    let prepared = Prepared::new(view, pod);
    // A pod on its way to the node it freed room on need not look elsewhere if that worked.
    if let Some(nominated) = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref())
        && let Some(node) = cluster.nodes.get(nominated).filter(|n| n.node.is_some())
        && fits(cluster, node, pod, &prepared).is_ok()
    {
        return Decision::Place { node: nominated.to_owned(), next_start: start };
    }
    let all: Vec<&NodeInfo> = cluster.existing_nodes().collect();
    let enough = feasible_enough(all.len());
    let mut feasible = Vec::new();
    let mut diagnosis = Diagnosis { nodes: all.len(), rejections: BTreeMap::new() };
    let mut looked_at = 0;
    for i in 0..all.len() {
        let node = all[(start + i) % all.len()];
        looked_at += 1;
        match fits(cluster, node, pod, &prepared) {
            Ok(()) => {
                feasible.push(node);
                if feasible.len() >= enough {
                    break;
                }
            }
            Err(rejection) => {
                diagnosis.rejections.insert(node.name.clone(), rejection);
            }
        }
    }
    let next_start = if all.is_empty() { 0 } else { (start + looked_at) % all.len() };
    match feasible.as_slice() {
        [] => Decision::Unschedulable(diagnosis),
        [only] => Decision::Place { node: only.name.clone(), next_start },
        several => {
            let scores = plugins::score(view, pod, several);
            let best = scores.iter().copied().max().unwrap_or(0);
            let ties: Vec<&&NodeInfo> = several.iter().zip(&scores).filter(|(_, s)| **s == best).map(|(n, _)| n).collect();
            let chosen = ties[(seed % ties.len() as u64) as usize];
            Decision::Place { node: chosen.name.clone(), next_start }
        }
    }
}

/// How many feasible nodes are enough to choose from: all of a small cluster, a falling share of a large one.
fn feasible_enough(nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

/// Whether the pod fits the node both with and without the pods that were promised room there: with, so that they do
/// not lose it; without, because they may never come.
pub fn fits(cluster: &Cluster, node: &NodeInfo, pod: &PodInfo, prepared: &Prepared<'_>) -> Result<(), Rejection> {
    let promised = cluster.nominated.get(&node.name);
    let ahead: Vec<_> =
        promised.into_iter().flat_map(|p| p.values()).filter(|other| other.uid != pod.uid && other.priority >= pod.priority).collect();
    if !ahead.is_empty() {
        let mut with = node.clone();
        ahead.into_iter().for_each(|other| with.add(other.clone()));
        let view = View { cluster, instead: Some(&with) };
        plugins::filter(&with, pod, &Prepared::new(view, pod))?;
    }
    plugins::filter(node, pod, prepared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster_of, node_with, pod_info};
    use serde_json::json;

    fn asking(cpu: &str) -> PodInfo {
        pod_info(json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
    }

    fn offer(name: &str, cpu: &str) -> NodeInfo {
        node_with(name, json!({"cpu": cpu, "memory": "8Gi", "pods": "110"}), vec![])
    }

    #[test]
    fn says_why_as_upstream_does() {
        let cluster = cluster_of(vec![offer("a", "1"), offer("b", "1"), {
            let mut n = offer("c", "8");
            let node = std::sync::Arc::make_mut(n.node.as_mut().unwrap());
            node.spec = serde_json::from_value(json!({"taints": [{"key": "k", "effect": "NoSchedule"}]})).unwrap();
            n
        }]);
        let Decision::Unschedulable(d) = schedule(&cluster, &asking("2"), 0, 0) else { panic!("it must not fit") };
        assert_eq!(
            d.message(Some("preemption: x.")),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. preemption: x."
        );
        let none = Diagnosis::default();
        assert_eq!(none.message(None), "no nodes available to schedule pods");
    }

    #[test]
    fn prefers_the_emptier_node_and_breaks_ties_by_seed() {
        let cluster = cluster_of(vec![
            node_with("a", json!({"cpu": "8", "memory": "8Gi", "pods": "110"}), vec![asking("6")]),
            offer("b", "8"),
            offer("c", "8"),
        ]);
        let place = |seed| match schedule(&cluster, &asking("1"), 0, seed) {
            Decision::Place { node, .. } => node,
            Decision::Unschedulable(d) => panic!("{}", d.message(None)),
        };
        assert_eq!((place(0), place(1)), ("b".into(), "c".into()));
    }

    #[test]
    fn room_promised_to_a_more_important_pod_is_not_taken() {
        let mut cluster = cluster_of(vec![offer("a", "2")]);
        let mut vip = asking("2");
        vip.uid = "vip".into();
        vip.priority = 10;
        cluster.nominate(std::sync::Arc::new(vip), "a");
        assert!(matches!(schedule(&cluster, &asking("1"), 0, 0), Decision::Unschedulable(_)));
        let mut higher = asking("1");
        higher.priority = 11;
        assert!(matches!(schedule(&cluster, &higher, 0, 0), Decision::Place { .. }));
    }

    #[test]
    fn large_clusters_are_searched_in_part() {
        assert_eq!([1, 50, 99, 100, 1000, 5000, 10_000].map(feasible_enough), [1, 50, 99, 100, 420, 500, 500]);
    }
}
