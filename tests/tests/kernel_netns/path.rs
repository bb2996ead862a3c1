//! The way of packets between pods and other machines: past the node's stack or through it, and what senders are told where it
//! takes less than they send. Both families; the far pod is behind a router that the outside namespace plays.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xebec_dataplane::{HostRouting, Routing, Vxlan};

use crate::net::Netns;
use crate::node::{DEADLINE, NODE_IP, Node, OUTSIDE_IP, Pod, at, eventually};
use crate::seeing::why;

/// Addresses of one family: of the node, the router's end towards it, the far pod, its range, the Service before it.
struct Net {
    v4: bool,
    node: &'static str,
    router: &'static str,
    far_range: &'static str,
    far: &'static str,
    service: &'static str,
}

const NETS: [Net; 2] = [
    Net { v4: true, node: NODE_IP, router: OUTSIDE_IP, far_range: "10.244.8.0/24", far: "10.244.8.5", service: "10.96.0.11" },
    Net { v4: false, node: "2001:db8::1", router: "2001:db8::2", far_range: "fd00:8::/64", far: "fd00:8::5", service: "fd00:96::11" },
];
const PORT: u16 = 8080;
const NODE_PORT: u16 = 30081;

struct World {
    node: Node,
    far: Netns,
    pod: Pod,
}

impl World {
    /// A node with a pod; another one with the far pod, which serves a NodePort, behind the outside namespace.
    fn new(routing: Routing, host_routing: HostRouting) -> World {
        let mut node = Node::new();
        node.config.routing = routing;
        node.config.host_routing = host_routing;
        let far = Netns::new();
        let (outside, netns) = (&node.outside, &node.netns);
        outside.join("mid0", &far, "far0");
        outside.run(|| {
            for family in ["ipv4", "ipv6"] {
                std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").expect("the router forwards");
            }
        });
        netns.ip("addr add 2001:db8::1/64 dev up0 nodad");
        outside.ip("addr add 2001:db8::2/64 dev out0 nodad");
        for (to, by, net) in [("198.51.100.1", "198.51.100.2", &NETS[0]), ("2001:db8:1::1", "2001:db8:1::2", &NETS[1])] {
            let (bits, full, fresh) = if net.v4 { (24, 32, "") } else { (64, 128, "nodad") };
            outside.ip(&format!("addr add {to}/{bits} dev mid0 {fresh}"));
            far.ip(&format!("addr add {by}/{bits} dev far0 {fresh}"));
            far.ip(&format!("addr add {}/{full} dev lo {fresh}", net.far));
            far.ip(&format!("route add default via {to}"));
            outside.ip(&format!("route add {} via {by}", net.far_range));
        }
        for range in ["10.244.7.0/24 via 192.0.2.1", "fd00:7::/64 via 2001:db8::1"] {
            outside.ip(&format!("route add {range}"));
        }
        let address = |address: &str| json!({"type": "InternalIP", "address": address});
        for (name, ranges, addresses) in [
            ("node-1", ["10.244.7.0/24", "fd00:7::/64"], NETS.map(|net| address(net.node))),
            ("node-2", NETS.map(|net| net.far_range), NETS.map(|net| address(net.router))),
        ] {
            node.api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
            }));
        }
        node.config.cluster_cidrs.push("fd00::/16".parse().expect("a range"));
        for net in &NETS {
            service(&node, net);
            serve(&far, net.far);
        }
        node.start();
        let pod = node.pod("client", json!({}), json!([]));
        World { node, far, pod }
    }

    fn at_router(&self, mtu: u32) {
        self.node.outside.ip(&format!("link set mid0 mtu {mtu}"));
        self.far.ip(&format!("link set far0 mtu {mtu}"));
    }

    /// The node's own route to the far pods takes less; the routing helper says so of one that is locked.
    fn at_node(&self, net: &Net, mtu: u32, locked: bool) {
        let mtu = format!("mtu {}{mtu}", if locked { "lock " } else { "" });
        self.node.netns.ip(&format!("route replace {} via {} dev up0 {mtu} metric 1", net.far_range, net.router));
        let family = if net.v4 { "-4" } else { "-6" };
        let shown = self.node.netns.ip(&format!("{family} route show {}", net.far_range));
        assert!(shown.contains(&mtu), "{shown}");
    }

    /// How many packets were too big and answered by the programs.
    fn too_big(&self) -> u64 {
        self.node.dataplane().status().drops.get("too_big").copied().unwrap_or(0)
    }

    /// What the node's stack has passed on of a family.
    fn forwarded(&self, v4: bool) -> u64 {
        if v4 { self.counter(true, "Ip", "ForwDatagrams") } else { self.counter(false, "Ip6OutForwDatagrams", "") }
    }

    /// A counter of the node's stack: in IPv4 of a group.
    fn counter(&self, v4: bool, group: &str, name: &str) -> u64 {
        let file = if v4 { "snmp" } else { "snmp6" };
        let text = self.node.netns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters"));
        if v4 {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
            let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
            let place = names.split(' ').position(|n| n == name).expect("the counter");
            return values.split(' ').nth(place).expect("a value").parse().expect("a number");
        }
        let value = text.lines().find_map(|line| line.strip_prefix(group)).expect("the counter");
        value.trim().parse().expect("a number")
    }

    /// ICMP errors of the kind that tell what fits which the node's stack has sent.
    fn complaints(&self, v4: bool) -> u64 {
        if v4 { self.counter(true, "Icmp", "OutDestUnreachs") } else { self.counter(false, "Icmp6OutPktTooBigs", "") }
    }

    /// Somebody is told what fits, and not by the stack.
    fn answered(&self, net: &Net, what: &str, ask: &mut dyn FnMut()) {
        let before = (self.too_big(), self.complaints(net.v4));
        ask();
        let after = (self.too_big(), self.complaints(net.v4));
        assert!(after.0 > before.0, "{what}: nobody was told by the programs");
        assert_eq!(after.1, before.1, "{what}: the stack has told somebody");
    }

    /// What programs have passed on themselves.
    fn routed(&self) -> u64 {
        self.node.dataplane().status().forwards.get("routed").copied().unwrap_or(0)
    }
}

