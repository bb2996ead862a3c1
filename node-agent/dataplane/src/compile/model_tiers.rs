//! ClusterNetworkPolicies with NetworkPolicies between their tiers, against the obvious model: the API's words applied to
//! two addresses, compared with what the logic that runs in the kernel finds in the compiled maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use xebec_ebpf_abi::{Port, direction, proto};

use super::cluster::{self, ClusterNetworkPolicy};
use super::expand::addr;
use super::input::Labels;
use super::model::Kernel;
use super::model_policies::{
    NODE, NODE_IP, PORTS, PROTOCOLS, World, add_endpoints, feed, name_of, namespace_of, network_says, pod_ip, policy, remotes, web_port,
};
use super::state::State;

/// The node of the pods and another; each with one of two labels.
const NODES: [(&str, [u8; 4]); 2] = [(NODE, NODE_IP), ("there", [192, 0, 2, 2])];

#[derive(Clone, Debug)]
struct Tiered {
    world: World,
    nodes: [u8; 2],
    cluster: BTreeMap<u8, Value>,
}

#[derive(Clone, Debug)]
enum Step {
    Label(usize, u8),
    Namespace(usize, u8),
    Node(usize, u8),
    Policy(u8, Option<Value>),
    Cluster(u8, Option<Value>),
    Restart,
}

fn labels(n: u8) -> Value {
    json!({"matchLabels": {"l": n.to_string()}})
}

fn pods() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"namespaces": {}})),
        (0u8..2).prop_map(|n| json!({"namespaces": labels(n)})),
        (0u8..2, 0u8..2).prop_map(|(n, p)| json!({"pods": {"namespaceSelector": labels(n), "podSelector": labels(p)}})),
        (0u8..2).prop_map(|p| json!({"pods": {"namespaceSelector": {}, "podSelector": labels(p)}})),
    ]
}

fn outside() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => (0u8..2).prop_map(|n| json!({"nodes": labels(n)})),
        1 => Just(json!({"nodes": {}})),
        3 => Just(json!({"networks": ["0.0.0.0/0"]})),
        3 => Just(json!({"networks": ["198.51.100.0/24", "10.244.1.0/24"]})),
        1 => Just(json!({"networks": ["::/0"]})),
        1 => Just(json!({"domainNames": ["example.com"]})),
    ]
}

fn protocol() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"tcp": {"destinationPort": {"number": 80}}})),
        Just(json!({"tcp": {"destinationPort": {"range": {"start": 79, "end": 81}}}})),
        Just(json!({"udp": {"destinationPort": {"number": 80}}})),
        Just(json!({"sctp": {"destinationPort": {"range": {"start": 80, "end": 443}}}})),
        Just(json!({"tcp": {}})),
        Just(json!({"destinationNamedPort": "web"})),
    ]
}

fn rule(egress: bool) -> impl Strategy<Value = Value> {
    let peer = if egress { prop_oneof![2 => pods().boxed(), 3 => outside().boxed()].boxed() } else { pods().boxed() };
    let action = prop_oneof![Just("Accept"), Just("Deny"), Just("Pass")];
    (action, proptest::collection::vec(peer, 1..3), proptest::collection::vec(protocol(), 0..3)).prop_map(
        move |(action, peers, protocols)| {
            let mut rule = json!({"action": action});
            rule[if egress { "to" } else { "from" }] = json!(peers);
            if !protocols.is_empty() {
                rule["protocols"] = json!(protocols);
            }
            rule
        },
    )
}

fn cluster_policy() -> impl Strategy<Value = Value> {
    let tier = prop_oneof![Just("Admin"), Just("Baseline")];
    let rules = (proptest::collection::vec(rule(false), 0..4), proptest::collection::vec(rule(true), 0..4));
    (tier, 0i32..3, pods(), rules).prop_map(|(tier, priority, subject, (ingress, egress))| {
        json!({"tier": tier, "priority": priority, "subject": subject, "ingress": ingress, "egress": egress})
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..6, 0u8..2).prop_map(|(p, l)| Step::Label(p, l)),
        1 => (0usize..2, 0u8..2).prop_map(|(n, l)| Step::Namespace(n, l)),
        1 => (0usize..2, 0u8..2).prop_map(|(n, l)| Step::Node(n, l)),
        2 => (0u8..3, proptest::option::weighted(0.7, policy())).prop_map(|(n, p)| Step::Policy(n, p)),
        6 => (0u8..4, proptest::option::weighted(0.8, cluster_policy())).prop_map(|(n, p)| Step::Cluster(n, p)),
        1 => Just(Step::Restart),
    ]
}

fn feed_tiers(state: &mut State, tiered: &Tiered) {
    feed(state, &tiered.world);
    for ((name, ip), label) in NODES.iter().zip(tiered.nodes) {
        let labels = Labels::from([("l".into(), label.to_string())]);
        state.policies.set_cluster_node(name, Some((labels, BTreeSet::from([IpAddr::from(*ip)]))));
    }
    for n in 0..4 {
        let object = tiered.cluster.get(&n).map(|spec| ClusterNetworkPolicy { spec: spec.clone(), ..ClusterNetworkPolicy::default() });
        state.policies.set_cluster_policy(&format!("c{n}"), object.and_then(|o| cluster::policy(&o)));
    }
}

fn has(selector: &Value, label: u8) -> bool {
    selector["matchLabels"]["l"].as_str().is_none_or(|wanted| wanted == label.to_string())
}

