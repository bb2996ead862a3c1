//! Objects that kube-apiserver refuses and another API server may send: what is right in them is served, what is not harms nobody.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::net::Netns;
use crate::node::{NODE_IP, Node, ask, at, eventually, serve};

/// A Service's endpoints as somebody wrote them.
fn endpoints(node: &Node, service: &str, family: &str, addresses: &[&str]) {
    let endpoints: Vec<Value> =
        addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": "node-1"})).collect();
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": format!("{service}-{family}"), "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }));
}

/// Who answers when it is asked often enough that every endpoint would have.
fn who(from: &Netns, ip: &str, port: u16) -> BTreeSet<String> {
    (0..40).map(|_| ask(from, at(ip, port)).map_or_else(|e| format!("{:?}", e.kind()), |(name, _)| name)).collect()
}

#[test]
fn endpoints_nobody_can_have_are_not_asked() {
    let mut node = Node::new();
    node.start();
    let (client, web) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&web.netns, "web", 8080);
    // Whatever listens on the node's own loopback is nobody's endpoint; nor is the pod's gateway or a cloud's metadata.
    serve(&node.netns, "node", 8080);
    node.service("web", "10.96.0.10", 80, "TCP", 8080, &[], &json!({}));
    let web_ip = web.ip.to_string();
    let addresses = [
        "127.0.0.1",
        "169.254.1.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "fd00::1",
        "::1",
        "nonsense",
        "",
        &web_ip,
    ];
    endpoints(&node, "web", "IPv4", &addresses);
    endpoints(&node, "web", "IPv6", &["10.244.7.99", "::ffff:10.244.7.98", "fe80::1"]);
    eventually("the good one answers", || ask(&client.netns, at("10.96.0.10", 80)).is_ok());
    for from in [&client.netns, &node.netns] {
        assert_eq!(who(from, "10.96.0.10", 80), BTreeSet::from(["web".to_owned()]));
    }
    // None but bad ones: there is nobody, which is said at once.
    endpoints(&node, "web", "IPv4", &addresses[..10]);
    eventually("it is refused", || who(&client.netns, "10.96.0.10", 80) == BTreeSet::from(["ConnectionRefused".to_owned()]));
}

#[test]
fn of_two_services_with_one_node_port_one_is_served_and_a_nodes_address_stays_its_own() {
    let mut node = Node::new();
    node.start();
    let (a, b) = (node.pod("a", json!({}), json!([])), node.pod("b", json!({}), json!([])));
    serve(&a.netns, "a", 8080);
    serve(&b.netns, "b", 8080);
    serve(&node.netns, "node", 9090);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30099}]});
    node.service("second", "10.96.0.11", 80, "TCP", 8080, &[&b], &spec);
    let outside = |port: u16| node.ask_from_outside(at(NODE_IP, port)).ok().map(|(name, _)| name);
    eventually("the only one is served", || outside(30099).as_deref() == Some("b"));
    node.service("first", "10.96.0.10", 80, "TCP", 8080, &[&a], &spec);
    eventually("the one whose name comes first is", || outside(30099).as_deref() == Some("a"));
    let told = || node.dataplane().status().errors;
    assert!(told().iter().any(|e| e.contains("default/second") && e.contains("30099")), "{:?}", told());
    assert_eq!(who(&a.netns, "10.96.0.11", 80), BTreeSet::from(["b".to_owned()]), "its other addresses are not contested");
    node.api.delete("Service", "default/first");
    eventually("the other one is again", || outside(30099).as_deref() == Some("b"));

    // A load balancer that is the node itself, and a ClusterIP that is the node's: their ports lead to pods, others to the node.
    for (name, pod, port, ip) in [("balanced", &a, 81, "10.96.0.12"), ("odd", &b, 82, NODE_IP)] {
        let kind = if name == "odd" { "ClusterIP" } else { "LoadBalancer" };
        node.service(name, ip, port, "TCP", 8080, &[pod], &json!({"type": kind, "externalIPs": [NODE_IP, "127.0.0.1", "169.254.1.1"]}));
    }
    let mut balanced = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.12", "clusterIPs": ["10.96.0.12"], "ports": [{"port": 81, "targetPort": 8080, "protocol": "TCP"}]},
        "status": {
            "loadBalancer": {"ingress": [{"ip": NODE_IP}]},
            // As if it were an address of our own pool, to be answered for by whoever is elected.
            "conditions": [{"type": "xebec.dev/LoadBalancerAddress", "status": "True", "reason": "Given", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    });
    node.api.put(balanced.clone());
    eventually("both are served", || (outside(81), outside(82)) == (Some("a".into()), Some("b".into())));
    assert_eq!(outside(9090).as_deref(), Some("node"), "the node's own ports are its own");
    assert_eq!(ask(&a.netns, at(NODE_IP, 9090)).expect("a pod reaches the node").0, "node");
    assert_eq!(ask(&node.netns, at("127.0.0.1", 9090)).expect("and the node itself").0, "node");
    assert!(ask(&node.netns, at("127.0.0.1", 81)).is_err(), "no Service has loopback");
    balanced["status"] = json!({});
    node.api.put(balanced);
    eventually("the address is taken back", || outside(81).is_none());
    assert_eq!(outside(9090).as_deref(), Some("node"));
}

#[test]
fn ten_thousand_rules_in_one_policy_are_in_force_and_gone_again() {
    let mut node = Node::new();
    node.start();
    let pod = |name: &str| node.pod(name, json!({"app": name}), json!([]));
    let (client, other, web) = (pod("client"), pod("other"), pod("web"));
    for port in [8080, 9999] {
        serve(&web.netns, "web", port);
    }
    let to = |from: &Netns, port: u16| ask(from, at(web.ip, port)).is_ok();
    assert!(to(&client.netns, 8080) && to(&other.netns, 8080));
    let rule = |n: u32| {
        let block = json!({"ipBlock": {"cidr": format!("100.{}.{}.0/24", 64 + n / 256, n % 256)}});
        json!({"from": [block], "ports": [{"port": 1000 + n}]})
    };
    let last = json!({"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]});
    let rules: Vec<Value> = (0..10_000).map(rule).chain([last]).collect();
    node.policy("large", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules}));
    eventually("the policy isolates", || !to(&other.netns, 8080));
    assert!(to(&client.netns, 8080), "the last rule allows");
    assert!(!to(&client.netns, 9999), "that port no rule gives to the client");
    assert_eq!(node.dataplane().status().errors, Vec::<String>::new());
    // A pod that comes now is judged from its first packet on.
    let late = pod("late");
    assert!(!to(&late.netns, 8080));
    node.api.delete("NetworkPolicy", "default/large");
    eventually("everybody may again", || to(&other.netns, 8080) && to(&late.netns, 8080));
    let entries = |name: &str| node.dataplane().status().maps.iter().find(|m| m.name == name).map(|m| m.entries);
    assert_eq!(entries("POLICY"), Some(0));
}
