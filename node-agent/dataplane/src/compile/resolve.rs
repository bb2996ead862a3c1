//! A policy matched against the identities there are: pure.

use std::collections::{BTreeMap, BTreeSet};

use xebec_ebpf_abi::{PolicyKey, PolicyVerdict, Port, direction, identity, port_prefixes};

use super::identity::{Facts, Identities};
use super::input::{Key, Labels};
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
                    let meant = |f: &Facts| peers.iter().any(|p| is_meant(p, f, &key.namespace, namespaces));
                    identities.iter().filter(|(_, f)| meant(f)).map(|(n, _)| n).collect()
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

    /// Adds the entries for one endpoint. Where two rules say the same, the lower rule number is named.
    pub fn entries(&self, endpoint: u32, own_ports: &BTreeMap<String, (u8, u16)>, into: &mut BTreeMap<(u32, PolicyKey), PolicyVerdict>) {
        for rule in &self.rules {
            let mut allow = |peer: u32, proto: u8, port: Port, len: u32| {
                let key = (len, PolicyKey::new(endpoint, rule.direction, peer, proto, port));
                let entry = into.entry(key).or_insert(PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: rule.number });
                entry.rule = entry.rule.min(rule.number);
            };
            for peer in &rule.peers {
                let Some(ports) = &rule.ports else {
                    allow(*peer, 0, Port::new(0), PolicyKey::ANY_PROTO);
                    continue;
                };
                for port in ports {
                    match port {
                        PortMatch::Protocol(proto) => allow(*peer, *proto, Port::new(0), PolicyKey::ANY_PORT),
                        PortMatch::Range(proto, first, last) => {
                            port_prefixes(*first, *last).for_each(|(port, len)| allow(*peer, *proto, port, len));
                        }
                        PortMatch::Named(proto, name) if rule.direction == direction::INGRESS => {
                            if let Some((p, at)) = own_ports.get(name)
                                && p == proto
                            {
                                allow(*peer, *proto, Port::new(*at), PolicyKey::EXACT);
                            }
                        }
                        PortMatch::Named(..) => {}
                    }
                }
            }
            for (peer, proto, port) in &rule.named {
                allow(*peer, *proto, Port::new(*port), PolicyKey::EXACT);
            }
        }
    }
}

/// The node's own addresses, which an isolated pod may always reach.
pub fn allow_hosts(endpoint: u32, hosts: impl Iterator<Item = u32>, into: &mut BTreeMap<(u32, PolicyKey), PolicyVerdict>) {
    for host in hosts {
        let key = PolicyKey::new(endpoint, direction::EGRESS, host, 0, Port::new(0));
        let verdict = PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 };
        into.entry((PolicyKey::ANY_PROTO, key)).or_insert(verdict);
    }
}