fn selects(pods: &Value, world: &World, pod: usize) -> bool {
    let namespace = world.namespace_labels[pod % 2];
    match pods.get("namespaces") {
        Some(selector) => has(selector, namespace),
        None => has(&pods["pods"]["namespaceSelector"], namespace) && has(&pods["pods"]["podSelector"], world.labels[pod]),
    }
}

/// What a tier says, none if nothing in it matches.
fn tier_says(tiered: &Tiered, tier: &str, pod: usize, dir: u8, remote: IpAddr, protocol: u8, at: u16) -> Option<String> {
    let (rules, peers) = if dir == direction::INGRESS { ("ingress", "from") } else { ("egress", "to") };
    let peer_pod = (0..6).find(|p| pod_ip(*p) == remote);
    let is_peer = |peer: &Value| {
        if let Some(selector) = peer.get("nodes") {
            return NODES.iter().zip(tiered.nodes).any(|((_, ip), label)| IpAddr::from(*ip) == remote && has(selector, label));
        }
        if let Some(networks) = peer.get("networks") {
            return networks.as_array().unwrap().iter().any(|n| n.as_str().unwrap().parse::<IpNet>().unwrap().contains(&remote));
        }
        peer_pod.is_some_and(|p| selects(peer, &tiered.world, p))
    };
    let is_port = |written: &Value| {
        if written.get("destinationNamedPort").is_some() {
            let receiver = if dir == direction::INGRESS { Some(pod) } else { peer_pod };
            return protocol == proto::TCP && receiver.is_some_and(|r| web_port(r) == at);
        }
        let Some(ports) = written.get(name_of(protocol).to_lowercase()) else { return false };
        let port = &ports["destinationPort"];
        let number = |v: &Value| v.as_u64().map(|n| n as u16);
        match (number(&port["number"]), number(&port["range"]["start"])) {
            (Some(n), _) => n == at,
            (None, Some(start)) => (start..=number(&port["range"]["end"]).unwrap()).contains(&at),
            (None, None) => true,
        }
    };
    let mut policies: Vec<(i64, u8, &Value)> = tiered.cluster.iter().map(|(n, p)| (p["priority"].as_i64().unwrap(), *n, p)).collect();
    policies.sort_by_key(|(priority, n, _)| (*priority, *n));
    let policies = policies.into_iter().filter(|(_, _, p)| p["tier"] == tier && selects(&p["subject"], &tiered.world, pod));
    for rule in policies.flat_map(|(_, _, p)| p[rules].as_array().unwrap()) {
        let action = rule["action"].as_str().unwrap();
        let list = rule[peers].as_array().unwrap();
        if list.iter().any(|p| p.get("domainNames").is_some()) {
            // Not understood: fail closed.
            match action {
                "Accept" => continue,
                _ => return Some("Deny".into()),
            }
        }
        if list.iter().any(is_peer) && rule.get("protocols").is_none_or(|l| l.as_array().unwrap().iter().any(is_port)) {
            return Some(action.into());
        }
    }
    None
}

fn may(tiered: &Tiered, pod: usize, dir: u8, remote: IpAddr, protocol: u8, at: u16) -> bool {
    if dir == direction::INGRESS && remote == IpAddr::from(NODE_IP) {
        return true;
    }
    match tier_says(tiered, "Admin", pod, dir, remote, protocol, at).as_deref() {
        Some("Accept") => return true,
        Some("Deny") => return false,
        _ => {}
    }
    let network = network_says(&tiered.world, pod, dir, remote, protocol, at);
    network.unwrap_or_else(|| tier_says(tiered, "Baseline", pod, dir, remote, protocol, at).as_deref() != Some("Deny"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn tiers_are_asked_in_their_order(steps in proptest::collection::vec(step(), 1..12)) {
        let world = World { labels: vec![0; 6], namespace_labels: [0, 1], policies: BTreeMap::new() };
        let mut tiered = Tiered { world, nodes: [0, 1], cluster: BTreeMap::new() };
        let mut kernel = Kernel::default();
        let mut state = State::new(NODE);
        feed_tiers(&mut state, &tiered);
        add_endpoints(&mut state, &tiered.world);
        kernel.follow(&mut state, |_| {});
        for step in steps {
            let restart = matches!(step, Step::Restart);
            let before: BTreeMap<_, _> = kernel.0.endpoints.iter().map(|(k, e)| (*k, e.epoch)).collect();
            let old = tiered.clone();
            match step {
                Step::Label(pod, label) => tiered.world.labels[pod] = label,
                Step::Namespace(n, label) => tiered.world.namespace_labels[n] = label,
                Step::Node(n, label) => tiered.nodes[n] = label,
                Step::Policy(n, Some(policy)) => { tiered.world.policies.insert(n, policy); }
                Step::Policy(n, None) => { tiered.world.policies.remove(&n); }
                Step::Cluster(n, Some(policy)) => { tiered.cluster.insert(n, policy); }
                Step::Cluster(n, None) => { tiered.cluster.remove(&n); }
                Step::Restart => {
                    state = State::new(NODE);
                    state.load(kernel.contents());
                    add_endpoints(&mut state, &tiered.world);
                }
            }
            feed_tiers(&mut state, &tiered);
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
                            let expected = may(&tiered, pod, dir, remote, protocol, at);
                            let found = kernel.allows(&endpoint, dir, &addr(remote), protocol, Port::new(at));
                            prop_assert_eq!(found, expected, "pod {} of {} dir {} {} proto {} port {}", pod, namespace_of(pod), dir, remote, protocol, at);
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
