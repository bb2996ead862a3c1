//! InterPodAffinity: near some pods, far from others.

use std::collections::HashMap;

use super::{MAX_SCORE, Plugin, Rejection, View};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::{PodInfo, Term};

/// Places (topology key and value) and how many pods count there.
type Places<'a> = HashMap<(&'a str, &'a str), i64>;

/// Counts of the whole cluster for one pod.
pub struct Filter<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    /// Places where a pod runs that does not want this one near.
    refused: Places<'a>,
    /// Places of pods that every affinity term speaks of.
    wanted: Places<'a>,
    /// Places of pods that an anti-affinity term speaks of.
    avoided: Places<'a>,
}

impl<'a> Filter<'a> {
    /// `None` if neither the pod nor any other asks for it.
    pub fn new(view: View<'a>, pod: &'a PodInfo) -> Option<Self> {
        let cluster = view.cluster;
        let mut refused = Places::new();
        for node in view.nodes_with_terms() {
            for other in node.pods.values() {
                for term in other.terms.anti.iter().filter(|t| t.matches(pod, cluster)) {
                    count(&mut refused, term, node);
                }
            }
        }
        let own = !(pod.terms.affinity.is_empty() && pod.terms.anti.is_empty());
        if !own && refused.is_empty() {
            return None;
        }
        let (mut wanted, mut avoided) = (Places::new(), Places::new());
        if own {
            for node in view.nodes() {
                for other in node.pods.values() {
                    let affinity = &pod.terms.affinity;
                    if !affinity.is_empty() && affinity.iter().all(|t| t.matches(other, cluster)) {
                        affinity.iter().for_each(|t| count(&mut wanted, t, node));
                    }
                    for term in pod.terms.anti.iter().filter(|t| t.matches(other, cluster)) {
                        count(&mut avoided, term, node);
                    }
                }
            }
        }
        Some(Filter { pod, cluster, refused, wanted, avoided })
    }

    /// Whether the pod may be near what runs around the node.
    pub fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let reject = |reason, resolvable| Err(Rejection::of(Plugin::InterPodAffinity, reason, resolvable));
        if !self.affinity_holds(node) {
            return reject("node(s) didn't match pod affinity rules", false);
        }
        let near = |places: &Places<'_>, key: &str| node.label(key).is_some_and(|value| places.get(&(key, value)).is_some_and(|n| *n > 0));
        if self.pod.terms.anti.iter().any(|t| near(&self.avoided, &t.topology_key)) {
            return reject("node(s) didn't match pod anti-affinity rules", true);
        }
        if self.refused.iter().any(|((key, value), n)| *n > 0 && node.label(key) == Some(*value)) {
            return reject("node(s) didn't satisfy existing pods anti-affinity rules", true);
        }
        Ok(())
    }

    fn affinity_holds(&self, node: &NodeInfo) -> bool {
        let terms = &self.pod.terms.affinity;
        let mut all_there = true;
        for term in terms {
            // Every term wants the node to be in some place.
            let Some(value) = node.label(&term.topology_key) else { return false };
            all_there &= self.wanted.get(&(term.topology_key.as_str(), value)).is_some_and(|n| *n > 0);
        }
        // The first of a group of pods that want to be near each other may go anywhere.
        all_there || (self.wanted.is_empty() && terms.iter().all(|t| t.matches(self.pod, self.cluster)))
    }
}

fn count<'a>(places: &mut Places<'a>, term: &'a Term, node: &'a NodeInfo) {
    weigh(places, term, node, 1);
}

fn weigh<'a>(places: &mut Places<'a>, term: &'a Term, node: &'a NodeInfo, weight: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *places.entry((&term.topology_key, value)).or_default() += weight;
    }
}

/// Weight of other pods' required affinity to this one.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Preferred terms of the pod towards others, and terms of others towards it, scaled from least to most.
pub fn score(view: View<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let cluster = view.cluster;
    let mut places = Places::new();
    if !pod.terms.preferred.is_empty() {
        for node in view.nodes() {
            for other in node.pods.values() {
                for (weight, term) in pod.terms.preferred.iter().filter(|(_, t)| t.matches(other, cluster)) {
                    weigh(&mut places, term, node, *weight);
                }
            }
        }
    }
    for node in view.nodes_with_terms() {
        for other in node.pods.values() {
            for term in other.terms.affinity.iter().filter(|t| t.matches(pod, cluster)) {
                weigh(&mut places, term, node, HARD_AFFINITY_WEIGHT);
            }
            for (weight, term) in other.terms.preferred.iter().filter(|(_, t)| t.matches(pod, cluster)) {
                weigh(&mut places, term, node, *weight);
            }
        }
    }
    if places.is_empty() {
        return vec![0; nodes.len()];
    }
    let sums: Vec<i64> =
        nodes.iter().map(|n| places.iter().filter(|((key, value), _)| n.label(key) == Some(*value)).map(|(_, w)| w).sum()).collect();
    let (min, max) = (sums.iter().copied().min().unwrap_or(0), sums.iter().copied().max().unwrap_or(0));
    sums.into_iter().map(|s| if max > min { MAX_SCORE * (s - min) / (max - min) } else { 0 }).collect()
}
