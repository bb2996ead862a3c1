//! ClusterNetworkPolicies matched against the identities there are, and laid over NetworkPolicies for one endpoint: pure.

use std::collections::{BTreeMap, BTreeSet};

use xebec_ebpf_abi::{PolicyKey, PolicyVerdict, direction, identity};

use super::cluster::{Action, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Pods, TierName};
use super::identity::{Facts, Identities};
use super::input::{Key, Labels};
use super::prefix::Prefix;
use super::resolve::Grants;
use super::rules::rule_number;
use super::tiers::Tiers;

/// Labels of namespaces by name.
type Namespaces = BTreeMap<String, Labels>;

/// A policy with its peers as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedCluster {
    ingress: Vec<ResolvedRule>,
    egress: Vec<ResolvedRule>,
}

/// A rule of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRule {
    action: Action,
    number: u32,
    /// None: everyone.
    peers: Option<BTreeSet<u32>>,
    ports: Option<Vec<ClusterPort>>,
}

impl ResolvedCluster {
    /// The rules of a direction, in their order.
    pub fn rules(&self, way: u8) -> &[ResolvedRule] {
        if way == direction::INGRESS { &self.ingress } else { &self.egress }
    }

    /// Whether the identity appears.
    pub fn names(&self, number: u32) -> bool {
        self.ingress.iter().chain(&self.egress).any(|r| r.peers.as_ref().is_some_and(|p| p.contains(&number)))
    }
}

impl Pods {
    /// Whether a pod of a namespace is one of them. Of a namespace nobody has seen yet it is none.
    pub fn select(&self, namespace: &str, labels: &Labels, namespaces: &Namespaces) -> bool {
        namespaces.get(namespace).is_some_and(|n| self.namespaces.matches(n)) && self.pods.matches(labels)
    }
}

fn is_meant(peer: &ClusterPeer, facts: &Facts, namespaces: &Namespaces) -> bool {
    match peer {
        ClusterPeer::Pods(pods) => facts.pod.as_ref().is_some_and(|p| pods.select(&p.namespace, &p.labels, namespaces)),
        ClusterPeer::Nodes(nodes) => facts.node.as_ref().is_some_and(|labels| nodes.matches(labels)),
        ClusterPeer::Network(net) => facts.blocks.contains(net),
    }
}

/// Whether an identity changes what the policy resolves to.
pub fn concerns(policy: &ClusterPolicy, facts: &Facts, namespaces: &Namespaces) -> bool {
    let mut peers = policy.ingress.iter().chain(&policy.egress).flat_map(|r| r.peers.iter().flatten());
    peers.any(|p| is_meant(p, facts, namespaces))
}

/// Matches a policy against all identities.
pub fn policy(name: &str, policy: &ClusterPolicy, identities: &Identities, namespaces: &Namespaces) -> ResolvedCluster {
    let key = Key::new("", name);
    let resolve = |way: u8, rules: &[ClusterRule]| -> Vec<ResolvedRule> {
        let rules = rules.iter().enumerate().map(|(index, rule)| {
            let meant = |facts: &Facts, peers: &[ClusterPeer]| peers.iter().any(|p| is_meant(p, facts, namespaces));
            let numbers = |peers: &Vec<ClusterPeer>| identities.iter().filter(|(_, f)| meant(f, peers)).map(|(n, _)| n).collect();
            ResolvedRule {
                action: rule.action,
                number: rule_number(&key, way, index),
                peers: rule.peers.as_ref().map(numbers),
                ports: rule.ports.clone(),
            }
        });
        rules.collect()
    };
    ResolvedCluster { ingress: resolve(direction::INGRESS, &policy.ingress), egress: resolve(direction::EGRESS, &policy.egress) }
}

/// One direction of one endpoint.
pub struct Way<'a> {
    /// Its number.
    pub endpoint: u32,
    /// One of [`direction`]'s.
    pub direction: u8,
    /// What the pod calls its ports.
    pub own_ports: &'a BTreeMap<String, (u8, u16)>,
    /// Who is who.
    pub identities: &'a Identities,
}

impl Way<'_> {
    /// The entries of all tiers. `rules`: those of the policies that select the endpoint, in the order they are asked.
    /// `network`: what NetworkPolicies allow, if one isolates the endpoint.
    pub fn entries(
        &self,
        rules: &[(TierName, &ResolvedRule)],
        network: Option<&Grants>,
        into: &mut BTreeMap<(u32, PolicyKey), PolicyVerdict>,
    ) {
        let named = rules.iter().flat_map(|(_, r)| r.peers.iter().flatten());
        let mut named: BTreeSet<u32> = named.chain(network.into_iter().flat_map(|n| n.keys())).copied().collect();
        named.remove(&identity::ANY);
        let mut put = |peer: u32, table: &BTreeMap<Prefix, PolicyVerdict>| {
            into.extend(table.iter().map(|(prefix, verdict)| (prefix.key(self.endpoint, self.direction, peer), *verdict)));
        };
        let of_any = self.tiers(identity::ANY, rules, network).table();
        put(identity::ANY, &of_any);
        for peer in named {
            // Whoever has entries of their own is judged by them alone; whom the same holds for as for all needs none.
            let table = self.tiers(peer, rules, network).table();
            if table != of_any {
                put(peer, &table);
            }
        }
    }

    fn tiers(&self, peer: u32, rules: &[(TierName, &ResolvedRule)], network: Option<&Grants>) -> Tiers {
        let mut tiers = Tiers::default();
        for (order, (name, rule)) in rules.iter().enumerate() {
            if rule.peers.as_ref().is_some_and(|p| !p.contains(&peer)) {
                continue;
            }
            let tier = match name {
                TierName::Admin => &mut tiers.admin,
                TierName::Baseline => &mut tiers.baseline,
            };
            for prefix in self.prefixes(peer, rule) {
                tier.push(order as u32, prefix, rule.action, rule.number);
            }
        }
        tiers.network = network.map(|grants| {
            let mut allowed: BTreeMap<Prefix, u32> = BTreeMap::new();
            for (prefix, number) in [identity::ANY, peer].iter().filter_map(|who| grants.get(who)).flatten() {
                allowed.entry(*prefix).and_modify(|n| *n = (*n).min(*number)).or_insert(*number);
            }
            allowed
        });
        tiers
    }

    fn prefixes(&self, peer: u32, rule: &ResolvedRule) -> Vec<Prefix> {
        let Some(ports) = &rule.ports else {
            return vec![Prefix::ALL];
        };
        // A name is the receiver's.
        let theirs = || self.identities.get(peer).and_then(|f| f.pod.as_ref()).map(|p| &p.named_ports);
        let names = if self.direction == direction::INGRESS { Some(self.own_ports) } else { theirs() };
        let mut prefixes = Vec::new();
        for port in ports {
            match port {
                ClusterPort::Protocol(proto) => prefixes.push(Prefix::protocol(*proto)),
                ClusterPort::Range(proto, first, last) => prefixes.extend(Prefix::range(*proto, *first, *last)),
                ClusterPort::Named(name) => prefixes.extend(names.and_then(|n| n.get(name)).map(|(proto, at)| Prefix::port(*proto, *at))),
            }
        }
        prefixes
    }
}
