//! The scheduler's picture of the cluster, kept up incrementally: nodes with what runs on them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod_info::{HostPort, PodInfo};
use crate::resources::Resources;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Nodes, the pods on them, and namespaces.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Every node that exists, and nodes that do not yet or no longer exist but have pods bound.
    pub nodes: BTreeMap<String, NodeInfo>,
    /// Labels of namespaces.
    pub namespaces: HashMap<String, Labels>,
    /// Node of each bound or assumed pod, by uid.
    pub bound: HashMap<String, String>,
    /// Pods that preempted others and wait for their place, by node and uid.
    pub nominated: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    /// Number of nodes that have an image.
    pub image_nodes: HashMap<String, usize>,
    /// Number of nodes that exist.
    pub existing: usize,
    /// Nodes that have pods with inter-pod terms, so that the rest need not be looked at.
    pub with_terms: BTreeSet<String>,
}

/// A node and the pods on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The node as the API has it.
    pub node: Option<Arc<Node>>,
    /// What it offers.
    pub allocatable: Resources,
    /// What its pods need together.
    pub requested: Resources,
    /// CPU (thousandths) and memory (bytes) its pods count for scoring.
    pub scoring: (i64, i64),
    /// Pods by uid.
    pub pods: HashMap<String, Arc<PodInfo>>,
    /// Ports taken, with how many pods take them.
    pub ports: BTreeMap<HostPort, usize>,
    /// Image names and sizes in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    /// The node's labels.
    pub fn labels(&self) -> Option<&Labels> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    /// The node's taints.
    pub fn taints(&self) -> &[Taint] {
        self.node.as_ref().and_then(|n| n.spec.as_ref()?.taints.as_deref()).unwrap_or_default()
    }

    /// Whether the node is cordoned.
    pub fn unschedulable(&self) -> bool {
        self.node.as_ref().and_then(|n| n.spec.as_ref()?.unschedulable).unwrap_or(false)
    }

    /// Counts a pod in.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scoring.0 += pod.scoring.0;
        self.scoring.1 += pod.scoring.1;
        for port in &pod.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        if let Some(old) = self.pods.insert(pod.uid.clone(), pod) {
            self.discount(&old);
        }
    }

    /// Counts a pod out.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.discount(&pod);
        Some(pod)
    }

    fn discount(&mut self, pod: &PodInfo) {
        self.requested.subtract(&pod.requests);
        self.scoring.0 -= pod.scoring.0;
        self.scoring.1 -= pod.scoring.1;
        for port in &pod.ports {
            if let Some(n) = self.ports.get_mut(port) {
                *n -= 1;
                if *n == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = Resources::from_list(status.and_then(|s| s.allocatable.as_ref()));
        self.images = status
            .and_then(|s| s.images.as_deref())
            .unwrap_or_default()
            .iter()
            .flat_map(|i| i.names.iter().flatten().map(move |n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        self.node = Some(node);
    }
}

impl Cluster {
    /// Nodes that exist, in name order.
    pub fn existing_nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|n| n.node.is_some())
    }

    /// Takes in a new or changed node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo { name, ..NodeInfo::default() });
        if info.node.is_none() {
            self.existing += 1;
        }
        count_images(&mut self.image_nodes, info, false);
        info.set_node(node);
        count_images(&mut self.image_nodes, info, true);
    }

    /// Takes in that a node is gone.
    pub fn remove_node(&mut self, name: &str) {
        let Some(info) = self.nodes.get_mut(name) else { return };
        if info.node.take().is_some() {
            self.existing -= 1;
        }
        count_images(&mut self.image_nodes, info, false);
        info.images.clear();
        info.allocatable = Resources::default();
        if info.pods.is_empty() {
            self.nodes.remove(name);
        }
    }

    /// Puts a pod on a node; a pod that was on another one moves.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.unplace(&pod.uid);
        self.unnominate(&pod.uid);
        if pod.terms.any() {
            self.with_terms.insert(node.to_owned());
        }
        self.bound.insert(pod.uid.clone(), node.to_owned());
        let new = || NodeInfo { name: node.to_owned(), ..NodeInfo::default() };
        self.nodes.entry(node.to_owned()).or_insert_with(new).add(pod);
    }

    /// Takes a pod off its node; says which node that was.
    pub fn unplace(&mut self, uid: &str) -> Option<String> {
        let node = self.bound.remove(uid)?;
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(uid);
            if self.with_terms.contains(&node) && !info.pods.values().any(|p| p.terms.any()) {
                self.with_terms.remove(&node);
            }
            if info.node.is_none() && info.pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
        Some(node)
    }

    /// Remembers that a pod is to get room on a node.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.unnominate(&pod.uid);
        self.nominated.entry(node.to_owned()).or_default().insert(pod.uid.clone(), pod);
    }

    /// Forgets a nomination.
    pub fn unnominate(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.remove(uid);
            !pods.is_empty()
        });
    }
}

fn count_images(nodes: &mut HashMap<String, usize>, info: &NodeInfo, add: bool) {
    for name in info.images.keys() {
        if add {
            *nodes.entry(name.clone()).or_default() += 1;
        } else if let Some(n) = nodes.get_mut(name) {
            *n -= 1;
            if *n == 0 {
                nodes.remove(name);
            }
        }
    }
}
