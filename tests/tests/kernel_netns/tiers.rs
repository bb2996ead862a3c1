//! ClusterNetworkPolicies with real pods: Admin before NetworkPolicies before Baseline.

use serde_json::{Value, json};

use crate::net::Netns;
use crate::node::{NODE_IP, Node, OUTSIDE_IP, ask, at, eventually, serve};

fn everyone() -> Value {
    json!({"namespaces": {}})
}

fn labeled(app: &str) -> Value {
    json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}})
}

#[test]
fn tiers_decide_in_their_order() {
    let mut node = Node::new();
    // There is one from the start: the definition is there when the agent asks for it.
    node.cluster_policy("nothing", json!({"tier": "Admin", "priority": 9, "subject": labeled("nobody")}));
    node.start();
    let server = node.pod("server", json!({"app": "server"}), json!([{"name": "web", "containerPort": 8080}]));
    let (friend, other) = (node.pod("friend", json!({"app": "friend"}), json!([])), node.pod("other", json!({"app": "other"}), json!([])));
    for port in [8080, 9090] {
        serve(&server.netns, "server", port);
    }
    let reach = |from: &Netns, port: u16| ask(from, at(server.ip, port)).is_ok();
    assert!(reach(&friend.netns, 8080) && reach(&other.netns, 9090));

    node.cluster_policy(
        "last",
        json!({"tier": "Baseline", "priority": 0, "subject": labeled("server"), "ingress": [
            {"action": "Accept", "from": [labeled("friend")]},
            {"action": "Deny", "from": [everyone()]},
        ]}),
    );
    eventually("Baseline shuts", || !reach(&other.netns, 8080));
    assert!(reach(&friend.netns, 9090), "what its first rule accepts");
    assert!(reach(&node.netns, 8080), "the node always reaches its pods");

    node.policy("server", json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": "web"}]}]}));
    eventually("a NetworkPolicy overrides Baseline", || reach(&other.netns, 8080) && !reach(&friend.netns, 9090));

    node.cluster_policy(
        "first",
        json!({"tier": "Admin", "priority": 5, "subject": labeled("server"), "ingress": [
            {"action": "Pass", "from": [labeled("friend")], "protocols": [{"destinationNamedPort": "web"}]},
            {"action": "Accept", "from": [labeled("friend")]},
            {"action": "Deny", "from": [everyone()]},
        ]}),
    );
    eventually("Admin overrides the NetworkPolicy", || !reach(&other.netns, 8080));
    assert!(reach(&friend.netns, 8080), "passed on, and allowed there");
    assert!(reach(&friend.netns, 9090), "accepted, whatever the NetworkPolicy says");

    // A pod that nobody knew is judged like the others from its first packet.
    let late = node.pod("late", json!({"app": "late"}), json!([]));
    assert!(!reach(&late.netns, 8080));

    node.cluster_policy(
        "before",
        json!({"tier": "Admin", "priority": 1, "subject": labeled("server"), "ingress": [
            {"action": "Accept", "from": [labeled("late")]},
        ]}),
    );
    eventually("a lower priority is asked first", || reach(&late.netns, 9090));
    for name in ["before", "first", "last"] {
        node.api.delete("ClusterNetworkPolicy", &format!("/{name}"));
    }
    eventually("the NetworkPolicy alone decides again", || reach(&other.netns, 8080) && !reach(&late.netns, 9090));
}

#[test]
fn egress_to_nodes_and_networks_is_an_administrators_to_deny() {
    let mut node = Node::new();
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {"kubernetes.io/hostname": "node-1"}},
        "spec": {"podCIDRs": ["10.244.7.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]},
    }));
    node.cluster_policy("egress", json!({"tier": "Admin", "priority": 1, "subject": labeled("client"), "egress": [
        {"action": "Deny", "to": [{"nodes": {}}], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 8080, "end": 8089}}}}]},
        {"action": "Accept", "to": [{"networks": [format!("{OUTSIDE_IP}/32")]}], "protocols": [{"tcp": {"destinationPort": {"number": 9090}}}]},
        {"action": "Deny", "to": [{"networks": [format!("{OUTSIDE_IP}/24")]}, {"domainNames": ["example.com"]}]},
    ]}));
    node.start();
    let (client, other) = (node.pod("client", json!({"app": "client"}), json!([])), node.pod("other", json!({"app": "other"}), json!([])));
    for port in [8080, 9090] {
        serve(&node.netns, "node", port);
        serve(&node.outside, "outside", port);
    }
    serve(&other.netns, "other", 8080);
    let reach = |ip: &dyn ToString, port: u16| ask(&client.netns, at(ip.to_string(), port)).is_ok();
    assert!(!reach(&NODE_IP, 8080), "a NetworkPolicy could not deny this");
    assert!(reach(&OUTSIDE_IP, 9090));
    assert!(!reach(&OUTSIDE_IP, 8080));
    assert!(!reach(&other.ip, 8080), "a Deny rule that is not understood denies everything");
    assert!(ask(&other.netns, at(NODE_IP, 8080)).is_ok(), "others are not its subject");
    node.cluster_policy(
        "egress",
        json!({"tier": "Admin", "priority": 1, "subject": labeled("client"), "egress": [
            {"action": "Deny", "to": [{"nodes": {"matchLabels": {"kubernetes.io/hostname": "node-2"}}}]},
        ]}),
    );
    eventually("that was another node", || reach(&NODE_IP, 8080));
    assert!(reach(&other.ip, 8080));
}
