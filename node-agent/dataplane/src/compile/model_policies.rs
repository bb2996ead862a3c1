//! NetworkPolicies against the obvious model: the API's words applied to two pods, compared with what the logic
//! that runs in the kernel finds in the compiled maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};
use xebec_ebpf_abi::{Port, direction, proto};

use super::expand::{NodeFacts, addr};
use super::input::{Key, Labels, PodIn};
use super::model::Kernel;
use super::policies::LocalEndpoint;
use super::rules;
use super::state::State;

pub(super) const NODE: &str = "here";
pub(super) const NODE_IP: [u8; 4] = [192, 0, 2, 1];
pub(super) const PORTS: [u16; 4] = [79, 80, 81, 443];

/// Pods 0..3 are here, 4 and 5 elsewhere; each in one of two namespaces with one of two labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct World {
    pub(super) labels: Vec<u8>,
    pub(super) namespace_labels: [u8; 2],
    pub(super) policies: BTreeMap<u8, Value>,
}

#[derive(Clone, Debug)]
enum Step {
    Label(usize, u8),
    Namespace(usize, u8),
    Policy(u8, Option<Value>),
    Restart,
}

pub(super) fn namespace_of(pod: usize) -> &'static str {
    ["one", "two"][pod % 2]
}

pub(super) fn pod_ip(pod: usize) -> IpAddr {
    IpAddr::from([10, 244, if pod < 4 { 0 } else { 1 }, pod as u8 + 1])
}

/// Pods call different numbers "web".
pub(super) fn web_port(pod: usize) -> u16 {
    if pod.is_multiple_of(3) { 80 } else { 443 }
}

fn pod_in(pod: usize, label: u8) -> PodIn {
    PodIn {
        uid: format!("u{pod}"),
        node: if pod < 4 { NODE } else { "there" }.into(),
        labels: Labels::from([("l".into(), label.to_string())]),
        ips: vec![pod_ip(pod)],
        named_ports: BTreeMap::from([("web".into(), (proto::TCP, web_port(pod)))]),
        ..PodIn::default()
    }
}

fn key(pod: usize) -> Key {
    Key::new(namespace_of(pod), &format!("p{pod}"))
}

