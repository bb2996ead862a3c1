//! Which node answers for a load-balancer address on the local segment.
//!
//! Every node decides by itself from what all of them see, so nobody has to be asked: of the nodes that may have the
//! address, the one whose name scores highest with it. A node that comes or goes moves only its own addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::services::Announcement;

/// Of several nodes the one that has the address.
pub fn elect<'a>(address: IpAddr, nodes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nodes.max_by_key(|node| (score(address, node), *node))
}

/// Equal on every node and in every version: FNV-1a over both, spread by SplitMix64's finalizer.
fn score(address: IpAddr, node: &str) -> u64 {
    let text = format!("{address} {node}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let h = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// Addresses that `node` has. `nodes`: every node's name, and whether it takes part.
pub fn won_by(node: &str, nodes: &BTreeMap<&str, bool>, announcements: &[Announcement]) -> Vec<IpAddr> {
    let taking_part = |name: &&str| nodes.get(name).copied().unwrap_or(false);
    let mut won = Vec::new();
    for a in announcements {
        for address in &a.addresses {
            let winner = match &a.only {
                Some(only) => elect(*address, only.iter().map(String::as_str).filter(taking_part)),
                None => elect(*address, nodes.keys().copied().filter(taking_part)),
            };
            if winner == Some(node) {
                won.push(*address);
            }
        }
    }
    won.sort();
    won.dedup();
    won
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn addresses() -> Vec<IpAddr> {
        (0..=255).map(|n| IpAddr::from([192, 0, 2, n])).collect()
    }

    fn announcement(only: Option<&[&str]>) -> Vec<Announcement> {
        vec![Announcement { addresses: addresses(), only: only.map(|nodes| nodes.iter().map(|n| n.to_string()).collect()) }]
    }

    #[test]
    fn every_address_has_exactly_one_node_and_moves_only_with_it() {
        let all = BTreeMap::from([("a", true), ("b", true), ("c", true), ("cordoned", false)]);
        let of = |node: &str, nodes: &BTreeMap<&str, bool>| won_by(node, nodes, &announcement(None));
        let mut seen = BTreeSet::new();
        for node in ["a", "b", "c"] {
            let won = of(node, &all);
            assert!(won.len() > 256 / 6, "{node} has its share: {}", won.len());
            assert!(won.into_iter().all(|ip| seen.insert(ip)), "one node each");
        }
        assert_eq!(seen.len(), 256);
        assert!(of("cordoned", &all).is_empty());
        let without_c = BTreeMap::from([("a", true), ("b", true), ("c", false)]);
        for node in ["a", "b"] {
            let (before, after) = (of(node, &all), of(node, &without_c));
            assert!(before.iter().all(|ip| after.contains(ip)), "{node} keeps what it had");
        }
    }

    #[test]
    fn with_a_local_policy_only_nodes_with_endpoints_count() {
        let all = BTreeMap::from([("a", true), ("b", true), ("c", false)]);
        assert_eq!(won_by("a", &all, &announcement(Some(&["a", "c"]))).len(), 256);
        assert_eq!(won_by("b", &all, &announcement(Some(&["a", "c"]))).len(), 0);
        assert_eq!(won_by("a", &all, &announcement(Some(&["c"]))).len(), 0, "nobody, rather than one that would drop");
    }
}
