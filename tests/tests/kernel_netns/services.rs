//! Services as clients see them: from pods, from the node, from outside.

use std::collections::BTreeSet;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::node::{NODE_IP, Node, OUTSIDE_IP, ask, ask_on, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";

#[test]
fn a_cluster_ip_reaches_every_pod_and_clients_see_the_cluster_ip() {
    let mut node = Node::new();
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    let (a, b) = (node.pod("a", json!({}), json!([])), node.pod("b", json!({}), json!([])));
    serve(&a.netns, "a", 8080);
    serve(&b.netns, "b", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&a, &b], &json!({}));
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());

    let mut names = BTreeSet::new();
    eventually("both pods are chosen", || {
        let (name, seen) = ask(&client.netns, at(CLUSTER_IP, 80)).expect("the Service answers");
        assert_eq!(seen, client.ip.to_string(), "pods see each other's own address");
        names.insert(name);
        names.len() == 2
    });
    client.netns.run(|| {
        let stream = TcpStream::connect(at(CLUSTER_IP, 80)).expect("the Service answers");
        assert_eq!(stream.peer_addr().expect("connected"), at(CLUSTER_IP, 80), "getpeername shows the Service");
    });
    assert!(ask(&node.netns, at(CLUSTER_IP, 80)).is_ok(), "the node's own processes reach it");
    // A pod that is its Service's only endpoint reaches itself.
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&a], &json!({}));
    eventually("only a is left", || (0..8).all(|_| ask(&a.netns, at(CLUSTER_IP, 80)).is_ok_and(|(name, _)| name == "a")));
    // Without endpoints connections are refused at once, not dropped.
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[], &json!({}));
    eventually("refused", || ask(&client.netns, at(CLUSTER_IP, 80)).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused));
    node.api.delete("Service", "default/web");
    eventually("the address is nobody's", || node.dataplane().status().maps.iter().any(|m| m.name == "FRONTENDS" && m.entries == 0));
}

#[test]
fn udp_works_connected_and_unconnected() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("dns", json!({}), json!([])));
    serve(&server.netns, "dns", 5353);
    node.service("dns", CLUSTER_IP, 53, "UDP", 5353, &[&server], &json!({}));
    let asked = |connected: bool| {
        client.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            let mut buffer = [0; 64];
            if connected {
                socket.connect(at(CLUSTER_IP, 53))?;
                socket.send(b"x")?;
                assert_eq!(socket.peer_addr()?, at(CLUSTER_IP, 53));
            } else {
                socket.send_to(b"x", at(CLUSTER_IP, 53))?;
            }
            let (len, from) = socket.recv_from(&mut buffer)?;
            assert_eq!(from, at(CLUSTER_IP, 53), "the answer comes from the Service's address");
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..len]).into_owned())
        })
    };
    for connected in [true, false] {
        eventually("the Service answers", || asked(connected).is_ok_and(|a| a == format!("dns {}", client.ip)));
    }
}

#[test]
fn a_node_port_answers_outside_and_pods_reach_the_outside_as_the_node() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    serve(&node.outside, "outside", 9000);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &node_port);
    eventually("from outside", || node.ask_from_outside(at(NODE_IP, 30080)).is_ok_and(|(name, _)| name == "web"));
    assert!(ask(&client.netns, at(NODE_IP, 30080)).is_ok(), "from a pod");
    assert!(ask(&node.netns, at(NODE_IP, 30080)).is_ok(), "from the node");
    assert!(ask(&node.netns, at("127.0.0.1", 30080)).is_ok(), "from the node over loopback");
    let (name, seen) = ask(&client.netns, at(OUTSIDE_IP, 9000)).expect("pods reach the outside");
    assert_eq!((name.as_str(), seen.as_str()), ("outside", NODE_IP), "masqueraded");
    // An address the node gets later serves NodePorts too.
    node.netns.ip("addr add 192.0.2.77/24 dev up0");
    eventually("on the new address", || node.ask_from_outside(at("192.0.2.77", 30080)).is_ok());
    node.api.delete("Service", "default/web");
    eventually("closed", || node.ask_from_outside(at(NODE_IP, 30080)).is_err());
}

#[test]
fn a_client_with_affinity_stays_with_its_pod() {
    let mut node = Node::new();
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    let pods: Vec<_> = ["a", "b", "c"].iter().map(|n| node.pod(n, json!({}), json!([]))).collect();
    for pod in &pods {
        serve(&pod.netns, &pod.name, 8080);
    }
    let sticky = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &pods.iter().collect::<Vec<_>>(), &sticky);
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    let (first, _) = ask(&client.netns, at(CLUSTER_IP, 80)).expect("the Service answers");
    for _ in 0..20 {
        assert_eq!(ask(&client.netns, at(CLUSTER_IP, 80)).expect("the Service answers").0, first);
    }
    // Its pod leaves the Service: the client gets another one and stays with that.
    let rest: Vec<_> = pods.iter().filter(|p| p.name != first).collect();
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &rest, &sticky);
    eventually("another pod", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok_and(|(name, _)| name != first));
    let (second, _) = ask(&client.netns, at(CLUSTER_IP, 80)).expect("the Service answers");
    assert!((0..20).all(|_| ask(&client.netns, at(CLUSTER_IP, 80)).is_ok_and(|(name, _)| name == second)));
}

