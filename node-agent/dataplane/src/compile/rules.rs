//! A NetworkPolicy cut down to what can be matched against identities.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::input::{self, Key};
use super::selector::Selector;

/// A policy, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Pods of the policy's namespace it applies to.
    pub selects: Selector,
    /// Rules of pods' incoming connections; none: the policy says nothing of that direction.
    pub ingress: Option<Vec<Rule>>,
    /// Of outgoing connections.
    pub egress: Option<Vec<Rule>>,
}

/// Some peers at some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// None: everyone.
    pub peers: Option<Vec<Peer>>,
    /// None: every port of every protocol.
    pub ports: Option<Vec<PortMatch>>,
}

/// One kind of peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods by labels, of namespaces by labels; no namespace selector: of the policy's namespace.
    Pods {
        /// Selects namespaces.
        namespaces: Option<Selector>,
        /// Selects pods in them.
        pods: Selector,
    },
    /// Addresses within a block and outside its exceptions.
    Block {
        /// The block.
        cidr: IpNet,
        /// What is not meant.
        except: BTreeSet<IpNet>,
    },
}

/// One port or range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// Every port of a protocol.
    Protocol(u8),
    /// Ports `first..=last`.
    Range(u8, u16, u16),
    /// The port that the receiving pod calls so.
    Named(u8, String),
}

/// Reduces a NetworkPolicy.
pub fn policy(policy: &NetworkPolicy) -> Policy {
    let spec = policy.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    // An API server defaults policyTypes; where it did not: ingress always, egress if there are rules.
    let of_type = |name: &str, by_default: bool| {
        if types.is_empty() { by_default } else { types.iter().any(|t| t == name) }
    };
    let egress_rules = spec.egress.unwrap_or_default();
    let has_egress = of_type("Egress", !egress_rules.is_empty());
    let ingress = spec.ingress.unwrap_or_default().into_iter().map(|r| rule(r.from, r.ports)).collect();
    let egress = egress_rules.into_iter().map(|r| rule(r.to, r.ports)).collect();
    Policy {
        selects: Selector::new(&spec.pod_selector.unwrap_or_default()),
        ingress: of_type("Ingress", true).then_some(ingress),
        egress: has_egress.then_some(egress),
    }
}

fn rule(peers: Option<Vec<NetworkPolicyPeer>>, ports: Option<Vec<NetworkPolicyPort>>) -> Rule {
    // An empty list means the same as none: everyone, every port.
    let peers = peers.filter(|p| !p.is_empty()).map(|p| p.iter().filter_map(peer).collect());
    let ports = ports.filter(|p| !p.is_empty()).map(|p| p.iter().filter_map(port).collect());
    Rule { peers, ports }
}

/// What does not parse is left out, so that it allows nothing.
fn peer(peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let cidr: IpNet = block.cidr.parse().ok()?;
        let mut except = BTreeSet::new();
        for e in block.except.iter().flatten() {
            except.insert(e.parse::<IpNet>().ok()?.trunc());
        }
        return Some(Peer::Block { cidr: cidr.trunc(), except });
    }
    if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
        return None;
    }
    Some(Peer::Pods {
        namespaces: peer.namespace_selector.as_ref().map(Selector::new),
        pods: peer.pod_selector.as_ref().map(Selector::new).unwrap_or_default(),
    })
}

fn port(port: &NetworkPolicyPort) -> Option<PortMatch> {
    let proto = input::protocol(port.protocol.as_deref())?;
    Some(match &port.port {
        None => PortMatch::Protocol(proto),
        Some(IntOrString::String(name)) => PortMatch::Named(proto, name.clone()),
        Some(IntOrString::Int(number)) => {
            let first = input::port(*number)?;
            let last = match port.end_port {
                Some(end) => input::port(end)?,
                None => first,
            };
            PortMatch::Range(proto, first, last)
        }
    })
}

/// A number that names a rule towards people, the same on every node and after every restart (FNV-1a).
pub fn rule_number(policy: &Key, direction: u8, index: usize) -> u32 {
    let text = format!("{policy}/{direction}/{index}");
    let hash = text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    hash.max(1)
}
