//! Forwarding does not depend on the agent; a start adopts what it finds; teardown leaves nothing.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::connects::Connects;
use crate::node::{NODE_IP, Node, ask, ask_on, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";

#[test]
fn connections_go_on_while_the_agent_is_killed_and_started_again() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({"app": "web"}), json!([])));
    serve(&server.netns, "web", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &node_port);
    node.policy(
        "web",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": 8080}]}],
        }),
    );
    eventually("the Service answers", || {
        ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && node.ask_from_outside(at(NODE_IP, 30080)).is_ok()
    });
    let mut established = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    established.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");

    let connects = Connects::start(&client, at(CLUSTER_IP, 80));
    let before = node.dataplane().status().maps.iter().map(|m| (m.name.clone(), m.entries)).collect::<Vec<_>>();
    for kill in [true, false] {
        node.stop(kill);
        connects.go_on(20);
        assert!(ask_on(&mut established).is_ok(), "established without an agent");
        assert!(node.ask_from_outside(at(NODE_IP, 30080)).is_ok(), "from outside without an agent");
        node.start();
        assert_eq!(node.dataplane().status().leases, 2, "every lease has its owner again");
        assert!(ask_on(&mut established).is_ok(), "established after a start");
    }
    let changing = ["FLOWS", "NAT"];
    let after = node.dataplane().status().maps.iter().map(|m| (m.name.clone(), m.entries)).collect::<Vec<_>>();
    let stable = |list: Vec<(String, u64)>| list.into_iter().filter(|(n, _)| !changing.contains(&n.as_str())).collect::<Vec<_>>();
    assert_eq!(stable(after), stable(before));
    connects.end_without_failure();
    // The new agent still follows the API.
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[], &json!({}));
    eventually("refused", || ask(&client.netns, at(CLUSTER_IP, 80)).is_err());
    node.delete_pod(&server).expect("DEL by the new agent");
    assert_eq!(node.dataplane().status().leases, 1);
}

#[test]
fn what_went_while_the_agent_was_away_is_collected() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    for (name, ip) in [("kept", CLUSTER_IP), ("gone", "10.96.0.11")] {
        node.service(name, ip, 80, "TCP", 8080, &[&server], &json!({}));
        eventually("the Service answers", || ask(&client.netns, at(ip, 80)).is_ok());
    }
    node.stop(true);
    node.api.delete("Service", "default/gone");
    node.api.delete("EndpointSlice", "default/gone-1");
    // A pod whose device went with its namespace, and a device of an ADD that was cut off.
    let host = client.result["interfaces"][0]["name"].as_str().expect("a host device");
    node.netns.ip(&format!("link del {host}"));
    node.netns.ip("link add xbc00000000bad type veth peer name bad0");
    // A record that was cut short.
    let cut = node.state_dir().join("sandboxes/cut-eth0.json");
    std::fs::write(&cut, "").expect("a file");
    node.start();
    assert!(ask(&node.netns, at(CLUSTER_IP, 80)).is_ok());
    let status = node.dataplane().status();
    let entries = |name: &str| status.maps.iter().find(|m| m.name == name).map(|m| m.entries);
    assert_eq!((entries("FRONTENDS"), entries("BACKENDS"), entries("ENDPOINTS")), (Some(2), Some(1), Some(1)));
    assert_eq!(status.leases, 1);
    assert!(!node.netns.ip("link show").contains("xbc00000000bad"));
    assert!(!cut.exists());
    node.delete_pod(&client).expect("DEL of a pod that went");
}

#[test]
fn teardown_after_a_kill_leaves_nothing() {
    let mut node = Node::new();
    let sysctl = |node: &Node| node.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("a sysctl"));
    let before = sysctl(&node);
    node.start();
    let pod = node.pod("web", json!({}), json!([]));
    assert_eq!(sysctl(&node).trim(), "1");
    node.stop(true);
    assert_eq!(node.teardown(), Vec::<String>::new());
    assert_eq!(node.teardown(), Vec::<String>::new(), "again");
    assert!(node.pin_dir_is_gone());
    assert!(!std::fs::read_to_string("/proc/self/mounts").expect("mounts").contains(&node.config.pin_dir.display().to_string()));
    assert!(!node.netns.ip("link show").contains("xbc"));
    assert!(!pod.netns.ip("link show").contains("eth0"));
    assert_eq!(sysctl(&node), before);
    assert!(!node.config.cni_conf_dir.as_ref().expect("set").join("10-xebec.conflist").exists());
    assert!(!node.config.cni_socket.exists());
}