#[test]
fn both_families_and_host_ports_work_beside_each_other() {
    let mut node = Node::new();
    node.api.put(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.7.0/24", "fd00:7::/64"]}}),
    );
    node.netns.ip("addr add 2001:db8::1/64 dev up0 nodad");
    node.outside.ip("addr add 2001:db8::2/64 dev out0 nodad");
    node.start();
    let (client, server) =
        (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([{"containerPort": 8080, "hostPort": 8088}])));
    let v6 =
        |pod: &crate::node::Pod| pod.result["ips"][1]["address"].as_str().expect("an IPv6 address").trim_end_matches("/128").to_owned();
    serve(&server.netns, "web", 8080);
    assert!(ask(&client.netns, at(v6(&server), 8080)).is_ok_and(|(_, seen)| seen == v6(&client)), "pod to pod");
    let ips = json!({"clusterIPs": [CLUSTER_IP, "fd00:96::10"], "type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &ips);
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "web-6", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [v6(&server)], "conditions": {"ready": true}, "nodeName": "node-1"}],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }));
    eventually("IPv6 ClusterIP", || ask(&client.netns, at("fd00:96::10", 80)).is_ok_and(|(_, seen)| seen == v6(&client)));
    assert!(ask(&client.netns, at(CLUSTER_IP, 80)).is_ok(), "IPv4 ClusterIP");
    assert!(node.ask_from_outside(at(NODE_IP, 30080)).is_ok(), "IPv4 NodePort");
    assert!(node.ask_from_outside(at("2001:db8::1", 30080)).is_ok(), "IPv6 NodePort");
    assert!(node.ask_from_outside(at(NODE_IP, 8088)).is_ok_and(|(name, _)| name == "web"), "hostPort");
    node.delete_pod(&server).expect("DEL");
    assert!(node.ask_from_outside(at(NODE_IP, 8088)).is_err(), "the hostPort goes with its pod");
}

#[test]
fn a_load_balancers_address_is_answered_for_on_the_segment_and_moves_at_once() {
    let mut node = Node::new();
    node.netns.ip("addr add 2001:db8::1/64 dev up0 nodad");
    node.outside.ip("addr add 2001:db8::2/64 dev out0 nodad");
    let node_1 = |ready: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.7.0/24", "fd00:7::/64"]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    };
    node.api.put(node_1("True"));
    node.start();
    let server = node.pod("web", json!({}), json!([]));
    serve(&server.netns, "web", 8080);
    // Another machine had the addresses until now, as far as the segment knows.
    node.outside.ip("neigh replace 192.0.2.100 lladdr 02:00:00:00:00:99 dev out0 nud reachable");
    node.outside.ip("neigh replace 2001:db8::100 lladdr 02:00:00:00:00:99 dev out0 nud reachable");
    let v6 = server.result["ips"][1]["address"].as_str().expect("an IPv6 address").trim_end_matches("/128").to_owned();
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({}));
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "web-6", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [v6], "conditions": {"ready": true}, "nodeName": "node-1"}],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }));
    let service = |ours: bool| {
        let kind = if ours { "xebec.dev/LoadBalancerAddress" } else { "example.com/Address" };
        node.api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "LoadBalancer", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP, "fd00:96::10"], "ports": [{"port": 80, "targetPort": 8080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.100"}, {"ip": "2001:db8::100"}]}, "conditions": [{
                "type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
    };
    service(true);
    let vips = ["192.0.2.100", "2001:db8::100"];
    for vip in vips {
        eventually(vip, || node.ask_from_outside(at(vip, 80)).is_ok_and(|(name, _)| name == "web"));
        // And for who never heard of it.
        node.outside.ip(&format!("neigh del {vip} dev out0"));
        assert!(node.ask_from_outside(at(vip, 80)).is_ok(), "{vip} is asked for");
    }
    let answers = |vip: &str| {
        let _ = node.outside.try_ip(&format!("neigh del {vip} dev out0"));
        node.ask_from_outside(at(vip, 80)).is_ok()
    };
    // A node that is not ready gives them up, as it does when another implementation has them.
    node.api.put(node_1("False"));
    eventually("nobody answers", || !answers(vips[0]) && !answers(vips[1]));
    node.api.put(node_1("True"));
    eventually("it answers again", || answers(vips[0]) && answers(vips[1]));
    service(false);
    eventually("another's address", || !answers(vips[0]) && !answers(vips[1]));
}

#[test]
fn least_connections_counts_the_sockets_of_every_client_on_the_node() {
    let mut node = Node::new();
    node.start();
    let clients = [node.pod("one", json!({}), json!([])), node.pod("two", json!({}), json!([]))];
    let (a, b) = (node.pod("a", json!({}), json!([])), node.pod("b", json!({}), json!([])));
    serve(&a.netns, "a", 8080);
    serve(&b.netns, "b", 8080);
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "annotations": {"xebec.dev/lb-algorithm": "least-connections"}},
        "spec": {"clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
    }));
    node.endpoints("web", "TCP", 8080, &[&a, &b]);
    let mut open = Vec::new();
    let mut connect = |from: usize| {
        let mut stream = clients[from].netns.run(|| TcpStream::connect_timeout(&at(CLUSTER_IP, 80), Duration::from_millis(700)))?;
        let name = ask_on(&mut stream)?.0;
        open.push(stream);
        Ok::<_, std::io::Error>(name)
    };
    let mut first = String::new();
    eventually("the Service answers", || connect(0).map(|name| first = name).is_ok());
    // Both endpoints are written before the Service is: every second connection makes them equal again.
    let rest = (1..20).map(|n| connect(n % 2).expect("an answer"));
    let turns: Vec<String> = std::iter::once(first).chain(rest).collect();
    assert!(turns.chunks(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
}
