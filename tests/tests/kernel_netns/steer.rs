//! UDP clients whose backend has gone: they get another one, whoever chose the first, and no socket sees an
//! error.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::net::Netns;
use crate::node::{NODE_IP, Node, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";

fn socket(netns: &Netns) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    socket
}

/// Who answers; `None`: nobody in time. Any error of the socket fails the test.
fn ask(socket: &UdpSocket, to: Option<SocketAddr>) -> Option<(String, SocketAddr)> {
    // Answers of earlier questions.
    let mut buffer = [0; 64];
    socket.set_nonblocking(true).expect("a mode");
    while socket.recv_from(&mut buffer).is_ok() {}
    socket.set_nonblocking(false).expect("a mode");
    match to {
        Some(to) => socket.send_to(b"x", to),
        None => socket.send(b"x"),
    }
    .expect("the socket sends");
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Some((String::from_utf8_lossy(&buffer[..len]).split(' ').next()?.to_owned(), from)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(e) => panic!("the socket sees an error: {e}"),
    }
}

/// Until then a socket is connected to the Service's own address.
fn until_known(netns: &Netns, vip: SocketAddr) {
    eventually("the Service is known", || {
        let probe = socket(netns);
        probe.connect(vip).is_ok() && probe.send(b"x").is_ok() && probe.recv(&mut [0; 64]).is_ok()
    });
}

fn is_answered_by(socket: &UdpSocket, to: Option<SocketAddr>, from: SocketAddr, name: &str) {
    eventually(&format!("{name} answers"), || {
        ask(socket, to).is_some_and(|(who, source)| {
            assert_eq!(source, from, "answers come from where the client asked");
            who == name
        })
    });
}

#[test]
fn a_connected_socket_follows_its_service_through_every_change_of_backends() {
    let mut node = Node::new();
    node.start();
    let [client, other, a, b] = ["client", "other", "a", "b"].map(|name| node.pod(name, json!({}), json!([])));
    serve(&a.netns, "a", 5353);
    serve(&b.netns, "b", 5353);
    let service = |pods: &[&crate::node::Pod]| node.service("dns", CLUSTER_IP, 53, "UDP", 5353, pods, &json!({}));
    let vip = at(CLUSTER_IP, 53);
    // Connected before there is a Service: its packets are for the Service all the same. An agent that knew of it but of no
    // endpoint yet would refuse the connect.
    let early = socket(&other.netns);
    early.connect(vip).expect("connects");
    service(&[&a]);
    until_known(&client.netns, vip);
    is_answered_by(&early, None, vip, "a");
    let connected = socket(&client.netns);
    connected.connect(vip).expect("connects");
    is_answered_by(&connected, None, vip, "a");
    // Another pod talks to one of the backends itself: that is no business of the Service.
    let direct = socket(&other.netns);
    let backend = at(a.ip, 5353);
    direct.connect(backend).expect("connects");
    is_answered_by(&direct, None, backend, "a");
    // Nor is it when the same pod does, through another socket, or through one that was the Service's before.
    let beside = socket(&client.netns);
    beside.connect(backend).expect("connects");
    let turned = socket(&client.netns);
    turned.connect(vip).expect("connects");
    turned.connect(backend).expect("connects");
    for socket in [&beside, &turned] {
        is_answered_by(socket, None, backend, "a");
    }

    service(&[&b]);
    is_answered_by(&connected, None, vip, "b");
    for socket in [&direct, &beside, &turned] {
        // Packets of all of them, not of the first that gets through.
        (0..5).for_each(|_| assert_eq!(ask(socket, None), Some(("a".to_owned(), backend)), "a itself was asked"));
    }
    service(&[&a]);
    is_answered_by(&connected, None, vip, "a");
    service(&[]);
    eventually("nobody answers", || ask(&connected, None).is_none());
    service(&[&b]);
    is_answered_by(&connected, None, vip, "b");
    node.delete_pod(&a).expect("DEL");
    is_answered_by(&connected, None, vip, "b");
    node.api.delete("Service", "default/dns");
    node.api.delete("EndpointSlice", "default/dns-1");
    eventually("nobody answers", || ask(&connected, None).is_none());
    service(&[&b]);
    is_answered_by(&connected, None, vip, "b");
    assert_eq!(connected.peer_addr().expect("connected"), vip);
}

#[test]
fn unconnected_sockets_and_clients_the_hooks_do_not_see_get_another_backend() {
    let mut node = Node::new();
    node.start();
    let [client, a, b] = ["client", "a", "b"].map(|name| node.pod(name, json!({}), json!([])));
    serve(&a.netns, "a", 5353);
    serve(&b.netns, "b", 5353);
    let spec = json!({"type": "NodePort", "ports": [{"port": 53, "targetPort": 5353, "protocol": "UDP", "nodePort": 30053}]});
    let service = |pods: &[&crate::node::Pod]| node.service("dns", CLUSTER_IP, 53, "UDP", 5353, pods, &spec);
    let (vip, node_port) = (at(CLUSTER_IP, 53), at(NODE_IP, 30053));
    service(&[&a]);
    let unconnected = socket(&client.netns);
    until_known(&client.netns, vip);
    // Sockets of no cgroup of the node: their packets carry the Service's address.
    let (unseen, outside) = node.in_home_cgroup(|| (socket(&client.netns), socket(&node.outside)));
    for (socket, to) in [(&unconnected, vip), (&unseen, vip), (&outside, node_port)] {
        is_answered_by(socket, Some(to), to, "a");
    }
    for (pods, name) in [(vec![&b], "b"), (vec![&a], "a")] {
        service(&pods);
        for (socket, to) in [(&unconnected, vip), (&unseen, vip), (&outside, node_port)] {
            is_answered_by(socket, Some(to), to, name);
        }
    }
}
