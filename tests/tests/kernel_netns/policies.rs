//! NetworkPolicies: in force both ways, from the first packet, for established connections too.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::node::{NODE_IP, Node, OUTSIDE_IP, ask, ask_on, at, eventually, serve};

#[test]
fn ingress_is_allowed_by_labels_ports_and_names_and_nothing_else() {
    let mut node = Node::new();
    node.start();
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    let server = node.pod("server", json!({"app": "server"}), ports);
    let (friend, other) = (node.pod("friend", json!({"app": "friend"}), json!([])), node.pod("other", json!({"app": "other"}), json!([])));
    for port in [8080, 8081, 9090] {
        serve(&server.netns, "server", port);
    }
    let reach = |from: &crate::net::Netns, port: u16| ask(from, at(server.ip, port)).is_ok();
    assert!(reach(&friend.netns, 8080) && reach(&other.netns, 8081), "without a policy everything passes");

    let from_friend = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    node.policy(
        "server",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": from_friend, "ports": [{"port": "web"}, {"port": 9000, "endPort": 9100}]}],
        }),
    );
    eventually("other is shut out", || !reach(&other.netns, 8080));
    assert!(reach(&friend.netns, 8080), "the named port");
    assert!(reach(&friend.netns, 9090), "within the range");
    assert!(!reach(&friend.netns, 8081), "another port");
    assert!(!reach(&other.netns, 9090), "another pod");
    assert!(reach(&node.netns, 8081), "the node itself always reaches its pods");
    assert!(
        ask(&server.netns, at(NODE_IP, 22)).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused),
        "egress is not isolated"
    );

    node.api.delete("NetworkPolicy", "default/server");
    eventually("everything passes again", || reach(&other.netns, 8081));
}

#[test]
fn a_pod_is_isolated_with_its_first_packet() {
    let mut node = Node::new();
    node.start();
    let other = node.pod("other", json!({"app": "other"}), json!([]));
    node.policy("deny-all", json!({"podSelector": {"matchLabels": {"app": "shut"}}, "policyTypes": ["Ingress", "Egress"]}));
    serve(&other.netns, "other", 8080);
    eventually("the policy is seen", || node.dataplane().status().errors.is_empty());
    // The policy's object was there before the pod: neither direction passes once, however soon it is tried.
    for round in 0..5 {
        let shut = node.pod(&format!("shut{round}"), json!({"app": "shut"}), json!([]));
        assert!(ask(&shut.netns, at(other.ip, 8080)).is_err(), "out");
        serve(&shut.netns, "shut", 8080);
        assert!(ask(&other.netns, at(shut.ip, 8080)).is_err(), "in");
        assert!(ask(&node.netns, at(shut.ip, 8080)).is_ok(), "the node is let in");
        node.delete_pod(&shut).expect("DEL");
    }
}

#[test]
fn egress_is_allowed_by_blocks_except_their_exceptions() {
    let mut node = Node::new();
    node.start();
    let client = node.pod("client", json!({"app": "client"}), json!([]));
    let (near, far) = (node.pod("near", json!({"app": "near"}), json!([])), node.pod("far", json!({"app": "far"}), json!([])));
    serve(&near.netns, "near", 8080);
    serve(&far.netns, "far", 8080);
    serve(&node.outside, "outside", 8080);
    node.outside.ip("addr add 198.51.100.9/32 dev lo");
    let reach = |to: &dyn ToString| ask(&client.netns, at(to.to_string(), 8080)).is_ok();
    assert!(reach(&near.ip) && reach(&far.ip) && reach(&OUTSIDE_IP) && reach(&"198.51.100.9"));
    node.policy("client", json!({
        "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24", format!("{}/32", far.ip)]}}], "ports": [{"protocol": "TCP"}]},
        ],
    }));
    eventually("the exception is shut", || !reach(&"198.51.100.9"));
    assert!(!reach(&far.ip), "a pod's address within an exception");
    assert!(reach(&near.ip), "a pod's address within the block");
    assert!(reach(&OUTSIDE_IP));
    // Another rule lets the excepted pod in by its labels.
    node.policy("client-far", json!({
        "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}, "podSelector": {"matchLabels": {"app": "far"}}}]}],
    }));
    eventually("by labels", || reach(&far.ip));
    assert!(!reach(&"198.51.100.9"));
}

#[test]
fn what_is_no_longer_allowed_stops_in_the_middle() {
    let mut node = Node::new();
    node.start();
    let (client, server) =
        (node.pod("client", json!({"app": "client"}), json!([])), node.pod("server", json!({"app": "server"}), json!([])));
    serve(&server.netns, "server", 8080);
    let mut stream = client.netns.run(|| TcpStream::connect(at(server.ip, 8080))).expect("nothing is isolated");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    assert!(ask_on(&mut stream).is_ok());
    node.policy("deny", json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]}));
    eventually("the established connection is cut", || ask_on(&mut stream).is_err());
    // Answers of what is allowed pass although the other direction is shut.
    node.policy(
        "deny",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        }),
    );
    eventually("answers pass", || ask(&client.netns, at(server.ip, 8080)).is_ok());
}