/// A Service with the far pod behind it.
fn service(node: &Node, net: &Net) {
    let name = if net.v4 { "far4" } else { "far6" };
    let port = |protocol: &str| {
        json!({"name": protocol.to_lowercase(), "port": PORT, "targetPort": PORT, "protocol": protocol,
            "nodePort": NODE_PORT + u16::from(!net.v4)})
    };
    let spec = json!({"type": "NodePort", "clusterIP": net.service, "clusterIPs": [net.service],
        "ipFamilies": [if net.v4 { "IPv4" } else { "IPv6" }], "ports": [port("TCP"), port("UDP")]});
    node.api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}));
    let ports: Vec<Value> = ["TCP", "UDP"].map(|p| json!({"name": p.to_lowercase(), "port": PORT, "protocol": p})).to_vec();
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": if net.v4 { "IPv4" } else { "IPv6" },
        "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": [net.far], "conditions": {"ready": true}, "nodeName": "node-2"}], "ports": ports,
    }));
}

/// Serves TCP and UDP at an address: tells how many bytes came, of all of a connection or of a datagram.
fn serve(netns: &Netns, address: &str) {
    let to = at(address, PORT);
    let (tcp, udp) = netns.run(|| (TcpListener::bind(to), UdpSocket::bind(to)));
    let (tcp, udp) = (tcp.expect("a TCP port"), udp.expect("a UDP port"));
    netns.spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(all.len().to_string().as_bytes());
            });
        }
    });
    netns.spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(len.to_string().as_bytes(), from);
        }
    });
}

/// A UDP socket that lets nobody cut up its datagrams.
fn whole(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
    let (level, name, value) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    let value: libc::c_int = value;
    // SAFETY: the kernel reads one int at a live reference.
    let code = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as u32) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket.connect(to).expect("an address");
    socket
}

/// Bytes of headers before a datagram's.
fn headers(to: SocketAddr) -> usize {
    if to.is_ipv4() { 28 } else { 48 }
}

