//! ImageLocality: nodes that have the pod's images already.

use super::MAX_SCORE;
use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;

const MIB: i64 = 1024 * 1024;
/// Bytes below which images count for nothing.
const MIN_THRESHOLD: i64 = 23 * MIB;
/// Bytes a container above which more count no further.
const MAX_THRESHOLD: i64 = 1000 * MIB;

/// Bytes of the pod's images on the node, each scaled by how widely it is spread, so that one node does not attract
/// every pod of an image.
pub fn score(cluster: &Cluster, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let Some(spec) = &pod.pod.spec else { return vec![0; nodes.len()] };
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let images: Vec<String> = containers().filter_map(|c| c.image.as_deref()).map(normalized).collect();
    let max = MAX_THRESHOLD * containers().count() as i64;
    let total = cluster.existing.max(1) as f64;
    nodes
        .iter()
        .map(|node| {
            let bytes: i64 = images
                .iter()
                .filter_map(|i| {
                    let size = *node.images.get(i)?;
                    let spread = cluster.image_nodes.get(i).copied().unwrap_or(0) as f64 / total;
                    Some((size as f64 * spread) as i64)
                })
                .sum();
            MAX_SCORE * (bytes.clamp(MIN_THRESHOLD, max.max(MIN_THRESHOLD)) - MIN_THRESHOLD) / (max - MIN_THRESHOLD).max(1)
        })
        .collect()
}

/// Nodes report images with a tag.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
