//! Direct server return: a client, the node it asks, and the node with the pod, on one segment.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use xebec_dataplane::{Forwarding, Routing, Vxlan, Xdp};

use crate::node::{NODE_IP, Node, OUTSIDE_IP, Pod, at, eventually, serve};
use crate::seeing::why;
use crate::upgrade::FromOutside;
use crate::xdp::{pass_all, without_checksum_offload};

const OTHER_IP: &str = "192.0.2.3";
/// The same of the other family: the node that is asked, the client, the node with the pod.
const NODE_V6: &str = "2001:db8::1";
const OUTSIDE_V6: &str = "2001:db8::2";
const OTHER_V6: &str = "2001:db8::3";
const PORT: u16 = 30080;
/// Leads to a port that counts what it is sent.
const SINK_PORT: u16 = 30090;

struct World {
    /// With the pod. Goes first.
    other: Node,
    /// Which clients ask.
    node: Node,
    pod: Pod,
    _wire: Option<[OwnedFd; 2]>,
}

/// Both nodes at a bridge, of which the client's namespace is the other end.
///
/// A driver's packets have complete checksums; without one, those of a device that makes many of one large packet are taken.
fn segment(node: &Node, other: &Node, driver: bool) {
    let outside = &node.outside;
    outside.ip("link add wire type bridge");
    outside.ip("link set wire up");
    other.netns.join("up0", outside, "out1");
    other.netns.ip(&format!("addr add {OTHER_IP}/24 dev up0"));
    other.netns.ip(&format!("route add default via {OUTSIDE_IP}"));
    node.netns.ip(&format!("addr add {NODE_V6}/64 dev up0 nodad"));
    other.netns.ip(&format!("addr add {OTHER_V6}/64 dev up0 nodad"));
    outside.ip("addr flush dev out0");
    for device in ["out0", "out1"] {
        outside.ip(&format!("link set {device} master wire"));
    }
    outside.ip(&format!("addr add {OUTSIDE_IP}/24 dev wire"));
    outside.ip(&format!("addr add {OUTSIDE_V6}/64 dev wire nodad"));
    if driver {
        ["out0", "out1", "wire"].iter().for_each(|device| without_checksum_offload(outside, device));
    }
}

fn world(driver: bool, routing: Routing) -> World {
    let mut node = Node::new();
    let mut other = node.beside(OTHER_IP);
    segment(&node, &other, driver);
    for (name, addresses, ranges) in [
        ("node-1", [NODE_IP, NODE_V6], ["10.244.7.0/24", "fd00:7::/64"]),
        ("node-2", [OTHER_IP, OTHER_V6], ["10.244.8.0/24", "fd00:8::/64"]),
    ] {
        let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
        node.api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
        }));
    }
    let mut wire = None;
    if driver {
        node.config.xdp = Xdp::All;
        wire = Some(pass_all(&node.outside, "out0"));
    }
    for (one, v6) in [(&mut node, NODE_V6), (&mut other, OTHER_V6)] {
        one.config.node_ips.push(v6.parse().expect("an address"));
        one.config.forwarding = Forwarding::Dsr;
        one.config.routing = routing;
        one.start();
    }
    let pod = other.pod("far", json!({}), json!([]));
    serve(&pod.netns, "far", 8080);
    sink(&pod);
    service(&node, &pod, &json!({}));
    World { other, node, pod, _wire: wire }
}

fn service(node: &Node, pod: &Pod, annotations: &Value) {
    let ports = [("tcp", "TCP", 80, PORT, 8080), ("udp", "UDP", 80, PORT, 8080), ("sink", "TCP", 90, SINK_PORT, 9090)];
    let of_service = ports.map(|(name, protocol, port, node_port, target)| {
        json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port, "targetPort": target})
    });
    let of_both = ["10.96.0.11", "fd00:96::11"];
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "default", "annotations": annotations},
        "spec": {"type": "NodePort", "clusterIP": of_both[0], "clusterIPs": of_both, "ports": of_service},
    }));
    let of_slice = ports.map(|(name, protocol, _, _, target)| json!({"name": name, "port": target, "protocol": protocol}));
    for (family, address) in [("IPv4", pod.ip.to_string()), ("IPv6", v6(pod))] {
        node.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("far-{family}"), "namespace": "default", "labels": {"kubernetes.io/service-name": "far"}},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}, "nodeName": "node-2"}], "ports": of_slice,
        }));
    }
}