/// Sends packets of 1500 bytes (or what the first device takes) until the sender is told that they are too large; then one
/// that fits must arrive, and one byte more must be refused at once.
fn finds(netns: &Netns, to: SocketAddr, first: usize, fits: usize) {
    netns.run(|| {
        let (socket, headers) = (whole(to), headers(to));
        let end = Instant::now() + DEADLINE;
        loop {
            match socket.send(&vec![0; first - headers]) {
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => break,
                Ok(_) | Err(_) => assert!(Instant::now() < end, "{to}: nobody says what fits"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let too_large = socket.send(&vec![0; fits + 1 - headers]);
        assert_eq!(too_large.map_err(|e| e.raw_os_error()), Err(Some(libc::EMSGSIZE)), "{to}");
        // What was told is told once more.
        let _ = socket.take_error();
        socket.send(&vec![0; fits - headers]).unwrap_or_else(|e| panic!("{to} with what fits: {e}"));
        // Before anybody knew, a larger one may have come through.
        let (mut answer, expected) = ([0; 64], (fits - headers).to_string());
        loop {
            let len = socket.recv(&mut answer).unwrap_or_else(|e| panic!("{to} answers: {e}"));
            if answer[..len] == *expected.as_bytes() {
                break;
            }
        }
    });
}

/// A connection that sends a lot, twice: between the two something happens.
fn transfers(netns: &Netns, to: SocketAddr, between: impl FnOnce() + Send) {
    const HALF: usize = 300_000;
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_or_else(|e| panic!("{to}: {e}"));
        for timeout in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            timeout(&stream, Some(DEADLINE)).expect("a timeout");
        }
        stream.write_all(&vec![1; HALF]).unwrap_or_else(|e| panic!("{to}: {e}"));
        between();
        stream.write_all(&vec![2; HALF]).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.shutdown(Shutdown::Write).expect("the end");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(answer, (2 * HALF).to_string(), "{to}");
    });
}

fn nothing() {}

#[test]
fn packets_between_nodes_pass_by_the_stack_or_go_through_it_as_told() {
    for host_routing in [HostRouting::Bpf, HostRouting::Kernel] {
        let world = World::new(Routing::Native, host_routing);
        for net in &NETS {
            transfers(&world.pod.netns, at(net.far, PORT), nothing);
            let (passed, routed) = (world.forwarded(net.v4), world.routed());
            transfers(&world.pod.netns, at(net.far, PORT), nothing);
            let (passed, routed) = (world.forwarded(net.v4) - passed, world.routed() - routed);
            match host_routing {
                // Answers come in by the uplink, and go to the pod straight as well.
                HostRouting::Bpf => assert!(passed == 0 && routed > 10, "{passed} through the stack, {routed} past it"),
                HostRouting::Kernel => assert!(passed > 10 && routed == 0, "{passed} through the stack, {routed} past it"),
            }
        }
        let why = why(&world.node, "default/client", NETS[0].far, PORT);
        let steps: Vec<&str> = why["steps"].as_array().expect("steps").iter().filter_map(|step| step["program"].as_str()).collect();
        assert_eq!(steps, ["connect4", "from_pod", "to_uplink"], "{why}");
        assert_eq!(why["fate"], json!({"verdict": "leaves", "device": "up0"}), "{why}");
    }
}

#[test]
fn a_router_that_takes_less_is_heard_by_pods_and_clients() {
    let world = World::new(Routing::Native, HostRouting::Bpf);
    for net in &NETS {
        // While a connection lives, and for one that begins on the narrow way.
        transfers(&world.pod.netns, at(net.far, PORT), || world.at_router(1400));
        transfers(&world.pod.netns, at(net.service, PORT), nothing);
        finds(&world.pod.netns, at(net.far, PORT), 1500, 1400);
        // Translated at the pod's device: no socket hook sees this one.
        world.node.in_home_cgroup(|| {
            finds(&world.pod.netns, at(net.service, PORT), 1500, 1400);
            transfers(&world.pod.netns, at(net.service, PORT), || world.at_router(1300));
        });
        world.at_router(1500);
    }
}

#[test]
fn a_route_of_the_nodes_that_takes_less_is_told_to_pods_and_clients() {
    let world = World::new(Routing::Native, HostRouting::Bpf);
    for net in &NETS {
        world.at_node(net, 1350, false);
        transfers(&world.pod.netns, at(net.far, PORT), nothing);
        finds(&world.pod.netns, at(net.far, PORT), 1500, 1350);
        world.node.in_home_cgroup(|| finds(&world.pod.netns, at(net.service, PORT), 1500, 1350));
        assert_eq!(world.too_big(), 0, "that is the stack's to tell");
        // A client of a NodePort is told about its own packet, of whose translation it knows nothing.
        let node_port = at(net.node, NODE_PORT + u16::from(!net.v4));
        world.node.in_home_cgroup(|| {
            finds(&world.node.outside, node_port, 1500, 1350);
            transfers(&world.node.outside, node_port, nothing);
        });
    }
}

