//! Node IPAM: gives each node its range of pod addresses.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder};

use crate::setup::Setup;

/// Registers the loop; without ranges to give there is none.
pub fn register(setup: &mut Setup) {
    if setup.config.cluster_cidrs.is_empty() {
        return;
    }
    let (client, config) = (setup.client.clone(), setup.config.clone());
    let recorder = setup.recorder("cidrAllocator");
    let nodes = setup.cache::<Node>();
    // Two nodes must not be given the same range, so there is one worker; the lock says so in the type.
    let one = Arc::new(Mutex::new(()));
    let cache = nodes.clone();
    setup.control_loop("nodeipam", &nodes, 1, move |key| {
        let (client, config, cache, recorder, one) = (client.clone(), config.clone(), cache.clone(), recorder.clone(), one.clone());
        async move {
            let masks = (config.node_cidr_mask_v4, config.node_cidr_mask_v6);
            let chosen = {
                let _alone = one.lock();
                choose(&cache, &key, &config.cluster_cidrs, masks)
            };
            assign(&client, &cache, &recorder, &key, chosen).await
        }
    });
}

enum Choice {
    /// The node has ranges or is gone.
    Nothing,
    Ranges(Vec<IpNet>),
    Exhausted(Arc<Node>),
}

fn choose(cache: &Cache<Node>, key: &Key, clusters: &[IpNet], masks: (u8, u8)) -> Choice {
    let Some(node) = cache.get(key) else { return Choice::Nothing };
    if !ranges_of(&node).is_empty() {
        return Choice::Nothing;
    }
    let taken: HashSet<IpNet> = cache.list().iter().flat_map(|n| ranges_of(n)).collect();
    let ranges: Vec<IpNet> = clusters.iter().filter_map(|c| first_free(c, masks, &taken)).collect();
    if ranges.len() == clusters.len() { Choice::Ranges(ranges) } else { Choice::Exhausted(node) }
}

async fn assign(client: &kube::Client, cache: &Cache<Node>, recorder: &Recorder, key: &Key, choice: Choice) -> Result<Outcome, Error> {
    match choice {
        Choice::Nothing => Ok(Outcome::Done),
        Choice::Exhausted(node) => {
            let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
            recorder.event(&*node, EventType::Normal, "CIDRNotAvailable", text);
            Err(Error::Retry("no range of pod addresses is free: all of the cluster's are given to nodes".into()))
        }
        Choice::Ranges(ranges) => {
            let text: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            let patch = json!({ "spec": { "podCIDR": text[0], "podCIDRs": text } });
            let api: Api<Node> = Api::all(client.clone());
            cache.observe(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?);
            Ok(Outcome::Done)
        }
    }
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed: Vec<IpNet> = spec.pod_cidrs.iter().flatten().filter_map(|c| c.parse().ok()).collect();
    if listed.is_empty() { spec.pod_cidr.iter().filter_map(|c| c.parse().ok()).collect() } else { listed }
}

/// The first node range of the cluster's range that overlaps none that is taken.
fn first_free(cluster: &IpNet, masks: (u8, u8), taken: &HashSet<IpNet>) -> Option<IpNet> {
    let mask = match cluster {
        IpNet::V4(_) => masks.0,
        IpNet::V6(_) => masks.1,
    };
    let overlapping: Vec<&IpNet> = taken.iter().filter(|t| cluster.contains(*t) || t.contains(cluster)).collect();
    let mut ranges = cluster.subnets(mask.max(cluster.prefix_len())).ok()?;
    // Ranges of the usual size are looked up; odd ones (given by hand) are compared.
    let odd: Vec<&IpNet> = overlapping.into_iter().filter(|t| t.prefix_len() != mask).collect();
    ranges.find(|r| !taken.contains(r) && !odd.iter().any(|t| t.contains(r) || r.contains(*t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    #[test]
    fn the_first_range_that_is_free() {
        let cluster = net("10.244.0.0/16");
        let free = |taken: &[&str]| first_free(&cluster, (24, 64), &taken.iter().map(|t| net(t)).collect());
        assert_eq!(free(&[]), Some(net("10.244.0.0/24")));
        assert_eq!(free(&["10.244.0.0/24", "10.244.2.0/24"]), Some(net("10.244.1.0/24")));
        assert_eq!(free(&["10.244.0.0/23"]), Some(net("10.244.2.0/24")));
        assert_eq!(free(&["10.244.0.128/25"]), Some(net("10.244.1.0/24")));
        assert_eq!(free(&["10.0.0.0/8"]), None);
        assert_eq!(first_free(&net("fd00::/48"), (24, 64), &HashSet::new()), Some(net("fd00::/64")));
    }

    #[test]
    fn exhaustion_is_noticed() {
        let taken = net("10.0.0.0/30").subnets(32).unwrap().collect();
        assert_eq!(first_free(&net("10.0.0.0/30"), (32, 64), &taken), None);
    }
}
