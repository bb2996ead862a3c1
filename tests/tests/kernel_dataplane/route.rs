//! Packets of pods to other machines: straight to the device they leave by, or the stack's.

use crate::{
    fixture::{Dataplane, Outcome, REDIRECT, UNSPEC},
    packet::{self, ACK, SYN, TCP, UDP, addr, read},
    uplink::{Net, fill, nets},
    wire::Space,
};
use aya::{TestRun, programs::SchedClassifier};
use std::net::IpAddr;
use xebec_ebpf_abi::{Addr, Config, Endpoint, Uplink, forward, map, prog};

const PORT: u16 = 45000;
/// Of `struct __sk_buff`: its size, and where some of its fields are.
const CONTEXT: usize = 184;
const MARK: usize = 8;
const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// A node with a pod, an uplink and a route to a pod elsewhere.
struct Node {
    net: Net,
    space: Space,
    dp: Dataplane,
    pod: u32,
    uplink: u32,
}

impl Node {
    fn new(net: Net) -> Node {
        let space = Space::new();
        for family in ["ipv4", "ipv6"] {
            space.sysctl(&format!("{family}/conf/all/forwarding"), "1");
        }
        for name in ["pod0", "up0"] {
            space.ip(&format!("link add {name} type veth peer name peer-{name}"));
            space.ip(&format!("link set {name} up"));
            space.ip(&format!("link set peer-{name} up"));
        }
        let (wire, full, fresh) = if net.node.is_ipv4() { (24, 32, "") } else { (64, 128, "nodad") };
        space.ip(&format!("addr add {}/{wire} dev up0 {fresh}", net.node));
        space.ip(&format!("route add {}/{full} dev pod0", net.pod));
        space.ip(&format!("route add default via {}", router(&net)));
        let (pod, uplink) = (space.ifindex("pod0"), space.ifindex("up0"));
        let mut dp = Dataplane::load();
        fill(&mut dp, &net);
        let mut node = Node { net, space, dp, pod, uplink };
        node.wants(Config::PAST_STACK);
        node.uplink(1500);
        let netns = xebec_ebpf_abi::NetnsCookie::UNKNOWN;
        let endpoint = Endpoint { id: 1, ifindex: pod, pod_mac: [2; 6], host_mac: [4; 6], flags: 0, epoch: 1, netns };
        node.dp.put(map::ENDPOINTS, Addr::from(node.net.pod), endpoint);
        node
    }

    fn wants(&mut self, flags: u32) {
        let (nat_port_min, nat_port_max) = (Config::NAT_PORT_MIN, Config::NAT_PORT_MAX);
        self.dp.configure(Config { node_netns_cookie: 1, nat_port_min, nat_port_max, flags });
    }

    fn uplink(&mut self, mtu: u32) {
        let own = Addr::from(self.net.node);
        self.dp.put(map::UPLINKS, self.uplink, Uplink { v4: own, v6: own, mtu });
    }