/// A pod's other address.
fn v6(pod: &Pod) -> String {
    let address = pod.result["ips"][1]["address"].as_str().unwrap_or_else(|| panic!("{}", pod.result));
    address.trim_end_matches("/128").to_owned()
}

/// Answers each connection with the number of bytes it brought, once it has brought all.
fn sink(pod: &Pod) {
    let listener = pod.netns.run(|| TcpListener::bind(("::", 9090))).expect("a port");
    pod.netns.spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).is_ok() {
                let _ = stream.write_all(all.len().to_string().as_bytes());
            }
        }
    });
}

fn counted(node: &Node, path: &str) -> u64 {
    node.dataplane().status().forwards.get(path).copied().unwrap_or(0)
}

impl World {
    /// Whom the pod saw as it was asked over TCP.
    fn asked(&self) -> Option<String> {
        self.asked_at(NODE_IP)
    }

    fn asked_at(&self, address: &str) -> Option<String> {
        let (name, seen) = self.node.ask_from_outside(at(address, PORT)).ok()?;
        assert_eq!(name, "far");
        Some(seen)
    }

    /// The same over UDP, with a datagram of this size.
    fn asked_by_datagram(&self, address: &str, size: usize) -> std::io::Result<String> {
        let to: SocketAddr = at(address, PORT);
        self.node.in_home_cgroup(|| {
            self.node.outside.run(|| {
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                socket.connect(to)?;
                socket.send(&vec![7; size])?;
                let mut answer = [0; 64];
                let len = socket.recv(&mut answer)?;
                Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
            })
        })
    }

    /// Sends so many bytes to the pod; how many it says there were.
    fn brought(&self, address: &str, bytes: usize) -> std::io::Result<String> {
        self.node.in_home_cgroup(|| {
            self.node.outside.run(|| {
                let mut stream = TcpStream::connect_timeout(&at(address, SINK_PORT), Duration::from_secs(2))?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.write_all(&vec![7; bytes])?;
                stream.shutdown(Shutdown::Write)?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            })
        })
    }

    /// Nothing that the pod answered came by the node that was asked.
    fn answers_go_straight(&self) {
        let by_way = ["uplink_reply", "driver_reply", "uplink_service", "driver_service"].map(|path| counted(&self.node, path));
        assert_eq!(by_way, [0; 4]);
        assert!(counted(&self.other, "uplink_reply") > 0, "the pod's node gives answers the Service's address");
        let drops = [&self.node, &self.other].map(|node| node.dataplane().status().drops);
        assert!(!drops.iter().any(|d| d.keys().any(|reason| reason.starts_with("direct_") && reason != "direct_too_big")), "{drops:?}");
    }
}

fn clients_are_seen_and_answered(world: &World, sent: &str) {
    // With the largest datagram that the wire takes.
    for (address, client, largest) in [(NODE_IP, OUTSIDE_IP, 1472), (NODE_V6, OUTSIDE_V6, 1452)] {
        eventually("the pod sees its client", || world.asked_at(address).as_deref() == Some(client));
        let before = counted(&world.node, sent);
        eventually("as it is sent", || {
            assert_eq!(world.asked_at(address).as_deref(), Some(client));
            counted(&world.node, sent) > before
        });
        let right = format!("far {client}");
        eventually("datagrams too", || world.asked_by_datagram(address, 1).is_ok_and(|answer| answer == right));
        eventually("the pod's node has taken them out", || counted(&world.other, "direct_received") > 0);
        // Segments that fill the wire do not fit with a header around them.
        for _ in 0..3 {
            assert_eq!(world.brought(address, 1 << 20).expect("all of it arrives"), (1 << 20).to_string());
        }
        // The client is told how much fits, and sends in pieces what is more.
        eventually("a datagram that fills the wire", || world.asked_by_datagram(address, largest).is_ok_and(|answer| answer == right));
    }
    world.answers_go_straight();
}

