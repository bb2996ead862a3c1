//! Policies at their edges: ones that select nothing or everything, pods that count as none, sizes beyond reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use xebec_ebpf_abi::{Endpoint, Port, direction, proto};

use super::cluster::{self, ClusterNetworkPolicy};
use super::expand::addr;
use super::input::{self, Key, Labels, PodIn};
use super::model::Kernel;
use super::policies::LocalEndpoint;
use super::rules;
use super::state::State;

const POD: &str = "10.244.0.5";
const WORLD: &str = "203.0.113.9";

/// One pod here, named `default/web`, labels `app: web`.
struct Node {
    kernel: Kernel,
    state: State,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Node {
    fn new() -> Node {
        let mut node = Node { kernel: Kernel::default(), state: State::new("here") };
        node.state.policies.set_namespace("default", Some(Labels::from([("kubernetes.io/metadata.name".into(), "default".into())])));
        let last_seen = PodIn { node: "here".into(), labels: Labels::from([("app".into(), "web".into())]), ..PodIn::default() };
        node.state.policies.set_endpoint(LocalEndpoint {
            id: 1,
            ifindex: 9,
            netns_cookie: 0,
            pod_mac: [2; 6],
            host_mac: [4; 6],
            ips: vec![ip(POD)],
            pod: Key::new("default", "web"),
            asked: Default::default(),
            last_seen,
        });
        node.follow();
        node
    }

    fn follow(&mut self) {
        self.kernel.follow(&mut self.state, |_| {});
        assert_eq!(self.state.plan(), vec![], "settled");
    }

    fn network(&mut self, name: &str, spec: Value) {
        let policy: NetworkPolicy =
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap();
        self.state.policies.set_policy(Key::new("default", name), Some(rules::policy(&policy)));
        self.follow();
    }

    fn cluster(&mut self, name: &str, spec: Value) {
        let object = ClusterNetworkPolicy { spec, ..ClusterNetworkPolicy::default() };
        self.state.policies.set_cluster_policy(name, cluster::policy(&object));
        self.follow();
    }

    fn other(&mut self, name: &str, pod: &Value) {
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        self.state.policies.set_pod(Key::new("default", name), Some(input::pod(&pod)));
        self.follow();
    }

    fn endpoint(&self) -> Endpoint {
        self.kernel.0.endpoints[&addr(ip(POD))]
    }

    fn may(&self, dir: u8, remote: &str, protocol: u8, port: u16) -> bool {
        self.kernel.allows(&self.endpoint(), dir, &addr(ip(remote)), protocol, Port::new(port))
    }

    fn isolated(&self) -> (bool, bool) {
        let flags = self.endpoint().flags;
        (flags & Endpoint::ISOLATE_INGRESS != 0, flags & Endpoint::ISOLATE_EGRESS != 0)
    }
}

#[test]
fn policy_types_default_as_the_api_says() {
    for (spec, isolated) in [
        (json!({"podSelector": {}}), (true, false)),
        (json!({"podSelector": {}, "egress": []}), (true, false)),
        (json!({"podSelector": {}, "egress": [{}]}), (true, true)),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), (false, true)),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}), (false, true)),
        (json!({"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Ingress", "Egress"]}), (false, false)),
        (json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}), (false, false)),
        (json!({"policyTypes": ["Ingress", "Egress"]}), (true, true)),
    ] {
        let mut node = Node::new();
        node.network("p", spec.clone());
        assert_eq!(node.isolated(), isolated, "{spec}");
    }
}

#[test]
fn empty_lists_mean_all_and_empty_rule_lists_nothing() {
    let all = |rule: Value| {
        let mut node = Node::new();
        node.network("p", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rule}));
        node.may(direction::INGRESS, WORLD, proto::SCTP, 7)
    };
    assert!(!all(json!([])));
    assert!(all(json!([{}])));
    assert!(all(json!([{"from": [], "ports": []}])));
    assert!(!all(json!([{"from": [{"podSelector": {}}]}])), "the world is no pod");
    assert!(!all(json!([{"ports": [{"protocol": "TCP"}]}])));
    assert!(all(json!([{"ports": [{"protocol": "SCTP", "port": 5, "endPort": 7}]}])));
    assert!(!all(json!([{"ports": [{"protocol": "SCTP", "port": 7, "endPort": 5}]}])), "a range that ends before it begins");
    assert!(!all(json!([{"from": [{"ipBlock": {"cidr": "nonsense"}}]}])), "what is not understood allows nothing");
    assert!(!all(json!([{"from": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["nonsense"]}}]}])));
}

#[test]
fn pods_that_ended_or_use_the_host_network_are_no_peers() {
    let pod = |phase: &str, host: bool| {
        json!({
            "metadata": {"namespace": "default", "name": "peer", "uid": "u", "labels": {"app": "peer"}},
            "spec": {"nodeName": "there", "hostNetwork": host, "containers": []},
            "status": {"phase": phase, "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}]},
        })
    };
    let mut node = Node::new();
    node.network("p", json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}));
    let mut reaches = |phase: &str, host: bool| {
        node.other("peer", &pod(phase, host));
        node.may(direction::INGRESS, "10.244.1.7", proto::TCP, 80)
    };
    assert!(reaches("Running", false));
    assert!(!reaches("Succeeded", false), "its address may be somebody else's already");
    assert!(reaches("Pending", false));
    assert!(!reaches("Failed", false));
    assert!(!reaches("Running", true), "its address is the node's");
    node.network("blocks", json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.1.0/24"}}]}]}));
    assert!(node.may(direction::INGRESS, "10.244.1.7", proto::TCP, 80), "by a block it is");
}