    /// Runs `from_pod` on a packet, with these fields of its context.
    fn run(&self, packet: &[u8], fields: &[(usize, u32)]) -> Outcome {
        let mut context = [0u8; CONTEXT];
        for (at, value) in [(IFINDEX, self.pod)].iter().chain(fields) {
            context[*at..*at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let program: &SchedClassifier = self.dp.ebpf.program(prog::FROM_POD).expect("there").try_into().expect("a classifier");
        let (verdict, bytes) = self.space.test_run(packet, &context, |options| program.test_run(options));
        Outcome { verdict, bytes }
    }

    fn routed(&self) -> u64 {
        self.dp.counter(map::FORWARDS, forward::ROUTED).packets
    }

    /// The packet leaves past the stack, with one hop less and nothing else changed.
    fn straight(&self, packet: &[u8], fields: &[(usize, u32)]) {
        let before = self.routed();
        let out = self.run(packet, fields);
        assert_eq!(out.verdict, REDIRECT);
        assert_eq!(self.routed(), before + 1, "it is counted");
        let hops = hops_at(packet);
        assert_eq!(out.bytes[hops], packet[hops] - 1);
        assert_eq!(read(&out.bytes), read(packet));
        let mut expected = packet.to_vec();
        expected[hops] = out.bytes[hops];
        if packet[14] >> 4 == 4 {
            // Found right by `read`.
            expected[24..26].copy_from_slice(&out.bytes[24..26]);
        }
        assert_eq!(out.bytes, expected);
    }

    /// The packet is the stack's, as it came.
    fn stacks(&self, why: &str, packet: &[u8], fields: &[(usize, u32)]) {
        let before = self.routed();
        let out = self.run(packet, fields);
        assert_eq!(out.verdict, UNSPEC, "{why}");
        assert_eq!(out.bytes, packet, "{why}");
        assert_eq!(self.routed(), before, "{why}");
    }

    fn to(&self, dst: IpAddr) -> Vec<u8> {
        packet::udp((self.net.pod, PORT), (dst, 9))
    }

    /// An IP packet of `len` bytes.
    fn sized(&self, proto: u8, len: usize) -> Vec<u8> {
        let (src, dst) = ((self.net.pod, PORT), (self.net.remote_pod, 9));
        let ip = if self.net.pod.is_ipv4() { 20 } else { 40 };
        let payload = match proto {
            TCP => packet::tcp_segment(src, dst, ACK, &vec![7; len - ip - 20]),
            _ => packet::udp_datagram(src, dst, &vec![7; len - ip - 8]),
        };
        packet::ethernet(&packet::ip(src.0, dst.0, proto, &payload))
    }
}

fn router(net: &Net) -> IpAddr {
    if net.node.is_ipv4() { addr("192.0.2.254") } else { addr("2001:db8:2::ffff") }
}

/// Where a frame has its hop limit.
fn hops_at(frame: &[u8]) -> usize {
    if frame[14] >> 4 == 4 { 22 } else { 21 }
}

/// Changes the IPv4 header, and its sum.
fn changed(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame[14..]);
    if frame[14] >> 4 == 4 {
        frame[24..26].fill(0);
        let check = packet::checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&check);
    }
    frame
}

#[test]
fn what_the_stack_would_only_pass_on_leaves_straight() {
    for net in nets() {
        let node = Node::new(net);
        let (pod, remote, client) = (node.net.pod, node.net.remote_pod, node.net.client);
        // By the default route: to a pod of another node, and to the world.
        for dst in [remote, client] {
            node.straight(&packet::tcp((pod, PORT), (dst, 80), SYN), &[]);
            node.straight(&node.to(dst), &[]);
            node.straight(&packet::echo(pod, dst, false, 77), &[]);
        }
        // A neighbour of the node's, whom nobody has asked for yet.
        let near = if node.net.node.is_ipv4() { addr("192.0.2.77") } else { addr("2001:db8:2::77") };
        node.straight(&node.to(near), &[]);
        // ECN is no wish for another way.
        let marked = changed(&node.to(remote), |ip| ip[1] |= if ip[0] >> 4 == 4 { 3 } else { 3 << 4 });
        node.straight(&marked, &[]);
    }
}

#[test]
fn what_fits_leaves_straight_and_what_does_not_is_the_stacks_to_answer() {
    for net in nets() {
        let mut node = Node::new(net);
        for proto in [TCP, UDP] {
            node.straight(&node.sized(proto, 1500), &[]);
            node.stacks("larger than the device", &node.sized(proto, 1501), &[]);
        }
        // Segments count, not what they are made of: 1460 bytes and headers of 40, 1440 and 60.
        let (ip, large) = (if node.net.node.is_ipv4() { 20 } else { 40 }, node.sized(TCP, 3000));
        let segments = |size: u32| [(GSO_SIZE, size), (GSO_SEGS, 3)];
        node.straight(&large, &segments(1480 - ip));
        node.stacks("segments larger than the device", &large, &segments(1481 - ip));
        let large = node.sized(UDP, 3000);
        node.straight(&large, &segments(1492 - ip));
        node.stacks("datagrams larger than the device", &large, &segments(1493 - ip));

        // A route that takes less than its device.
        node.uplink(1400);
        node.straight(&node.sized(UDP, 1400), &[]);
        node.stacks("larger than a route", &node.sized(UDP, 1401), &[]);
        node.uplink(1500);
        let (remote, full) = (node.net.remote_pod, if node.net.node.is_ipv4() { 32 } else { 128 });
        node.space.ip(&format!("route add {remote}/{full} via {} mtu lock 1300", router(&node.net)));
        node.straight(&node.sized(UDP, 1300), &[]);
        node.stacks("larger than the route", &node.sized(UDP, 1301), &[]);
    }
}

