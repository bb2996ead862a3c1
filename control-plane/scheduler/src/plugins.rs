//! The plugins of the default profile: which nodes a pod may go to, and which of those is best.

pub mod fit;
pub mod images;
pub mod inter_pod;
pub mod node_affinity;
pub mod spread;
pub mod taints;

use std::borrow::Cow;

use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;

/// The best score a plugin gives.
pub const MAX_SCORE: i64 = 100;

/// A plugin that can say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plugin {
    /// Cordoned nodes.
    NodeUnschedulable,
    /// `spec.nodeName`, set but not bound.
    NodeName,
    /// Taints.
    TaintToleration,
    /// Node selector and affinity.
    NodeAffinity,
    /// Host ports.
    NodePorts,
    /// Resources.
    NodeResourcesFit,
    /// Topology spread constraints.
    PodTopologySpread,
    /// Affinity to other pods.
    InterPodAffinity,
}

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Who says so.
    pub plugin: Plugin,
    /// In the words users know, counted over nodes.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing other pods from the node could change it.
    pub resolvable: bool,
}

impl Rejection {
    fn of(plugin: Plugin, reason: &'static str, resolvable: bool) -> Self {
        Rejection { plugin, reasons: vec![Cow::Borrowed(reason)], resolvable }
    }
}

/// The cluster, optionally with one node changed: what preemption tries out.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Replaces the node of the same name.
    pub instead: Option<&'a NodeInfo>,
}

impl<'a> View<'a> {
    /// The cluster as it is.
    pub fn of(cluster: &'a Cluster) -> Self {
        View { cluster, instead: None }
    }

    /// Nodes that exist.
    pub fn nodes(self) -> impl Iterator<Item = &'a NodeInfo> {
        self.cluster.existing_nodes().map(move |n| self.node(n))
    }

    /// Existing nodes that have pods with inter-pod terms. The changed node is always among them.
    pub fn nodes_with_terms(self) -> impl Iterator<Item = &'a NodeInfo> {
        let named = self.cluster.with_terms.iter().filter_map(|n| self.cluster.nodes.get(n));
        let changed = self.instead.filter(|i| !self.cluster.with_terms.contains(&i.name));
        named.filter(|n| n.node.is_some()).map(move |n| self.node(n)).chain(changed)
    }

    fn node(self, node: &'a NodeInfo) -> &'a NodeInfo {
        self.instead.filter(|i| i.name == node.name).unwrap_or(node)
    }
}

/// What the plugins computed once for a pod, before they look at single nodes.
pub struct Prepared<'a> {
    inter_pod: Option<inter_pod::Filter<'a>>,
    spread: Option<spread::Filter<'a>>,
}

impl<'a> Prepared<'a> {
    /// Looks at the whole cluster, where the pod or others ask for it.
    pub fn new(view: View<'a>, pod: &'a PodInfo) -> Self {
        Prepared { inter_pod: inter_pod::Filter::new(view, pod), spread: spread::Filter::new(view, pod) }
    }

    /// Whether looking at single nodes needs the counts of the whole cluster.
    pub fn is_global(&self) -> bool {
        self.inter_pod.is_some() || self.spread.is_some()
    }
}

/// Whether the node can take the pod: the first plugin that objects decides.
///
/// # Errors
/// Who objects and why.
pub fn filter(node: &NodeInfo, pod: &PodInfo, prepared: &Prepared<'_>) -> Result<(), Rejection> {
    taints::filter_unschedulable(node, pod)?;
    if let Some(name) = xebec_loops::pod::node_name(&pod.pod)
        && name != node.name
    {
        return Err(Rejection::of(Plugin::NodeName, "node(s) didn't match the requested node name", false));
    }
    taints::filter(node, pod)?;
    node_affinity::filter(node, pod)?;
    filter_ports(node, pod)?;
    fit::filter(node, pod)?;
    if let Some(spread) = &prepared.spread {
        spread.filter(node)?;
    }
    if let Some(inter_pod) = &prepared.inter_pod {
        inter_pod.filter(node)?;
    }
    Ok(())
}

fn filter_ports(node: &NodeInfo, pod: &PodInfo) -> Result<(), Rejection> {
    if pod.ports.iter().any(|p| node.ports.keys().any(|taken| taken.conflicts(p))) {
        return Err(Rejection::of(Plugin::NodePorts, "node(s) didn't have free ports for the requested pod ports", true));
    }
    Ok(())
}

/// The sum of all plugins' weighted scores, one for each of `nodes`.
pub fn score(view: View<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut total = vec![0; nodes.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (t, s) in total.iter_mut().zip(scores) {
            *t += weight * s;
        }
    };
    add(3, taints::score(pod, nodes));
    add(2, node_affinity::score(pod, nodes));
    add(2, spread::score(view, pod, nodes));
    add(2, inter_pod::score(view, pod, nodes));
    add(1, fit::score_least_allocated(pod, nodes));
    add(1, fit::score_balanced(pod, nodes));
    add(1, images::score(view.cluster, pod, nodes));
    total
}

/// Scales so that the largest becomes [`MAX_SCORE`]; `reverse` makes it 0 instead.
pub(crate) fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    for s in &mut scores {
        let scaled = if max == 0 { 0 } else { *s * MAX_SCORE / max };
        *s = if reverse { MAX_SCORE - scaled } else { scaled };
    }
    scores
}