/// Ten thousand rules cost what they say and no more; a further pod does not pay for them again.
#[test]
fn ten_thousand_rules_in_one_policy() {
    let rule = |n: u32| {
        let block = json!({"ipBlock": {"cidr": format!("100.{}.{}.0/24", 64 + n / 256, n % 256)}});
        json!({"from": [block], "ports": [{"port": 1000 + n}]})
    };
    let mut node = Node::new();
    let rules: Vec<Value> = (0..10_000).map(rule).collect();
    node.network("large", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}));
    assert_eq!(node.state.policies.tables.policy.want().len(), 10_000);
    assert!(node.may(direction::INGRESS, "100.64.7.1", proto::TCP, 1007));
    assert!(!node.may(direction::INGRESS, "100.64.7.1", proto::TCP, 1008));
    assert!(!node.may(direction::INGRESS, "100.63.255.1", proto::TCP, 1000));
    node.state.policies.set_policy(Key::new("default", "large"), None);
    node.follow();
    assert_eq!(node.state.policies.tables.policy.want().len(), 0);
    assert_eq!(node.kernel.0.ipcache.len(), 1, "the blocks are forgotten");
}

/// What does not fit is refused before any of it is there, isolates all the same, and leaves the others alone.
#[test]
fn a_policy_that_does_not_fit_is_refused_whole() {
    let rules = |from: u16, count: u16| -> Vec<Value> { (from..from + count).map(|p| json!({"ports": [{"port": p}]})).collect() };
    let mut node = Node::new();
    node.state.policies.set_room(50);
    node.network("few", json!({"podSelector": {}, "ingress": rules(1, 10)}));
    node.network("many", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": rules(100, 41), "egress": [{}]}));
    assert_eq!(node.state.policies.refused(), BTreeSet::from([Key::new("default", "many")]));
    assert_eq!(node.kernel.0.policy.len(), 10, "nothing of it is there");
    assert!(node.may(direction::INGRESS, WORLD, proto::TCP, 10), "the small one is");
    assert!(!node.may(direction::INGRESS, WORLD, proto::TCP, 100));
    assert!(!node.may(direction::EGRESS, WORLD, proto::TCP, 100), "it isolates, so nothing leaks");
    // Room again: nothing else has to happen.
    node.state.policies.set_policy(Key::new("default", "few"), None);
    node.follow();
    assert!(node.state.policies.refused().is_empty());
    assert!(node.may(direction::INGRESS, WORLD, proto::TCP, 100) && node.may(direction::EGRESS, WORLD, proto::TCP, 100));
}

#[test]
fn a_cluster_policy_that_does_not_fit_lets_nothing_through() {
    let peers: Vec<Value> = (0..25).map(|n| json!(format!("198.51.100.{n}/32"))).collect();
    let mut node = Node::new();
    node.state.policies.set_room(20);
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
        {"action": "Deny", "to": [{"networks": peers}]},
    ]});
    node.cluster("wide", spec.clone());
    assert_eq!(node.state.policies.refused(), BTreeSet::from([Key::new("", "wide")]));
    assert!(!node.may(direction::EGRESS, "198.51.100.3", proto::TCP, 1) && !node.may(direction::EGRESS, WORLD, proto::TCP, 1));
    assert!(node.may(direction::INGRESS, WORLD, proto::TCP, 1), "the other direction is not its business");
    node.state.policies.set_room(1000);
    node.state.policies.set_cluster_policy("wide", None);
    node.cluster("wide", spec);
    assert!(node.state.policies.refused().is_empty());
    assert!(!node.may(direction::EGRESS, "198.51.100.3", proto::TCP, 1) && node.may(direction::EGRESS, WORLD, proto::TCP, 1));
}

/// While a wide deny comes in, what it leaves allowed is never shut: the narrow entries are there before it.
#[test]
fn a_deny_with_an_exception_comes_in_without_a_gap() {
    let mut node = Node::new();
    // The network has an identity and an entry already.
    node.cluster(
        "p",
        json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
            {"action": "Accept", "to": [{"networks": ["0.0.0.0/0"]}]},
        ]}),
    );
    assert!(node.may(direction::EGRESS, WORLD, proto::TCP, 80));
    let object = ClusterNetworkPolicy {
        spec: json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
            {"action": "Accept", "to": [{"networks": ["0.0.0.0/0"]}], "protocols": [{"tcp": {"destinationPort": {"number": 443}}}]},
            {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
        ]}),
        ..ClusterNetworkPolicy::default()
    };
    node.state.policies.set_cluster_policy("p", cluster::policy(&object));
    let pod = addr(ip(POD));
    let mut states = BTreeMap::new();
    node.kernel.follow(&mut node.state, |kernel| {
        let may = |port| kernel.allows(&kernel.0.endpoints[&pod], direction::EGRESS, &addr(ip(WORLD)), proto::TCP, Port::new(port));
        assert!(may(443), "at every write");
        states.insert(may(80), ());
    });
    assert_eq!(states.into_keys().collect::<Vec<_>>(), [false, true], "80 was open and is shut");
}