fn peer() -> impl Strategy<Value = Value> {
    let labels = |n: u8| json!({"matchLabels": {"l": n.to_string()}});
    prop_oneof![
        (0u8..2).prop_map(move |n| json!({"podSelector": labels(n)})),
        (0u8..2).prop_map(move |n| json!({"namespaceSelector": labels(n)})),
        (0u8..2, 0u8..2).prop_map(move |(n, p)| json!({"namespaceSelector": labels(n), "podSelector": labels(p)})),
        Just(json!({"namespaceSelector": {}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}})),
        Just(json!({"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24", "10.244.0.1/32"]}})),
        Just(json!({"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.7/32"]}})),
        Just(json!({"ipBlock": {"cidr": "198.51.0.0/16", "except": ["198.51.100.0/29", "198.51.100.4/30"]}})),
        Just(json!({"ipBlock": {"cidr": "::/0"}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": 79, "endPort": 81})),
        Just(json!({"port": "web"})),
        Just(json!({"protocol": "UDP", "port": 80})),
        Just(json!({"protocol": "UDP"})),
        Just(json!({"protocol": "TCP"})),
        Just(json!({"protocol": "SCTP", "port": 80})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(port(), 0..3)).prop_map(move |(p, ports)| {
        let mut rule = json!({});
        if !p.is_empty() {
            rule[peers] = json!(p);
        }
        if !ports.is_empty() {
            rule["ports"] = json!(ports);
        }
        rule
    })
}

pub(super) fn policy() -> impl Strategy<Value = Value> {
    let selector = prop_oneof![Just(json!({})), (0u8..2).prop_map(|n| json!({"matchLabels": {"l": n.to_string()}}))];
    let types = prop_oneof![Just(json!(["Ingress"])), Just(json!(["Egress"])), Just(json!(["Ingress", "Egress"]))];
    let rules = (proptest::collection::vec(rule("from"), 0..3), proptest::collection::vec(rule("to"), 0..3));
    (0usize..2, selector, types, rules).prop_map(|(namespace, selector, types, (ingress, egress))| {
        json!({
            "metadata": {"namespace": namespace_of(namespace)},
            "spec": {"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress},
        })
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..6, 0u8..2).prop_map(|(p, l)| Step::Label(p, l)),
        1 => (0usize..2, 0u8..2).prop_map(|(n, l)| Step::Namespace(n, l)),
        5 => (0u8..4, proptest::option::weighted(0.8, policy())).prop_map(|(n, p)| Step::Policy(n, p)),
        1 => Just(Step::Restart),
    ]
}

pub(super) fn feed(state: &mut State, world: &World) {
    state.set_node(NodeFacts { name: NODE.into(), zone: None, addresses: BTreeSet::from([IpAddr::from(NODE_IP)]), ..NodeFacts::default() });
    for (n, name) in ["one", "two"].iter().enumerate() {
        state.policies.set_namespace(name, Some(Labels::from([("l".into(), world.namespace_labels[n].to_string())])));
    }
    for (pod, label) in world.labels.iter().enumerate() {
        state.policies.set_pod(key(pod), Some(pod_in(pod, *label)));
    }
    let wanted: BTreeMap<Key, &Value> =
        world.policies.iter().map(|(n, p)| (Key::new(p["metadata"]["namespace"].as_str().unwrap(), &format!("np{n}")), p)).collect();
    for gone in state.policies.policy_keys().into_iter().filter(|k| !wanted.contains_key(k)) {
        state.policies.set_policy(gone, None);
    }
    for (key, p) in wanted {
        let parsed: NetworkPolicy = serde_json::from_value(p.clone()).unwrap();
        state.policies.set_policy(key, Some(rules::policy(&parsed)));
    }
}

pub(super) fn add_endpoints(state: &mut State, world: &World) {
    for pod in 0..4 {
        state.policies.set_endpoint(LocalEndpoint {
            id: pod as u32 + 1,
            ifindex: 10 + pod as u32,
            pod_mac: [2; 6],
            host_mac: [6; 6],
            netns_cookie: 0,
            ips: vec![pod_ip(pod)],
            pod: key(pod),
            asked: Default::default(),
            last_seen: pod_in(pod, world.labels[pod]),
        });
    }
}

pub(super) fn name_of(protocol: u8) -> &'static str {
    match protocol {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        _ => "SCTP",
    }
}

pub(super) const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];

/// The API's words, applied one by one.
fn may(world: &World, pod: usize, dir: u8, remote: IpAddr, protocol: u8, at: u16) -> bool {
    network_says(world, pod, dir, remote, protocol, at).unwrap_or(true)
}

/// None: no NetworkPolicy selects the pod for the direction.
pub(super) fn network_says(world: &World, pod: usize, dir: u8, remote: IpAddr, protocol: u8, at: u16) -> Option<bool> {
    let matches = |selector: &Value, label: u8| selector["matchLabels"]["l"].as_str().is_none_or(|wanted| wanted == label.to_string());
    let peer_pod = (0..6).find(|p| pod_ip(*p) == remote);
    let (type_name, rules_name, peers_name) =
        if dir == direction::INGRESS { ("Ingress", "ingress", "from") } else { ("Egress", "egress", "to") };
    let selecting: Vec<&Value> = world
        .policies
        .values()
        .filter(|p| p["metadata"]["namespace"] == namespace_of(pod))
        .filter(|p| matches(&p["spec"]["podSelector"], world.labels[pod]))
        .filter(|p| p["spec"]["policyTypes"].as_array().unwrap().contains(&json!(type_name)))
        .collect();
    if selecting.is_empty() {
        return None;
    }
    if remote == IpAddr::from(NODE_IP) {
        return Some(true);
    }
    let is_peer = |peer: &Value| {
        if let Some(block) = peer.get("ipBlock") {
            let within = |net: &Value| net.as_str().unwrap().parse::<IpNet>().unwrap().contains(&remote);
            return within(&block["cidr"]) && !block["except"].as_array().into_iter().flatten().any(within);
        }
        let Some(p) = peer_pod else { return false };
        let namespace = match peer.get("namespaceSelector") {
            Some(selector) => matches(selector, world.namespace_labels[p % 2]),
            None => namespace_of(p) == namespace_of(pod),
        };
        namespace && peer.get("podSelector").is_none_or(|s| matches(s, world.labels[p]))
    };
    let is_port = |port: &Value| {
        if port["protocol"].as_str().unwrap_or("TCP") != name_of(protocol) {
            return false;
        }
        match &port["port"] {
            Value::String(_) => {
                // The port is the receiver's.
                let receiver = if dir == direction::INGRESS { Some(pod) } else { peer_pod };
                protocol == proto::TCP && receiver.is_some_and(|r| web_port(r) == at)
            }
            Value::Number(first) => {
                let last = port["endPort"].as_u64().or(first.as_u64()).unwrap();
                (first.as_u64().unwrap()..=last).contains(&u64::from(at))
            }
            _ => true,
        }
    };
    Some(selecting.iter().flat_map(|p| p["spec"][rules_name].as_array().unwrap()).any(|rule| {
        let peers = rule.get(peers_name).is_none_or(|list| list.as_array().unwrap().iter().any(is_peer));
        let ports = rule.get("ports").is_none_or(|list| list.as_array().unwrap().iter().any(is_port));
        peers && ports
    }))
}

pub(super) fn remotes() -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = (0..6).map(pod_ip).collect();
    for other in ["198.51.100.7", "198.51.100.8", "203.0.113.9", "10.244.9.9", "192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        all.push(other.parse().unwrap());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn verdicts_are_those_of_the_api(steps in proptest::collection::vec(step(), 1..12)) {
        let mut world = World { labels: vec![0; 6], namespace_labels: [0, 1], policies: BTreeMap::new() };
        let mut kernel = Kernel::default();
        let mut state = State::new(NODE);
        feed(&mut state, &world);
        add_endpoints(&mut state, &world);
        kernel.follow(&mut state, |_| {});
        for step in steps {
            let restart = matches!(step, Step::Restart);
            let before: BTreeMap<_, _> = kernel.0.endpoints.iter().map(|(k, e)| (*k, e.epoch)).collect();
            let old = world.clone();
            match step {
                Step::Label(pod, label) => world.labels[pod] = label,
                Step::Namespace(n, label) => world.namespace_labels[n] = label,
                Step::Policy(n, Some(policy)) => { world.policies.insert(n, policy); }
                Step::Policy(n, None) => { world.policies.remove(&n); }
                Step::Restart => {
                    state = State::new(NODE);
                    state.load(kernel.contents());
                    // As at a start: endpoints from their records, then the API's objects.
                    add_endpoints(&mut state, &world);
                }
            }
            feed(&mut state, &world);
            let ops = kernel.follow(&mut state, |_| {});
            if restart {
                prop_assert_eq!(ops, vec![], "a restart changes nothing");
            }
            prop_assert_eq!(state.plan(), vec![], "one round is enough");
            for pod in 0..4 {
                let endpoint = kernel.0.endpoints[&addr(pod_ip(pod))];
                for remote in remotes() {
                    for (protocol, dir) in PROTOCOLS.iter().flat_map(|p| [(*p, direction::INGRESS), (*p, direction::EGRESS)]) {
                        for at in PORTS {
                            let expected = may(&world, pod, dir, remote, protocol, at);
                            let found = kernel.allows(&endpoint, dir, &addr(remote), protocol, Port::new(at));
                            prop_assert_eq!(found, expected, "pod {} dir {} {} proto {} port {}", pod, dir, remote, protocol, at);
                            if !expected && may(&old, pod, dir, remote, protocol, at) {
                                prop_assert_ne!(endpoint.epoch, before[&addr(pod_ip(pod))], "flows that are no longer allowed are judged again");
                            }
                        }
                    }
                }
            }
        }
    }
}
