//! A policy matched against the identities there are: pure.

use std::collections::{BTreeMap, BTreeSet};

use xebec_ebpf_abi::{PolicyKey, PolicyVerdict, direction, identity};

use super::identity::{Facts, Identities};
use super::input::{Key, Labels};
use super::prefix::Prefix;
use super::rules::{Peer, Policy, PortMatch, Rule, rule_number};

/// A policy with its peers as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    rules: Vec<ResolvedRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ResolvedRule {
    direction: u8,
    number: u32,
    /// Identities, or [`identity::ANY`] alone for everyone.
    peers: BTreeSet<u32>,
    ports: Option<Vec<PortMatch>>,
    /// Egress to named ports: identity, protocol, port.
    named: BTreeSet<(u32, u8, u16)>,
}

/// Whether a peer is meant by a rule of a policy in `namespace`.
fn is_meant(peer: &Peer, facts: &Facts, namespace: &str, namespaces: &BTreeMap<String, Labels>) -> bool {
    match peer {
        Peer::Pods { namespaces: selector, pods } => facts.pod.as_ref().is_some_and(|pod| {
            let in_namespace = match selector {
                None => pod.namespace == namespace,
                Some(s) => namespaces.get(&pod.namespace).is_some_and(|labels| s.matches(labels)),
            };
            in_namespace && pods.matches(&pod.labels)
        }),
        Peer::Block { cidr, except } => facts.blocks.contains(cidr) && facts.blocks.is_disjoint(except),
    }
}

/// Whether an identity changes what the policy resolves to.
pub fn concerns(key: &Key, policy: &Policy, facts: &Facts, namespaces: &BTreeMap<String, Labels>) -> bool {
    let meant = |rule: &Rule, egress: bool| match &rule.peers {
        // Everyone is one entry, except at named ports, whose numbers differ from pod to pod.
        None => egress && facts.pod.is_some() && rule.ports.iter().flatten().any(|p| matches!(p, PortMatch::Named(..))),
        Some(peers) => peers.iter().any(|p| is_meant(p, facts, &key.namespace, namespaces)),
    };
    policy.ingress.iter().flatten().any(|r| meant(r, false)) || policy.egress.iter().flatten().any(|r| meant(r, true))
}

/// Matches a policy against all identities.
pub fn policy(key: &Key, policy: &Policy, identities: &Identities, namespaces: &BTreeMap<String, Labels>) -> Resolved {
    let mut rules = Vec::new();
    for (dir, list) in [(direction::INGRESS, &policy.ingress), (direction::EGRESS, &policy.egress)] {
        for (index, rule) in list.iter().flatten().enumerate() {
            let peers: BTreeSet<u32> = match &rule.peers {
                None => BTreeSet::from([identity::ANY]),
                Some(peers) => {
                    let of = |p| candidates(p, key, identities).filter(move |(_, f)| is_meant(p, f, &key.namespace, namespaces));
                    peers.iter().flat_map(of).map(|(n, _)| n).collect()
                }
            };
            let named = match dir {
                direction::EGRESS => named_ports(rule, &peers, identities),
                _ => BTreeSet::new(),
            };
            let number = rule_number(key, dir, index);
            rules.push(ResolvedRule { direction: dir, number, peers, ports: rule.ports.clone(), named });
        }
    }
    Resolved { rules }
}

/// Identities a peer may mean: a policy of thousands of rules must not look at everybody for each of them.
fn candidates<'a>(peer: &'a Peer, key: &'a Key, identities: &'a Identities) -> Box<dyn Iterator<Item = (u32, &'a Facts)> + 'a> {
    match peer {
        Peer::Block { cidr, .. } => Box::new(identities.within(cidr)),
        Peer::Pods { namespaces: None, .. } => Box::new(identities.of_namespace(&key.namespace)),
        Peer::Pods { namespaces: Some(_), .. } => Box::new(identities.iter()),
    }
}

/// Named ports of an egress rule: every peer has its own numbers.
fn named_ports(rule: &Rule, peers: &BTreeSet<u32>, identities: &Identities) -> BTreeSet<(u32, u8, u16)> {
    let mut found = BTreeSet::new();
    for port in rule.ports.iter().flatten() {
        let PortMatch::Named(proto, name) = port else {
            continue;
        };
        for (number, facts) in identities.iter() {
            let Some(pod) = &facts.pod else { continue };
            if !peers.contains(&identity::ANY) && !peers.contains(&number) {
                continue;
            }
            if let Some((p, at)) = pod.named_ports.get(name)
                && p == proto
            {
                found.insert((number, *proto, *at));
            }
        }
    }
    found
}

impl Resolved {
    /// Whether the identity appears.
    pub fn names(&self, number: u32) -> bool {
        self.rules.iter().any(|r| r.peers.contains(&number) || r.named.iter().any(|(n, _, _)| *n == number))
    }

    /// What the policy allows an endpoint in a direction, as `(peer, prefix, rule number)`.
    pub fn grants(&self, way: u8, own_ports: &BTreeMap<String, (u8, u16)>, mut allow: impl FnMut(u32, Prefix, u32)) {
        for rule in self.rules.iter().filter(|r| r.direction == way) {
            for peer in &rule.peers {
                let Some(ports) = &rule.ports else {
                    allow(*peer, Prefix::ALL, rule.number);
                    continue;
                };
                for port in ports {
                    match port {
                        PortMatch::Protocol(proto) => allow(*peer, Prefix::protocol(*proto), rule.number),
                        PortMatch::Range(proto, first, last) => {
                            Prefix::range(*proto, *first, *last).for_each(|prefix| allow(*peer, prefix, rule.number));
                        }
                        PortMatch::Named(proto, name) if way == direction::INGRESS => {
                            if let Some((p, at)) = own_ports.get(name)
                                && p == proto
                            {
                                allow(*peer, Prefix::port(*proto, *at), rule.number);
                            }
                        }
                        PortMatch::Named(..) => {}
                    }
                }
            }
            for (peer, proto, port) in &rule.named {
                allow(*peer, Prefix::port(*proto, *port), rule.number);
            }
        }
    }
}

/// What NetworkPolicies allow one endpoint in one direction: peer to prefix to rule number, the lowest where rules say the same.
pub type Grants = BTreeMap<u32, BTreeMap<Prefix, u32>>;

/// The entries where no other tier has a say: what is allowed is named, the rest is denied by having no entry.
pub fn entries(endpoint: u32, way: u8, grants: &Grants, into: &mut BTreeMap<(u32, PolicyKey), PolicyVerdict>) {
    for (peer, allowed) in grants {
        let allow = |number: &u32| PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: *number };
        into.extend(allowed.iter().map(|(prefix, number)| (prefix.key(endpoint, way, *peer), allow(number))));
    }
}
