//! Flows between outside and backends on other nodes, in the driver of an uplink that is a veth.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use serde_json::json;
use xebec_dataplane::{Device, Layout, Xdp};
use xebec_tests::bench::dataplane::{agent::next_layout, raw};

use crate::fabric::detach;
use crate::net::Netns;
use crate::node::{DEADLINE, NODE_IP, Node, OUTSIDE_IP, ask_on, at, eventually, serve};
use crate::seeing::why;
use crate::upgrade::FromOutside;

const FAR_POD: &str = "10.244.8.5";
const FAR_PORT: u16 = 30081;
const NEAR_PORT: u16 = 30080;

/// `ethtool -K DEVICE tx off`, by the older call, which every driver knows.
pub fn without_checksum_offload(netns: &Netns, device: &str) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const SET_TX_CHECKSUMS: u32 = 0x17;
    netns.run(|| {
        // Command and value.
        let mut setting = [SET_TX_CHECKSUMS, 0];
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ifr_name.iter_mut().zip(device.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut setting).cast() };
        let mut request = libc::ifreq { ifr_name, ifr_ifru };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // SAFETY: the request names a device with its terminating zero and points to a live block of the size the call takes.
        let code = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        assert!(code == 0, "{device}: {}", std::io::Error::last_os_error());
    });
}

/// Runs an XDP program that passes everything, as long as the descriptors live.
pub fn pass_all(netns: &Netns, device: &str) -> [OwnedFd; 2] {
    let program = raw::empty(raw::XDP).expect("an empty program");
    let link = netns.run(|| {
        let index = nix::net::if_::if_nametoindex(device).expect("the device");
        raw::attach_xdp(program.as_fd(), index).expect("it is attached")
    });
    [program, link]
}

/// A node whose uplink's other end is like a wire: it takes what the driver sends (for which it must have a program of its own),
/// and all checksums on it are complete. Beyond it is another node with a pod.
fn node() -> (Node, [OwnedFd; 2]) {
    let mut node = Node::new();
    node.config.xdp = Xdp::All;
    without_checksum_offload(&node.outside, "out0");
    let wire = pass_all(&node.outside, "out0");
    node.outside.ip(&format!("addr add {FAR_POD}/32 dev lo"));
    serve(&node.outside, "far", 8080);
    // At the pod's own address: answers from any would have the link's.
    let datagrams = node.outside.run(|| UdpSocket::bind((FAR_POD, 8081))).expect("a socket");
    node.outside.spawn(move || {
        while let Ok((_, from)) = datagrams.recv_from(&mut [0; 64]) {
            let _ = datagrams.send_to(format!("far {}", from.ip()).as_bytes(), from);
        }
    });
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "spec": {"podCIDRs": ["10.244.8.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": OUTSIDE_IP}]},
    }));
    let ports: Vec<_> = [("TCP", 8080), ("UDP", 8081)]
        .map(|(p, target)| json!({"name": p.to_lowercase(), "port": 80, "targetPort": target, "protocol": p, "nodePort": FAR_PORT}))
        .to_vec();
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "ports": ports},
    }));
    let ports: Vec<_> =
        [("TCP", 8080), ("UDP", 8081)].map(|(p, port)| json!({"name": p.to_lowercase(), "port": port, "protocol": p})).to_vec();
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "far-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "far"}},
        "endpoints": [{"addresses": [FAR_POD], "conditions": {"ready": true}, "nodeName": "node-2"}], "ports": ports,
    }));
    (node, wire)
}

fn uplink(node: &Node) -> Device {
    node.dataplane().status().devices.into_iter().find(|d| d.name == "up0").expect("the uplink")
}

/// Packets turned round in the driver: to backends, and answers.
fn in_driver(node: &Node) -> [u64; 2] {
    let forwards = node.dataplane().status().forwards;
    ["driver_service", "driver_reply"].map(|name| forwards.get(name).copied().unwrap_or(0))
}

fn ask_udp(node: &Node, to: SocketAddr) -> std::io::Result<String> {
    node.in_home_cgroup(|| {
        node.outside.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(b"x", to)?;
            let mut answer = [0; 64];
            let (len, from) = socket.recv_from(&mut answer)?;
            assert_eq!(from, to, "the Service answers, nobody else");
            Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
        })
    })
}

