//! Which node answers for a load-balancer address on the local segment.
//!
//! Every node decides by itself from what all of them see, so nobody has to be asked: of the nodes that may have the
//! address, the one whose name scores highest with it. A node that comes or goes moves only its own addresses.

use std::collections::{BTreeMap, BTreeSet};
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

/// The elections of a node. What nobody's candidature has changed is not elected again: there are as many scores as addresses
/// times nodes.
#[derive(Default)]
pub struct Elections {
    nodes: BTreeMap<String, bool>,
    won: BTreeMap<Announcement, Vec<IpAddr>>,
}

impl Elections {
    /// Addresses that `node` has. `nodes`: every node's name, and whether it takes part.
    pub fn won_by(&mut self, node: &str, nodes: BTreeMap<String, bool>, announcements: Vec<Announcement>) -> Vec<IpAddr> {
        if nodes != self.nodes {
            self.nodes = nodes;
            self.won.clear();
        }
        let mut known = std::mem::take(&mut self.won);
        for announcement in announcements {
            let won = known.remove(&announcement).unwrap_or_else(|| won_by(node, &self.nodes, &announcement));
            self.won.insert(announcement, won);
        }
        let mut won: Vec<IpAddr> = self.won.values().flatten().copied().collect();
        won.sort();
        won.dedup();
        won
    }
}

/// A node's own address is answered for by that node's kernel alone, whatever a pool says.
pub fn without(mut won: Vec<IpAddr>, of_nodes: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    won.retain(|ip| !of_nodes.contains(ip));
    won
}

fn won_by(node: &str, nodes: &BTreeMap<String, bool>, announcement: &Announcement) -> Vec<IpAddr> {
    let taking_part = |name: &&str| nodes.get(*name).copied().unwrap_or(false);
    let winner = |address: IpAddr| match &announcement.only {
        Some(only) => elect(address, only.iter().map(String::as_str).filter(taking_part)),
        None => elect(address, nodes.keys().map(String::as_str).filter(taking_part)),
    };
    announcement.addresses.iter().copied().filter(|address| winner(*address) == Some(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<IpAddr> {
        (0..=255).map(|n| IpAddr::from([192, 0, 2, n])).collect()
    }

    fn nodes(nodes: &[(&str, bool)]) -> BTreeMap<String, bool> {
        nodes.iter().map(|(name, takes_part)| ((*name).to_owned(), *takes_part)).collect()
    }

    fn announcement(only: Option<&[&str]>) -> Vec<Announcement> {
        vec![Announcement { addresses: addresses(), only: only.map(|nodes| nodes.iter().map(|n| n.to_string()).collect()) }]
    }

    #[test]
    fn every_address_has_exactly_one_node_and_moves_only_with_it() {
        let all = nodes(&[("a", true), ("b", true), ("c", true), ("cordoned", false)]);
        let of = |node: &str, nodes: &BTreeMap<String, bool>| Elections::default().won_by(node, nodes.clone(), announcement(None));
        let mut seen = BTreeSet::new();
        for node in ["a", "b", "c"] {
            let won = of(node, &all);
            assert!(won.len() > 256 / 6, "{node} has its share: {}", won.len());
            assert!(won.into_iter().all(|ip| seen.insert(ip)), "one node each");
        }
        assert_eq!(seen.len(), 256);
        assert!(of("cordoned", &all).is_empty());
        let without_c = nodes(&[("a", true), ("b", true), ("c", false)]);
        for node in ["a", "b"] {
            let (before, after) = (of(node, &all), of(node, &without_c));
            assert!(before.iter().all(|ip| after.contains(ip)), "{node} keeps what it had");
        }
    }

    #[test]
    fn with_a_local_policy_only_nodes_with_endpoints_count() {
        let all = nodes(&[("a", true), ("b", true), ("c", false)]);
        let of = |node: &str, only: &[&str]| Elections::default().won_by(node, all.clone(), announcement(Some(only))).len();
        assert_eq!(of("a", &["a", "c"]), 256);
        assert_eq!(of("b", &["a", "c"]), 0);
        assert_eq!(of("a", &["c"]), 0, "nobody, rather than one that would drop");
    }

    #[test]
    fn addresses_of_nodes_are_never_answered_for() {
        let of_nodes: BTreeSet<IpAddr> = addresses().into_iter().skip(1).collect();
        let won = Elections::default().won_by("a", nodes(&[("a", true)]), announcement(None));
        assert_eq!(without(won, &of_nodes), [addresses()[0]]);
    }

    #[test]
    fn what_is_remembered_is_what_would_be_elected() {
        let mut elections = Elections::default();
        let all = [nodes(&[("a", true), ("b", true)]), nodes(&[("a", true), ("b", false)]), nodes(&[("a", true)])];
        let wanted =
            [announcement(None), announcement(Some(&["b"])), [announcement(None), announcement(Some(&["a", "b"]))].concat(), vec![]];
        for (nodes, announcements) in all.iter().chain(&all).flat_map(|n| wanted.iter().chain(&wanted).map(move |w| (n, w))) {
            let remembered = elections.won_by("a", nodes.clone(), announcements.clone());
            assert_eq!(remembered, Elections::default().won_by("a", nodes.clone(), announcements.clone()));
            assert_eq!(elections.won.len(), announcements.len(), "what is gone is forgotten");
        }
    }
}
