//! Services as others than pods use them: NodePorts, addresses of load balancers, external addresses, host ports.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use serde_json::json;
use xebec_tests::cluster::until;
use xtask::up::LbMode;

use crate::{
    client::{by_tcp, by_udp, from_node, from_pod, http_status, inside, tcp, udp},
    service,
    world::{PORT, UDP_PORT, World, all_answer, apply, seen_by},
};

const A: &[&str] = &["a1", "a2"];

pub fn node_ports(world: &World) {
    let (cluster, client) = (&world.cluster, world.uid("client"));
    service(cluster, "ports", "a", json!({"type": "NodePort"}));
    let (port, by_datagrams) = (world.node_port("ports", "tcp"), world.node_port("ports", "udp"));
    for node in 1..=3 {
        for to in cluster.node_ips(node) {
            all_answer("outside to NodePort", A, || tcp(to, port));
            all_answer("outside to NodePort, UDP", A, || udp(to, by_datagrams));
        }
        let to = cluster.node_ip(node);
        all_answer("pod to NodePort", A, || from_pod(&client, &by_tcp(to, port)));
        for own in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            all_answer("node to its loopback", A, || from_node(cluster, node, &by_tcp(own, port)));
            all_answer("node to its loopback, UDP", A, || from_node(cluster, node, &by_udp(own, by_datagrams)));
        }
    }

    for to in cluster.node_ips(1) {
        all_answer("packets of a pod to NodePort", A, || inside(&client, move || tcp(to, port)));
    }
    service(cluster, "local", "b", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}));
    let (port, by_datagrams) = (world.node_port("local", "tcp"), world.node_port("local", "udp"));
    for (family, own) in world.outside().into_iter().enumerate() {
        let here = cluster.node_ips(2)[family];
        all_answer("the node with the endpoint", &["b2"], || tcp(here, port));
        assert_eq!(seen_by("an answer", || tcp(here, port)), own, "the client's own address");
        assert_eq!(seen_by("an answer", || udp(here, by_datagrams)), own, "the client's own address");
        for node in [1, 3] {
            let to = cluster.node_ips(node)[family];
            let silence = tcp(to, port).expect_err("node has no endpoint");
            assert_eq!(silence.kind(), ErrorKind::TimedOut, "{silence}");
        }
        // Pods reach it through their own node, whose endpoints or not do not matter to them.
        let own_node = cluster.node_ips(3)[family];
        all_answer("a pod", &["b2"], || from_pod(&client, &by_tcp(own_node, port)));
    }
}

/// Where a Service is reached directly its pods see their clients, whichever node was asked; who is in the cluster is answered
/// as ever.
pub fn direct_return(world: &World) {
    let cluster = &world.cluster;
    service(cluster, "direct", "b", json!({"type": "NodePort"}));
    cluster.kubectl(&["annotate", "service", "direct", "xebec.dev/forwarding-mode=dsr"]);
    let (port, by_datagrams) = (world.node_port("direct", "tcp"), world.node_port("direct", "udp"));
    let sees = |answer: crate::client::Answer, own: IpAddr| answer.is_ok_and(|(name, seen)| name == "b2" && seen == own);
    let [beside, elsewhere] = ["a2", "client"].map(|pod| world.uid(pod));
    for (family, own) in world.outside().into_iter().enumerate() {
        for node in 1..=3 {
            let to = cluster.node_ips(node)[family];
            until("the pod sees its client", || sees(tcp(to, port), own));
            until("by datagrams too", || sees(udp(to, by_datagrams), own));
        }
        let first = cluster.node_ips(1)[family];
        for pod in [&beside, &elsewhere] {
            all_answer("packets of a pod", &["b2"], || inside(pod, move || tcp(first, port)));
        }
        for node in [2, 3] {
            all_answer("a node", &["b2"], || from_node(cluster, node, &by_tcp(first, port)));
        }
    }
}

/// Every node sees an annotation that means nothing; its author gets one Event, with the Service.
pub fn mistakes_are_told_once(world: &World) {
    let cluster = &world.cluster;
    cluster.kubectl(&["annotate", "--overwrite", "service", "direct", "xebec.dev/forwarding-mode=DSR"]);
    let noticed = |node: u8| {
        let log = std::fs::read_to_string(cluster.node(node).logs().join("agent.log")).expect("the agent's log");
        log.lines().any(|line| line.contains("default/direct") && line.contains("which means nothing"))
    };
    until("every node has noticed", || (1..=3).all(noticed));
    until("its author is told", || cluster.kubectl(&["describe", "service", "direct"]).contains("it may be snat or dsr"));
    let events = world.get("events", "--field-selector=reason=ServiceAnnotationInvalid");
    let events = events["items"].as_array().expect("a list");
    assert_eq!(events.len(), 1, "{events:?}");
}