#[test]
fn pods_elsewhere_see_their_clients_and_answer_them_straight() {
    let world = world(false, Routing::Native);
    clients_are_seen_and_answered(&world, "uplink_direct");
    let status = world.node.dataplane().status();
    assert_eq!(status.forwarding, "dsr");
    let why = why(&world.node, OUTSIDE_IP, NODE_IP, PORT);
    let step = why["steps"][0]["what"].as_str().unwrap_or_else(|| panic!("{why}"));
    assert_eq!(step, format!("sends it as it is to {}:8080, inside a packet of {NODE_IP}", world.pod.ip));
    assert_eq!(why["fate"]["device"], "up0", "{why}");

    // A Service has the last word.
    service(&world.node, &world.pod, &json!({"xebec.dev/forwarding-mode": "snat"}));
    eventually("the pod sees the node", || world.asked().as_deref() == Some(NODE_IP));
    assert_eq!(world.node.dataplane().status().forwarding, "dsr, 1 Services otherwise");
    service(&world.node, &world.pod, &json!({"xebec.dev/forwarding-mode": "direct"}));
    eventually("what means nothing is told", || {
        world.node.dataplane().status().errors.iter().any(|e| e.contains("xebec.dev/forwarding-mode") && e.contains("snat or dsr"))
    });
    eventually("and counts for nothing", || world.asked().as_deref() == Some(OUTSIDE_IP));

    // Policy judges by the client, and what only looks as if a node had sent it is nobody's.
    let allow = |from: &str| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": from}}]}]});
    world.node.policy("clients", allow("198.51.100.0/24"));
    eventually("another client's rule does not let it in", || world.asked().is_none());
    world.node.policy("clients", allow("192.0.2.2/32"));
    eventually("its own does", || world.asked().as_deref() == Some(OUTSIDE_IP));
}

#[test]
fn the_driver_sends_them_and_connections_outlive_agents() {
    let mut world = world(true, Routing::Native);
    clients_are_seen_and_answered(&world, "driver_direct");
    let ip: IpAddr = NODE_IP.parse().expect("an address");
    let mut connection = FromOutside::start(&world.node, ip, PORT);
    for kill in [true, false] {
        world.node.stop(kill);
        world.other.stop(kill);
        assert!(world.asked().is_some(), "without agents");
        world.node.start();
        world.other.start();
        assert_eq!(world.asked().as_deref(), Some(OUTSIDE_IP), "at once");
        assert!(connection.lives());
    }
    assert!(connection.end(), "the connection lived to its end");
    world.answers_go_straight();
}

#[test]
fn a_tunnel_between_nodes_carries_them_too() {
    let world = world(false, Routing::Vxlan(Vxlan { vni: 78, port: 4789 }));
    clients_are_seen_and_answered(&world, "uplink_direct");
}

/// The client's namespace as a router between the nodes, on whose way to the pod packets may have so many bytes.
fn hop(world: &World, mtu: u32) {
    let (outside, node) = (&world.node.outside, &world.node.netns);
    outside.run(|| {
        for (name, value) in [("ipv4/conf/all/forwarding", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/all/send_redirects", "0")] {
            std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    });
    for (pod, bits, router, other) in [(world.pod.ip.to_string(), 32, OUTSIDE_IP, OTHER_IP), (v6(&world.pod), 128, OUTSIDE_V6, OTHER_V6)] {
        outside.ip(&format!("route replace {pod}/{bits} via {other} dev wire mtu {mtu}"));
        node.ip(&format!("route replace {pod}/{bits} via {router} dev up0"));
    }
}

#[test]
fn clients_hear_what_a_router_between_the_nodes_says() {
    for driver in [false, true] {
        let world = world(driver, Routing::Native);
        let way = if driver { "driver_direct" } else { "uplink_direct" };
        clients_are_seen_and_answered(&world, way);
        hop(&world, 1400);
        let told = || counted(&world.node, "direct_error");
        for (address, client) in [(NODE_IP, OUTSIDE_IP), (NODE_V6, OUTSIDE_V6)] {
            let before = told();
            let right = format!("far {client}");
            eventually("a datagram that fills the wire", || world.asked_by_datagram(address, 1440).is_ok_and(|answer| answer == right));
            assert_eq!(world.brought(address, 1 << 20).expect("all of it arrives"), (1 << 20).to_string());
            assert!(told() > before, "{address}: the router's word reached the client");
        }
        world.answers_go_straight();
        // Who begins a connection while there is no way does not wait in vain.
        for pod in [world.pod.ip.to_string(), v6(&world.pod)] {
            world.node.outside.ip(&format!("route replace unreachable {pod}"));
        }
        for address in [NODE_IP, NODE_V6] {
            let connect = || world.node.outside.run(|| TcpStream::connect_timeout(&at(address, PORT), Duration::from_secs(5)));
            eventually("the client is told", || {
                connect().is_err_and(|e| matches!(e.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable))
            });
        }
    }
}