#[test]
fn drivers_turn_flows_to_other_nodes_round_and_tc_does_the_rest() {
    let (mut node, _wire) = node();
    node.start();
    assert_eq!((uplink(&node).mode.as_str(), uplink(&node).xdp.as_str()), ("tc", "native"));
    let near = node.pod("near", json!({}), json!([]));
    serve(&near.netns, "near", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": NEAR_PORT}]});
    node.service("near", "10.96.0.10", 80, "TCP", 8080, &[&near], &node_port);
    let seen = |port: u16| node.ask_from_outside(at(NODE_IP, port)).ok();
    let is = |name: &str, client: &str| Some((name.to_owned(), client.to_owned()));
    // The first packet asks for the neighbour; from then on the driver has all of it.
    eventually("the far pod answers", || seen(FAR_PORT) == is("far", NODE_IP));
    let before = in_driver(&node);
    eventually("the driver takes requests and answers", || {
        assert_eq!(seen(FAR_PORT), is("far", NODE_IP));
        in_driver(&node).iter().zip(before).all(|(now, before)| *now > before)
    });
    let before = in_driver(&node);
    eventually("datagrams too", || {
        let answered = ask_udp(&node, at(NODE_IP, FAR_PORT)).is_ok_and(|a| a == format!("far {NODE_IP}"));
        answered && in_driver(&node).iter().zip(before).all(|(now, before)| *now > before)
    });
    // A backend here is tc's, which keeps the client's address.
    eventually("the near pod answers", || seen(NEAR_PORT) == is("near", OUTSIDE_IP));
    let programs = |port: u16| -> Vec<String> {
        let why = why(&node, OUTSIDE_IP, NODE_IP, port);
        let steps = why["steps"].as_array().unwrap_or_else(|| panic!("{why}")).clone();
        steps.iter().map(|step| step["program"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(programs(FAR_PORT), ["xdp_uplink", "from_uplink", "to_uplink"]);
    assert_eq!(programs(NEAR_PORT)[0], "from_uplink");
}

#[test]
fn ipv6_turns_round_in_the_driver_as_well() {
    const NODE_V6: &str = "2001:db8::1";
    const FAR_POD_V6: &str = "fd00:8::5";
    let (mut node, _wire) = node();
    node.netns.ip(&format!("addr add {NODE_V6}/64 dev up0 nodad"));
    node.outside.ip("addr add 2001:db8::2/64 dev out0 nodad");
    node.outside.ip(&format!("addr add {FAR_POD_V6}/128 dev lo nodad"));
    for (name, ranges, addresses) in [
        ("node-1", ["10.244.7.0/24", "fd00:7::/64"], [NODE_IP, NODE_V6]),
        ("node-2", ["10.244.8.0/24", "fd00:8::/64"], [OUTSIDE_IP, "2001:db8::2"]),
    ] {
        let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
        node.api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
        }));
    }
    let port = json!({"name": "tcp", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": FAR_PORT});
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "fd00:96::11", "clusterIPs": ["fd00:96::11"], "ports": [port]},
    }));
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "far-6", "namespace": "default", "labels": {"kubernetes.io/service-name": "far"}},
        "endpoints": [{"addresses": [FAR_POD_V6], "conditions": {"ready": true}, "nodeName": "node-2"}],
        "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}],
    }));
    node.start();
    let asked = || node.ask_from_outside(at(NODE_V6, FAR_PORT)).ok();
    let right = Some(("far".to_owned(), NODE_V6.to_owned()));
    eventually("the far pod answers", || asked() == right);
    let before = in_driver(&node);
    eventually("the driver takes requests and answers", || {
        assert_eq!(asked(), right);
        in_driver(&node).iter().zip(before).all(|(now, before)| *now > before)
    });
}