#[test]
fn a_route_of_which_the_table_says_that_it_takes_less_is_told_without_the_stack() {
    let world = World::new(Routing::Native, HostRouting::Bpf);
    for net in &NETS {
        let pod = &world.pod.netns;
        let answered = |what: &str, ask: &mut dyn FnMut()| world.answered(net, what, ask);
        // Each time narrower: what a pod was told once, it knows of all that it sends to that address.
        world.at_node(net, 1440, true);
        answered("UDP", &mut || finds(pod, at(net.far, PORT), 1500, 1440));
        // A connection that lives has its shortcut.
        answered("TCP", &mut || transfers(pod, at(net.far, PORT), || world.at_node(net, 1400, true)));
        world.node.in_home_cgroup(|| {
            answered("UDP to a Service", &mut || finds(pod, at(net.service, PORT), 1500, 1400));
            answered("TCP to a Service", &mut || transfers(pod, at(net.service, PORT), || world.at_node(net, 1350, true)));
            let (client, node_port) = (&world.node.outside, at(net.node, NODE_PORT + u16::from(!net.v4)));
            answered("UDP to a NodePort", &mut || finds(client, node_port, 1500, 1350));
            answered("TCP to a NodePort", &mut || transfers(client, node_port, || world.at_node(net, 1300, true)));
        });
    }
}

/// Lets the outside namespace be the other node's end of the tunnel.
fn other_end(world: &World) {
    let (netns, outside) = (&world.node.netns, &world.node.outside);
    eventually("the other node's end is known", || {
        let known = |family: &str, end: &str| netns.ip(&format!("{family} neigh show dev xebec-vxlan nud permanent")).contains(end);
        known("-4", "10.244.8.0") && known("-6", "fd00:8::")
    });
    let word_after = |text: String, word: &str| {
        let mut words = text.split_whitespace().skip_while(|w| *w != word);
        words.nth(1).unwrap_or_else(|| panic!("no {word} in {text}")).to_owned()
    };
    let own = word_after(netns.ip("-o link show xebec-vxlan"), "link/ether");
    let far = word_after(netns.ip("-4 neigh show dev xebec-vxlan nud permanent"), "lladdr");
    outside.ip(&format!("link add end type vxlan id 77 dstport 4789 local {OUTSIDE_IP} nolearning"));
    outside.ip(&format!("link set end address {far} mtu 1450 up"));
    for (range, via) in [("10.244.7.0/24", "10.244.7.0"), ("fd00:7::/64", "fd00:7::")] {
        outside.ip(&format!("neigh add {via} lladdr {own} dev end nud permanent"));
        let family = if range.contains(':') { "-6" } else { "-4" };
        outside.ip(&format!("{family} route del {range}"));
        outside.ip(&format!("route add {range} via {via} dev end onlink"));
    }
    outside.run(|| {
        let fdb = ["fdb", "append", own.as_str(), "dev", "end", "dst", NODE_IP];
        assert!(std::process::Command::new("bridge").args(fdb).status().expect("bridge runs").success());
    });
}

#[test]
fn a_tunnel_takes_packets_straight_and_tells_who_sends_more() {
    let world = World::new(Routing::Vxlan(Vxlan { vni: 77, port: 4789 }), HostRouting::Bpf);
    other_end(&world);
    for net in &NETS {
        transfers(&world.pod.netns, at(net.far, PORT), nothing);
        let (passed, routed) = (world.forwarded(net.v4), world.routed());
        transfers(&world.pod.netns, at(net.service, PORT), nothing);
        let (passed, routed) = (world.forwarded(net.v4) - passed, world.routed() - routed);
        assert!(passed == 0 && routed > 10, "{passed} through the stack, {routed} past it");
        // The client's network takes 50 bytes more than the tunnel.
        let node_port = at(net.node, NODE_PORT + u16::from(!net.v4));
        world.node.in_home_cgroup(|| {
            world.answered(net, "UDP to a NodePort", &mut || finds(&world.node.outside, node_port, 1500, 1450));
            transfers(&world.node.outside, node_port, nothing);
        });
        // Behind its other end it is narrower.
        transfers(&world.pod.netns, at(net.far, PORT), || world.at_router(1300));
        finds(&world.pod.netns, at(net.far, PORT), 1450, 1300);
        world.node.in_home_cgroup(|| finds(&world.pod.netns, at(net.service, PORT), 1450, 1300));
        world.at_router(1500);
    }
}
