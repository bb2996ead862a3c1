//! Pods and nodes from JSON, for tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;

pub fn pod_from(mut value: Value) -> Pod {
    let spec = value.as_object_mut().expect("a pod is an object").entry("spec").or_insert(json!({}));
    spec.as_object_mut().expect("a spec is an object").entry("containers").or_insert(json!([]));
    serde_json::from_value(value).expect("a valid pod")
}

pub fn pod_info(value: Value) -> PodInfo {
    let mut pod = pod_from(value);
    pod.metadata.namespace.get_or_insert("default".into());
    PodInfo::new(Arc::new(pod))
}

pub fn node_from(value: Value) -> NodeInfo {
    let node: Node = serde_json::from_value(value).expect("a valid node");
    let mut cluster = Cluster::default();
    cluster.set_node(Arc::new(node));
    cluster.nodes.into_values().next().expect("the node just set")
}

pub fn node_with(name: &str, allocatable: Value, pods: Vec<PodInfo>) -> NodeInfo {
    let labels = json!({"kubernetes.io/hostname": name});
    let mut node = node_from(json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": allocatable}}));
    for (i, mut pod) in pods.into_iter().enumerate() {
        if pod.uid.is_empty() {
            pod.uid = format!("{name}-{i}");
        }
        node.add(Arc::new(pod));
    }
    node
}

/// A cluster of these nodes with the pods they have.
pub fn cluster_of(nodes: Vec<NodeInfo>) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        if let Some(n) = &node.node {
            cluster.set_node(n.clone());
        }
        for pod in node.pods.into_values() {
            cluster.place(pod, &node.name);
        }
    }
    cluster
}
