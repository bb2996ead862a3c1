//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`): as the API has it, and cut down to what can be matched.
//!
//! What is not understood fails closed, as the API asks: an Accept rule then matches nothing, a Deny or Pass rule becomes
//! one that denies everything.

use std::borrow::Cow;

use ipnet::IpNet;
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xebec_ebpf_abi::proto;

use super::input;
use super::selector::Selector;

/// The object. Its spec is read piece by piece, so that one odd rule does not hide the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicy {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// The policy.
    pub spec: Value,
    /// What implementations say of it.
    pub status: Value,
}

impl kube::Resource for ClusterNetworkPolicy {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "ClusterNetworkPolicy".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "policy.networking.k8s.io".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1alpha2".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "clusternetworkpolicies".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// When a policy is asked: before or after NetworkPolicies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the API's names")]
pub enum TierName {
    Admin,
    Baseline,
}

/// What becomes of what a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the API's names")]
pub enum Action {
    Accept,
    Deny,
    /// On to the next tier.
    Pass,
}

/// A policy, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its tier.
    pub tier: TierName,
    /// Lower ones are asked first.
    pub priority: i64,
    /// Pods it applies to; none: it is not understood.
    pub subject: Pods,
    /// Rules of incoming connections, the first that matches decides.
    pub ingress: Vec<ClusterRule>,
    /// Of outgoing ones.
    pub egress: Vec<ClusterRule>,
    /// What is not understood, in words for its author.
    pub problems: Vec<String>,
}

/// Pods by labels in namespaces by labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pods {
    /// Selects namespaces.
    pub namespaces: Selector,
    /// Selects pods in them.
    pub pods: Selector,
}

/// Some peers at some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRule {
    /// What becomes of it.
    pub action: Action,
    /// None: everyone.
    pub peers: Option<Vec<ClusterPeer>>,
    /// None: every port of every protocol.
    pub ports: Option<Vec<ClusterPort>>,
}

/// One kind of peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPeer {
    /// Pods that have a network of their own.
    Pods(Pods),
    /// Addresses of nodes with such labels.
    Nodes(Selector),
    /// Addresses, whoever has them.
    Network(IpNet),
}

/// Ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPort {
    /// All of them.
    Protocol(u8),
    /// Ports `first..=last`.
    Range(u8, u16, u16),
    /// The port that the receiving pod calls so, with its protocol.
    Named(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerIn {
    namespaces: Option<LabelSelector>,
    pods: Option<PodsIn>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<IpNet>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodsIn {
    #[serde(default)]
    namespace_selector: LabelSelector,
    #[serde(default)]
    pod_selector: LabelSelector,
}

impl From<PodsIn> for Pods {
    fn from(from: PodsIn) -> Pods {
        Pods { namespaces: Selector::new(&from.namespace_selector), pods: Selector::new(&from.pod_selector) }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProtocolIn {
    tcp: Option<PortsIn>,
    udp: Option<PortsIn>,
    sctp: Option<PortsIn>,
    destination_named_port: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortsIn {
    destination_port: Option<PortIn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortIn {
    number: Option<i32>,
    range: Option<RangeIn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeIn {
    start: i32,
    end: i32,
}

/// Reduces a policy. None: not even its tier and subject are understood, so nothing can be done for it.
pub fn policy(policy: &ClusterNetworkPolicy) -> Option<ClusterPolicy> {
    let spec = &policy.spec;
    let tier = match spec["tier"].as_str()? {
        "Admin" => TierName::Admin,
        "Baseline" => TierName::Baseline,
        _ => return None,
    };
    let mut problems = Vec::new();
    let subject = match subject(&spec["subject"]) {
        Ok(pods) => pods,
        Err(reason) => {
            tracing::warn!(
                policy = policy.metadata.name,
                reason,
                "the subject of a ClusterNetworkPolicy is not understood: it selects no pod"
            );
            return None;
        }
    };
    let mut rules = |direction: &str, peers: &str| -> Vec<ClusterRule> {
        let list = spec[direction].as_array().into_iter().flatten().enumerate();
        let read = list.map(|(index, written)| {
            let action = serde_json::from_value(written["action"].clone());
            match action.map_err(|e| e.to_string()).and_then(|action| rule(action, &written[peers], written.get("protocols"))) {
                Ok(rule) => rule,
                Err(reason) => {
                    let accept = written["action"] == "Accept";
                    let becomes = if accept { "it matches nothing" } else { "it denies everything" };
                    problems.push(format!("spec.{direction}[{index}]: {reason}; {becomes}"));
                    closed(accept)
                }
            }
        });
        read.collect()
    };
    let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
    Some(ClusterPolicy { tier, priority: spec["priority"].as_i64().unwrap_or(0), subject, ingress, egress, problems })
}

/// What a rule becomes that is not understood.
fn closed(accept: bool) -> ClusterRule {
    match accept {
        true => ClusterRule { action: Action::Accept, peers: Some(Vec::new()), ports: None },
        false => ClusterRule { action: Action::Deny, peers: None, ports: None },
    }
}

fn subject(written: &Value) -> Result<Pods, String> {
    match peer(written)?.as_slice() {
        [ClusterPeer::Pods(pods)] => Ok(pods.clone()),
        _ => Err("a subject is namespaces or pods".into()),
    }
}

fn rule(action: Action, peers: &Value, protocols: Option<&Value>) -> Result<ClusterRule, String> {
    let mut all = Vec::new();
    for written in peers.as_array().into_iter().flatten() {
        all.extend(peer(written)?);
    }
    let ports = match protocols.and_then(Value::as_array) {
        Some(list) if !list.is_empty() => Some(list.iter().map(port).collect::<Result<Vec<_>, _>>()?),
        _ => None,
    };
    Ok(ClusterRule { action, peers: Some(all), ports })
}

fn peer(written: &Value) -> Result<Vec<ClusterPeer>, String> {
    if written.get("domainNames").is_some() {
        return Err("domainNames are not supported".into());
    }
    let read: PeerIn = serde_json::from_value(written.clone()).map_err(|e| e.to_string())?;
    match read {
        PeerIn { namespaces: Some(s), pods: None, nodes: None, networks: None } => {
            Ok(vec![ClusterPeer::Pods(Pods { namespaces: Selector::new(&s), pods: Selector::default() })])
        }
        PeerIn { namespaces: None, pods: Some(pods), nodes: None, networks: None } => Ok(vec![ClusterPeer::Pods(pods.into())]),
        PeerIn { namespaces: None, pods: None, nodes: Some(s), networks: None } => Ok(vec![ClusterPeer::Nodes(Selector::new(&s))]),
        PeerIn { namespaces: None, pods: None, nodes: None, networks: Some(list) } => {
            Ok(list.iter().map(|n| ClusterPeer::Network(n.trunc())).collect())
        }
        _ => Err("a peer has exactly one of namespaces, pods, nodes, networks".into()),
    }
}

fn port(written: &Value) -> Result<ClusterPort, String> {
    let read: ProtocolIn = serde_json::from_value(written.clone()).map_err(|e| e.to_string())?;
    let (proto, ports) = match read {
        ProtocolIn { tcp: Some(ports), udp: None, sctp: None, destination_named_port: None } => (proto::TCP, ports),
        ProtocolIn { tcp: None, udp: Some(ports), sctp: None, destination_named_port: None } => (proto::UDP, ports),
        ProtocolIn { tcp: None, udp: None, sctp: Some(ports), destination_named_port: None } => (proto::SCTP, ports),
        ProtocolIn { tcp: None, udp: None, sctp: None, destination_named_port: Some(name) } => return Ok(ClusterPort::Named(name)),
        _ => return Err("a protocol has exactly one of tcp, udp, sctp, destinationNamedPort".into()),
    };
    let number = |n: i32| input::port(n).ok_or_else(|| format!("{n} is not a port"));
    match ports.destination_port {
        None => Ok(ClusterPort::Protocol(proto)),
        Some(PortIn { number: Some(n), range: None }) => Ok(ClusterPort::Range(proto, number(n)?, number(n)?)),
        Some(PortIn { number: None, range: Some(range) }) => Ok(ClusterPort::Range(proto, number(range.start)?, number(range.end)?)),
        Some(_) => Err("a port has exactly one of number, range".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: Value) -> Option<ClusterPolicy> {
        policy(&ClusterNetworkPolicy { spec, ..ClusterNetworkPolicy::default() })
    }

    #[test]
    fn what_is_not_understood_fails_closed_and_is_told() {
        let with = |action: &str, peer: Value, protocols: Value| {
            let rule = json!({"action": action, "to": [peer], "protocols": protocols});
            let read = read(json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}, "egress": [rule]})).expect("a policy");
            (read.egress[0].clone(), read.problems)
        };
        let everyone = json!({"namespaces": {}});
        let good = with("Accept", everyone.clone(), json!([{"tcp": {"destinationPort": {"range": {"start": 5, "end": 9}}}}]));
        assert_eq!((good.0.ports, good.1), (Some(vec![ClusterPort::Range(proto::TCP, 5, 9)]), vec![]));
        for (peer, protocols, told) in [
            (json!({"domainNames": ["example.com"]}), json!([]), "domainNames are not supported"),
            (json!({"galaxies": {}}), json!([]), "galaxies"),
            (json!({}), json!([]), "exactly one"),
            (json!({"networks": ["10.0.0.0/33"]}), json!([]), "invalid"),
            (everyone.clone(), json!([{"quic": {}}]), "quic"),
            (everyone.clone(), json!([{"tcp": {"destinationPort": {"number": 0}}}]), "0 is not a port"),
        ] {
            let (rule, problems) = with("Accept", peer.clone(), protocols.clone());
            assert_eq!(rule.peers, Some(vec![]), "an Accept rule matches nothing: {peer}");
            assert!(problems[0].starts_with("spec.egress[0]: ") && problems[0].contains(told), "{problems:?}");
            for action in ["Deny", "Pass", "Shrug"] {
                let (rule, problems) = with(action, peer.clone(), protocols.clone());
                assert_eq!(rule, ClusterRule { action: Action::Deny, peers: None, ports: None }, "{action} {peer}");
                assert_eq!(problems.len(), 1);
            }
        }
    }

    #[test]
    fn without_tier_or_subject_there_is_nothing_to_do() {
        assert_eq!(read(json!({"tier": "Middle", "subject": {"namespaces": {}}})), None);
        assert_eq!(read(json!({"tier": "Admin", "subject": {"nodes": {}}})), None);
        assert_eq!(read(Value::Null), None);
    }
}