/// A pod's port on its node, and nowhere else.
pub fn host_port(world: &World) {
    world.server("hp", "hp", 3, json!({"hostPort": 8088}));
    world.ready();
    let a1 = world.uid("a1");
    for (here, elsewhere) in world.cluster.node_ips(3).into_iter().zip(world.cluster.node_ips(2)) {
        all_answer("outside to the host port", &["hp"], || tcp(here, 8088));
        all_answer("a pod", &["hp"], || from_pod(&a1, &by_tcp(here, 8088)));
        assert_eq!(tcp(elsewhere, 8088).expect_err("another node").kind(), ErrorKind::ConnectionRefused);
    }
    all_answer("its node", &["hp"], || from_node(&world.cluster, 3, &by_tcp(Ipv4Addr::LOCALHOST.into(), 8088)));
    world.cluster.kubectl(&["delete", "pod", "hp", "--wait=true"]);
    let here = world.cluster.node_ip(3);
    until("the port goes with the pod", || tcp(here, 8088).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
}

/// A way to an address through a node; it goes with the test, and with the device.
struct Route(String);

impl Route {
    fn new(to: IpAddr, via: IpAddr) -> Route {
        let done = Command::new("ip").args(["route", "replace", &to.to_string(), "via", &via.to_string()]).status().expect("ip runs");
        assert!(done.success(), "a route to {to} via {via}");
        Route(to.to_string())
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // Where the cluster is down already its device has taken the route along.
        let _ = Command::new("ip").args(["route", "del", &self.0]).output();
    }
}

pub fn external_ips(world: &World) {
    let (cluster, client) = (&world.cluster, world.uid("client"));
    let external = world.free(40);
    service(cluster, "external", "a", json!({"externalIPs": external}));
    for (&to, via) in external.iter().zip(cluster.node_ips(3)) {
        all_answer("pod to external address", A, || from_pod(&client, &by_tcp(to, PORT)));
        all_answer("node to external address", A, || from_node(cluster, 1, &by_tcp(to, PORT)));
        let _route = Route::new(to, via);
        all_answer("outside to external address", A, || tcp(to, PORT));
        all_answer("outside to external address, UDP", A, || udp(to, UDP_PORT));
    }
}

/// Without an endpoint everybody is told at once.
pub fn nobody_there(world: &World) {
    let cluster = &world.cluster;
    service(cluster, "nobody", "nobody", json!({"type": "NodePort"}));
    let (client, port, by_datagrams) = (world.uid("client"), world.node_port("nobody", "tcp"), world.node_port("nobody", "udp"));
    let refused = |what: &str, ask: &mut dyn FnMut() -> crate::client::Answer| {
        let error = ask().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}: {error}");
    };
    for (vip, node) in world.cluster_ips("nobody").into_iter().zip(cluster.node_ips(2)) {
        // Before the Service is known nobody answers at all.
        until("the Service is known everywhere", || {
            let told = |answer: crate::client::Answer| answer.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            told(tcp(node, port)) && told(udp(node, by_datagrams)) && told(inside(&client, move || tcp(vip, PORT)))
        });
        refused("pod to ClusterIP", &mut || from_pod(&client, &by_tcp(vip, PORT)));
        refused("node to ClusterIP", &mut || from_node(cluster, 3, &by_tcp(vip, PORT)));
        refused("packets to ClusterIP", &mut || inside(&client, move || tcp(vip, PORT)));
        refused("datagrams to ClusterIP", &mut || inside(&client, move || udp(vip, UDP_PORT)));
        refused("outside to NodePort", &mut || tcp(node, port));
        refused("outside to NodePort, UDP", &mut || udp(node, by_datagrams));
        refused("pod to NodePort", &mut || from_pod(&client, &by_tcp(node, port)));
    }
}

fn pool(world: &World) {
    let (first, last) = (world.free(45), world.free(55));
    let ranges: Vec<_> = first.iter().zip(&last).map(|(start, stop)| json!({"start": start, "stop": stop})).collect();
    apply(
        &world.cluster,
        &json!({"apiVersion": "xebec.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "segment"}, "spec": {"ranges": ranges}}),
    );
}

pub fn source_ranges(world: &World) {
    let (cluster, client) = (&world.cluster, world.uid("client"));
    pool(world);
    service(cluster, "lb", "a", json!({"type": "LoadBalancer"}));
    let addresses = world.balancer_ips("lb");
    for &to in &addresses {
        all_answer("outside to the balancer", A, || tcp(to, PORT));
        all_answer("outside to the balancer, UDP", A, || udp(to, UDP_PORT));
        all_answer("pod to the balancer", A, || from_pod(&client, &by_tcp(to, PORT)));
        all_answer("node to the balancer", A, || from_node(cluster, 2, &by_tcp(to, PORT)));
    }
    let allow = |ranges: &[String]| {
        let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}}).to_string();
        cluster.kubectl(&["patch", "service", "lb", "--type=merge", "-p", &patch]);
    };
    allow(&["198.51.100.0/24".to_owned(), "2001:db8:1::/64".to_owned()]);
    for &to in &addresses {
        until("strangers are not heard", || tcp(to, PORT).is_err_and(|e| e.kind() == ErrorKind::TimedOut));
    }
    let own: Vec<String> = world.outside().iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })).collect();
    allow(&own);
    for &to in &addresses {
        all_answer("who is in the ranges", A, || tcp(to, PORT));
    }
}