#[test]
fn flows_in_the_driver_outlive_agents_upgrades_and_the_program_itself() {
    let (mut node, _wire) = node();
    node.start();
    eventually("the far pod answers", || node.ask_from_outside(at(NODE_IP, FAR_PORT)).is_ok());
    let mut connection = FromOutside::start(&node, NODE_IP.parse().expect("an address"), FAR_PORT);
    let goes_on = |node: &Node, connection: &mut FromOutside| {
        let before = in_driver(node);
        eventually("packets go on in the driver", || in_driver(node).iter().zip(before).all(|(now, before)| *now > before + 5));
        assert!(connection.lives());
    };
    goes_on(&node, &mut connection);
    let pin = node.config.pin_dir.join("links/up0-xdp_uplink");

    // Somebody takes the program off: tc goes on with the flow, and the program comes back.
    detach(&pin).expect("a link");
    eventually("the program is back", || uplink(&node).xdp == "native" && node.netns.ip("link show up0").contains("xdp"));
    goes_on(&node, &mut connection);

    for (kill, layout) in [(true, Layout::default()), (false, next_layout()), (true, Layout::default())] {
        node.stop(kill);
        node.config.layout = layout;
        node.start();
        eventually("the program is ours", || uplink(&node).xdp == "native");
        goes_on(&node, &mut connection);
    }

    // An agent that is told to do without.
    node.stop(true);
    node.config.xdp = Xdp::Off;
    node.start();
    eventually("the program is off", || !pin.exists() && !node.netns.ip("link show up0").contains("xdp"));
    assert_eq!(uplink(&node).xdp, "none (XDP is switched off)");
    let counted = || node.dataplane().status().forwards.get("uplink_service").copied().unwrap_or(0);
    let before = counted();
    eventually("tc has the flow", || counted() > before + 5);
    assert!(connection.end(), "the connection lived to its end");

    // And back, so that there is something to remove.
    node.stop(true);
    node.config.xdp = Xdp::All;
    node.start();
    assert_eq!(uplink(&node).xdp, "native");
    node.stop(false);
    assert!(node.netns.ip("link show up0").contains("xdp"), "forwarding goes on without the agent");
    assert!(node.teardown().is_empty());
    assert!(!node.netns.ip("link show up0").contains("xdp"), "nothing is left in the driver");
}

#[test]
fn a_link_that_goes_down_and_up_has_its_driver_and_its_flows_again() {
    let (mut node, _wire) = node();
    node.start();
    eventually("the far pod answers", || node.ask_from_outside(at(NODE_IP, FAR_PORT)).is_ok());
    let connect = || node.outside.run(|| TcpStream::connect(at(NODE_IP, FAR_PORT)));
    let mut stream = node.in_home_cgroup(connect).expect("the far pod answers");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    assert!(ask_on(&mut stream).is_ok());
    for _ in 0..5 {
        node.netns.ip("link set up0 down");
        node.netns.ip("link set up0 up");
        // The kernel forgets routes with the link. Those to pods are ours; the default one is a network daemon's.
        node.netns.ip(&format!("route add default via {OUTSIDE_IP}"));
    }
    eventually("the route to the far pods is back", || node.netns.ip("route show proto 120").contains("10.244.8.0/24"));
    assert_eq!(uplink(&node).xdp, "native");
    let before = in_driver(&node);
    eventually("its packets go on in the driver", || {
        assert_eq!(ask_on(&mut stream).expect("the connection lives").0, "far");
        in_driver(&node).iter().zip(before).all(|(now, before)| *now > before + 5)
    });
}

#[test]
fn a_driver_that_has_a_program_already_keeps_it_and_tc_does_all_until_it_goes() {
    let (mut node, _wire) = node();
    let other = pass_all(&node.netns, "up0");
    node.start();
    let said = uplink(&node).xdp;
    assert!(said.starts_with("none (") && said.contains("busy"), "{said}");
    eventually("the far pod answers", || node.ask_from_outside(at(NODE_IP, FAR_PORT)).is_ok_and(|a| a.0 == "far"));
    assert_eq!(in_driver(&node), [0, 0]);
    // Nothing of the device that the agent knows changes when the other program goes.
    drop(other);
    eventually("the driver is asked again", || uplink(&node).xdp == "native");
    eventually("and takes the packets", || {
        let answered = node.ask_from_outside(at(NODE_IP, FAR_PORT)).is_ok_and(|a| a.0 == "far");
        answered && in_driver(&node).iter().all(|count| *count > 0)
    });
}
