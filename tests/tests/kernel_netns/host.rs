//! The node's own processes: Services from any cgroup, ports they may not take.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::net::Netns;
use crate::node::{Node, ask_on, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";

/// Connects to the Service from a process outside the node's cgroup.
fn tcp(node: &Node, netns: &Netns) -> std::io::Result<TcpStream> {
    node.in_home_cgroup(|| netns.run(|| TcpStream::connect_timeout(&at(CLUSTER_IP, 80), Duration::from_millis(700))))
}

#[test]
fn processes_of_the_node_reach_services_from_any_cgroup_and_others_are_not_touched() {
    let mut node = Node::new();
    node.start();
    let server = node.pod("web", json!({}), json!([]));
    serve(&server.netns, "web", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({}));
    node.service("dns", "10.96.0.11", 53, "UDP", 8080, &[&server], &json!({}));
    eventually("a process outside the node's cgroup is answered", || tcp(&node, &node.netns).is_ok());
    let mut stream = tcp(&node, &node.netns).expect("the Service answers");
    assert_eq!(stream.peer_addr().expect("connected"), at(CLUSTER_IP, 80));
    assert_eq!(ask_on(&mut stream).expect("an answer").0, "web");
    let dns = at("10.96.0.11", 53);
    for connected in [true, false] {
        let socket = node.in_home_cgroup(|| node.netns.run(|| UdpSocket::bind("0.0.0.0:0"))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut buffer = [0; 64];
        eventually("UDP is answered", || {
            let sent = if connected { socket.connect(dns).and_then(|()| socket.send(b"x")) } else { socket.send_to(b"x", dns) };
            sent.is_ok() && socket.recv_from(&mut buffer).is_ok_and(|(_, from)| from == dns)
        });
    }
    // Another network namespace that has the pod's address itself: a connect that was rewritten would arrive.
    let stranger = Netns::new();
    stranger.ip(&format!("addr add {}/32 dev lo", server.ip));
    serve(&stranger, "stranger", 8080);
    let own = node.in_home_cgroup(|| stranger.run(|| TcpStream::connect_timeout(&at(server.ip, 8080), Duration::from_secs(2))));
    assert!(own.is_ok(), "its own server: {own:?}");
    assert!(tcp(&node, &stranger).is_err(), "the Service's address is none of its own");
    // With the pins the hooks go.
    node.stop(true);
    assert!(tcp(&node, &node.netns).is_ok(), "without an agent");
    assert_eq!(node.teardown(), Vec::<String>::new());
    assert!(tcp(&node, &node.netns).is_err(), "after teardown");
}

#[test]
fn hooks_at_the_root_alone_serve_everybody() {
    // A pure cgroup2 host with the root as the node's directory: nothing is attached twice.
    let mut node = Node::new();
    let root = node.cgroup_root();
    let own = std::mem::replace(&mut node.config.cgroup, root);
    node.start();
    let links = std::fs::read_dir(node.config.pin_dir.join("links")).expect("links").flatten();
    let names: Vec<String> = links.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|n| n == "connect4") && !names.iter().any(|n| n.starts_with("root_")), "{names:?}");
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({}));
    eventually("the node", || tcp(&node, &node.netns).is_ok());
    assert!(tcp(&node, &client.netns).is_ok(), "a pod");
    node.stop(true);
    node.config.cgroup = own;
}

#[test]
fn a_port_where_node_ports_are_served_cannot_be_taken_by_a_process_of_the_node() {
    let mut node = Node::new();
    node.start();
    let server = node.pod("web", json!({}), json!([{"containerPort": 8080, "hostPort": 8088}]));
    serve(&server.netns, "web", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &node_port);
    let bind = |address: &str| node.netns.run(|| TcpListener::bind(address).map(|_| ()));
    eventually("refused", || bind("0.0.0.0:30080").is_err_and(|e| e.kind() == ErrorKind::AddrInUse));
    for taken in ["127.0.0.1:30080", "192.0.2.1:30080", "0.0.0.0:8088"] {
        let refused = bind(taken).expect_err(taken);
        assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{taken}");
    }
    let outside_cgroup = node.in_home_cgroup(|| bind("0.0.0.0:30080"));
    assert!(outside_cgroup.is_err(), "from any cgroup");
    assert!(bind("0.0.0.0:30081").is_ok(), "another port");
    assert!(node.netns.run(|| UdpSocket::bind("0.0.0.0:30080")).is_ok(), "another protocol");
    assert!(bind("0.0.0.0:0").is_ok(), "any port");
    assert!(bind("0.0.0.0:80").is_ok(), "a ClusterIP's port is the node's own to use");
    assert!(server.netns.run(|| TcpListener::bind("0.0.0.0:30080")).is_ok(), "a pod's ports are its own");
    node.api.delete("Service", "default/web");
    eventually("free again", || bind("0.0.0.0:30080").is_ok());
}