/// externalTrafficPolicy Local: the announcement, load balancers' checks and the source address follow the endpoint.
pub fn local_balancer(world: &World) {
    let cluster = &world.cluster;
    service(cluster, "lb-local", "b", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
    let addresses = world.balancer_ips("lb-local");
    for (&to, own) in addresses.iter().zip(world.outside()) {
        all_answer("outside to the local balancer", &["b2"], || tcp(to, PORT));
        assert_eq!(seen_by("an answer", || tcp(to, PORT)), own, "the client's own address");
    }
    let check = world.get("service", "lb-local")["spec"]["healthCheckNodePort"].as_u64().expect("a port") as u16;
    let status = |node: u8, port: u16, path: &str| http_status(cluster.node_ip(node), port, path);
    until("the node with the endpoint is healthy", || status(2, check, "/") == Some(200));
    until("others are not", || [1, 3].into_iter().all(|node| status(node, check, "/") == Some(503)));
    until("nodes are healthy", || (1..=3).all(|node| status(node, 10256, "/healthz") == Some(200)));

    cluster.kill(2, "agent");
    for _ in 0..10 {
        assert_eq!((status(2, check, "/"), status(2, 10256, "/healthz")), (Some(200), Some(200)), "without the agent");
        for &to in &addresses {
            assert!(tcp(to, PORT).is_ok(), "without the agent");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.bring_up();

    cluster.kubectl(&["delete", "pod", "b2", "--wait=true"]);
    until("unhealthy without an endpoint", || status(2, check, "/") == Some(503));
    world.server("b3", "b", 3, json!({}));
    until("healthy elsewhere", || status(3, check, "/") == Some(200));
    for &to in &addresses {
        all_answer("the address has moved", &["b3"], || tcp(to, PORT));
    }
}

/// With direct server return for the whole cluster, as it runs: every kind of Service answers as before, and pods see who asks from
/// outside.
pub fn everything_direct(world: &mut World) {
    world.cluster.set_lb_mode(LbMode::Dsr);
    // From here on for everybody again.
    world.cluster.kubectl(&["patch", "service", "lb", "--type=merge", "-p", r#"{"spec":{"loadBalancerSourceRanges":null}}"#]);
    let (cluster, client) = (&world.cluster, world.uid("client"));
    service(cluster, "sticky", "a", json!({"type": "NodePort", "sessionAffinity": "ClientIP"}));
    let [ports, sticky, local, nobody] = ["ports", "sticky", "local", "nobody"].map(|name| world.node_port(name, "tcp"));
    let by_datagrams = world.node_port("ports", "udp");
    let (externals, balancers, cluster_ips) = (world.free(40), world.balancer_ips("lb"), world.cluster_ips("ports"));
    for (family, own) in world.outside().into_iter().enumerate() {
        let seen = |(name, seen): (String, IpAddr)| match seen == own {
            true => Ok((name, seen)),
            false => Err(std::io::Error::other(format!("{name} sees {seen}"))),
        };
        for node in 1..=3 {
            let to = cluster.node_ips(node)[family];
            all_answer("outside to NodePort", A, || tcp(to, ports).and_then(seen));
            all_answer("outside to NodePort, UDP", A, || udp(to, by_datagrams).and_then(seen));
            all_answer("node to NodePort", A, || from_node(cluster, node, &by_tcp(to, ports)));
        }
        let [first, _, third] = [1, 2, 3].map(|node| cluster.node_ips(node)[family]);
        let chosen = answering(|| tcp(first, sticky).and_then(seen));
        assert!((0..10).all(|_| answering(|| tcp(first, sticky)) == chosen), "a client keeps its pod");
        all_answer("the node with the endpoint", &["b3"], || tcp(third, local).and_then(seen));
        until("nobody is there", || tcp(first, nobody).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
        {
            let _route = Route::new(externals[family], third);
            all_answer("outside to external address", A, || tcp(externals[family], PORT).and_then(seen));
        }
        all_answer("outside to the balancer", A, || tcp(balancers[family], PORT).and_then(seen));
        all_answer("outside to the balancer, UDP", A, || udp(balancers[family], UDP_PORT).and_then(seen));
        // Who is in the cluster.
        all_answer("pod to ClusterIP", A, || from_pod(&client, &by_tcp(cluster_ips[family], PORT)));
        let cluster_ip = cluster_ips[family];
        all_answer("packets to ClusterIP", A, || inside(&client, move || tcp(cluster_ip, PORT)));
        all_answer("packets to NodePort", A, || inside(&client, move || tcp(first, ports)));
        all_answer("pod to the balancer", A, || from_pod(&client, &by_tcp(balancers[family], PORT)));
    }
}

/// Asks until somebody answers; who it was.
fn answering(mut ask: impl FnMut() -> crate::client::Answer) -> String {
    let mut name = None;
    until("an answer", || {
        name = ask().ok().map(|(name, _)| name);
        name.is_some()
    });
    name.expect("it has answered")
}