#[test]
fn what_is_unusual_is_the_stacks() {
    for net in nets() {
        let mut node = Node::new(net);
        let (pod, remote, v4) = (node.net.pod, node.net.remote_pod, node.net.node.is_ipv4());
        let usual = node.to(remote);
        node.straight(&usual, &[]);
        node.stacks("it is marked", &usual, &[(MARK, 1)]);
        for hops in [1, 0] {
            node.stacks("its hops end here", &changed(&usual, |ip| ip[if v4 { 8 } else { 7 }] = hops), &[]);
        }
        node.stacks("it asks for a class of service", &changed(&usual, |ip| ip[1] |= if v4 { 0x10 } else { 0x40 }), &[]);
        let mut padded = usual.clone();
        padded.extend([0; 6]);
        node.stacks("it is longer than it says", &padded, &[]);
        let datagram = packet::udp_datagram((pod, PORT), (remote, 9), b"datagram");
        for (fragment, id) in [(0x2000, 7), (0x0003, 7)] {
            // The first fragment has the ports that the later one is judged by.
            let frame = match v4 {
                true => packet::ethernet(&packet::ip_fragment(pod, remote, UDP, &datagram, fragment, id)),
                false => {
                    let header = [UDP, 0, (fragment & 0xff) as u8, if fragment == 0x2000 { 1 } else { 0x18 }, 0, 0, 0, id as u8];
                    packet::ethernet(&packet::ip(pod, remote, 44, &[&header[..], &datagram].concat()))
                }
            };
            node.stacks("it is a piece", &frame, &[]);
        }
        if v4 {
            let mut frame = usual.clone();
            frame.splice(34..34, [1, 1, 1, 1]);
            let frame = changed(&frame, |ip| {
                ip[0] = 0x46;
                ip[3] += 4;
            });
            assert_eq!(node.run(&frame, &[]).verdict, UNSPEC, "it has options");
        } else {
            let frame = packet::ethernet(&packet::ip(pod, remote, 0, &[&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &datagram].concat()));
            node.stacks("it has options", &frame, &[]);
        }

        let odd: &[&str] =
            if v4 { &["224.0.0.9", "255.255.255.255", "192.0.2.255", "127.0.0.1"] } else { &["ff02::9", "ff0e::9", "fe80::9", "::1"] };
        for dst in odd.iter().map(|dst| addr(dst)).chain([node.net.node]) {
            node.stacks("it is for the node, for many or for nobody", &node.to(dst), &[]);
        }
        // A pod of this node that is not reached directly, and a device that is no uplink.
        node.stacks("it is for a pod of this node", &node.to(pod), &[]);
        let full = if v4 { 32 } else { 128 };
        let strange = node.net.outside;
        node.space.ip(&format!("route add {strange}/{full} dev pod0"));
        node.stacks("its way is no uplink", &node.to(strange), &[]);
        node.space.ip(&format!("route del {strange}/{full}"));
        for kind in ["blackhole", "unreachable", "prohibit"] {
            node.space.ip(&format!("route add {kind} {strange}/{full}"));
            node.stacks(kind, &node.to(strange), &[]);
            node.space.ip(&format!("route del {kind} {strange}/{full}"));
        }
        let family = if v4 { "-4" } else { "-6" };
        node.space.ip(&format!("{family} route del default"));
        node.stacks("it has no route", &usual, &[]);
        node.space.ip(&format!("route add default via {}", router(&node.net)));
        node.straight(&usual, &[]);
        // Rules are followed: a table of the pods' own.
        node.space.ip(&format!("{family} rule add from {pod} lookup 120"));
        node.space.ip(&format!("{family} route add prohibit default table 120"));
        node.stacks("its rule says no", &usual, &[]);
        node.space.ip(&format!("{family} route del prohibit default table 120"));
        node.space.ip(&format!("{family} route add default via {} dev up0 table 120", router(&node.net)));
        node.straight(&usual, &[]);

        node.space.sysctl(if v4 { "ipv4/conf/pod0/forwarding" } else { "ipv6/conf/pod0/forwarding" }, "0");
        node.stacks("the node does not forward", &usual, &[]);
        node.space.sysctl(if v4 { "ipv4/conf/pod0/forwarding" } else { "ipv6/conf/pod0/forwarding" }, "1");
        node.wants(0);
        node.stacks("the stack is asked for", &usual, &[]);
    }
}
