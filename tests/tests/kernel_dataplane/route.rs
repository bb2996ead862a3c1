//! Packets of pods to other machines: straight to the device they leave by, back as what is too big, or the stack's.

use crate::{
    fixture::{Dataplane, Outcome, REDIRECT, SHOT, UNSPEC},
    packet::{self, ACK, SYN, TCP, UDP, addr, read},
    uplink::{Net, REMOTE_SET, fill, nets},
    wire::Space,
    xdp::tuple,
};
use aya::{TestRun, programs::SchedClassifier};
use std::net::IpAddr;
use xebec_ebpf_abi::{Addr, Config, DropReason, Endpoint, Frontend, FrontendKey, Nat, Port, Tuple, Uplink, forward, map, prog};
use xebec_ebpf_logic::{budget::Budget, conntrack::STEP, reject::may_answer};

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
        let flags = Endpoint::DIRECT;
        let endpoint = Endpoint { id: 1, ifindex: pod, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns };
        node.dp.put(map::ENDPOINTS, Addr::from(node.net.pod), endpoint);
        node
    }

    fn endpoint(&mut self) -> Endpoint {
        self.dp.hash::<Addr, Endpoint>(map::ENDPOINTS).get(&self.net.pod.into(), 0).expect("the pod's")
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

    /// The pod is told by its node that no more than `fits` bytes of its packet go there.
    fn told(&self, packet: &[u8], fields: &[(usize, u32)], fits: u32) {
        let (routed, before) = (self.routed(), self.dp.counter(map::DROPS, DropReason::TooBig as u32));
        let out = self.run(packet, fields);
        assert_eq!(out.verdict, REDIRECT, "{:?}", packet::read_ip(&packet[14..]).tuple());
        assert_eq!((&out.bytes[..6], &out.bytes[6..12]), (&packet[6..12], &packet[..6]), "back to the pod");
        let error = read(&out.bytes);
        assert_eq!((error.src, error.dst), (self.net.node, self.net.pod));
        let kind = if self.net.node.is_ipv4() { [3, 4] } else { [2, 0] };
        assert_eq!((&error.l4[..2], &error.l4[4..8]), (&kind[..], &fits.to_be_bytes()[..]));
        let about = &error.l4[8..];
        let least = if self.net.node.is_ipv4() { 28 } else { 48 };
        assert!(about.len() >= least && about.len() < 100, "{}", about.len());
        assert_eq!(about, &packet[14..14 + about.len()], "as it was sent");
        let after = self.dp.counter(map::DROPS, DropReason::TooBig as u32);
        assert_eq!((after.packets, after.bytes), (before.packets + 1, before.bytes + packet.len() as u64), "it is counted");
        assert_eq!(self.routed(), routed);
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
fn what_fits_leaves_straight_and_what_does_not_is_told_to_its_pod() {
    for net in nets() {
        let mut node = Node::new(net);
        for proto in [TCP, UDP] {
            node.straight(&node.sized(proto, 1500), &[]);
            node.told(&node.sized(proto, 1501), &[], 1500);
        }
        let (pod, remote) = (node.net.pod, node.net.remote_pod);
        let (ask, say) = if pod.is_ipv4() { (8, 0) } else { (128, 129) };
        for kind in [ask, say] {
            node.told(&packet::icmp(pod, remote, kind, 0, [0, 77, 0, 1], &[7; 1600]), &[], 1500);
        }
        let sctp = [&PORT.to_be_bytes()[..], &9u16.to_be_bytes(), &[7; 1600]].concat();
        node.told(&packet::ethernet(&packet::ip(pod, remote, 132, &sctp)), &[], 1500);
        // Segments count, not what they are made of: 1460 bytes and headers of 40, 1440 and 60.
        let (ip, large) = (if node.net.node.is_ipv4() { 20 } else { 40 }, node.sized(TCP, 3000));
        let segments = |size: u32| [(GSO_SIZE, size), (GSO_SEGS, 3)];
        node.straight(&large, &segments(1480 - ip));
        node.told(&large, &segments(1481 - ip), 1500);
        let large = node.sized(UDP, 3000);
        node.straight(&large, &segments(1492 - ip));
        node.told(&large, &segments(1493 - ip), 1500);

        // A route that takes less than its device, of which the routing table says so.
        let full = if node.net.node.is_ipv4() { 32 } else { 128 };
        node.space.ip(&format!("route add {remote}/{full} via {} mtu lock 1300", router(&node.net)));
        node.straight(&node.sized(UDP, 1300), &[]);
        for proto in [TCP, UDP] {
            node.told(&node.sized(proto, 1301), &[], 1300);
        }
        // One of which it does not, though some route of the device does: the stack knows which.
        node.uplink(1280);
        node.straight(&node.sized(UDP, 1280), &[]);
        node.stacks("larger than some route", &node.sized(UDP, 1281), &[]);
        node.told(&node.sized(UDP, 1301), &[], 1300);
    }
}

#[test]
fn a_pod_is_told_about_the_packet_that_it_has_sent_to_a_service() {
    for net in nets() {
        let mut node = Node::new(net);
        let (pod, service) = ((node.net.pod, PORT), (node.net.outside, 80));
        for proto in [TCP, UDP] {
            let value = Frontend { service: 9, internal: REMOTE_SET, external: REMOTE_SET, flags: 0, affinity_timeout: 0 };
            node.dp.put(map::FRONTENDS, FrontendKey::new(service.0.into(), Port::new(service.1), proto), value);
        }
        let sized = |proto, len: usize| {
            let payload = match proto {
                TCP => packet::tcp_segment(pod, service, ACK, &vec![7; len]),
                _ => packet::udp_datagram(pod, service, &vec![7; len]),
            };
            packet::ethernet(&packet::ip(pod.0, service.0, proto, &payload))
        };
        for proto in [TCP, UDP] {
            let out = node.run(&sized(proto, 100), &[]);
            assert_eq!((out.verdict, read(&out.bytes).dst), (REDIRECT, node.net.remote_pod));
            // Of its flow, and of one that it begins.
            node.told(&sized(proto, 1500), &[], 1500);
            node.dp.hash::<Tuple, Nat>(map::NAT).remove(&tuple(proto, pod, service)).expect("it was translated");
            node.told(&sized(proto, 1500), &[], 1500);
        }
    }
}

#[test]
fn a_connection_that_takes_a_shortcut_is_told_too() {
    for net in nets() {
        let mut node = Node::new(net);
        for flags in [SYN, ACK] {
            let packet = packet::tcp((node.net.pod, PORT), (node.net.remote_pod, 9), flags);
            assert_eq!(node.run(&packet, &[]).verdict, REDIRECT);
            std::thread::sleep(std::time::Duration::from_nanos(3 * STEP));
        }
        node.straight(&node.sized(TCP, 100), &[]);
        // Nothing of this is asked on the way of a shortcut, which whoever writes it really has to end.
        let endpoint = Endpoint { flags: Endpoint::DIRECT | Endpoint::ISOLATE_EGRESS, epoch: 2, ..node.endpoint() };
        node.dp.hash(map::ENDPOINTS).insert(Addr::from(node.net.pod), endpoint, 0).expect("the entry is written");
        node.straight(&node.sized(TCP, 100), &[]);
        node.told(&node.sized(TCP, 1501), &[], 1500);
        node.dp.end_shortcuts();
        assert_eq!(node.run(&node.sized(TCP, 1501), &[]).verdict, SHOT, "judged again, it is denied");
    }
}

#[test]
fn what_nobody_is_told_about_is_the_stacks_or_ends_here() {
    for net in nets() {
        let mut node = Node::new(net);
        let (pod, remote, v4) = (node.net.pod, node.net.remote_pod, node.net.node.is_ipv4());
        let large = node.sized(UDP, 1501);
        if v4 {
            let may_be_cut = changed(&large, |ip| ip[6] = 0);
            node.stacks("it may be cut up", &may_be_cut, &[]);
            let large = changed(&node.sized(TCP, 3000), |ip| ip[6] = 0);
            node.stacks("its segments may be cut up", &large, &[(GSO_SIZE, 1461), (GSO_SEGS, 3)]);
        }
        node.straight(&node.sized(UDP, 100), &[]);
        let from_client = packet::ip(remote, pod, UDP, &packet::udp_datagram((remote, 9), (pod, PORT), &[7; 1500]));
        let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
        node.stacks("an error about an error", &packet::icmp(pod, remote, kind, code, [0; 4], &from_client), &[]);
        node.stacks("a kind of its own", &packet::icmp(pod, remote, if v4 { 13 } else { 200 }, 0, [0; 4], &[7; 1500]), &[]);

        // Who sends too many is not told each time, but counted.
        let before = node.dp.counter(map::DROPS, DropReason::TooBig as u32).packets;
        let verdicts: Vec<i32> = (0..200).map(|_| node.run(&large, &[]).verdict).collect();
        assert!(verdicts.iter().all(|verdict| [REDIRECT, SHOT].contains(verdict)), "{verdicts:?}");
        assert_eq!(verdicts[0], REDIRECT);
        let mut spent = Budget::default();
        while may_answer(&mut spent, u64::MAX) {}
        node.dp.set_budget(spent);
        assert_eq!(node.run(&large, &[]).verdict, SHOT, "nothing more may be said");
        let after = node.dp.counter(map::DROPS, DropReason::TooBig as u32).packets;
        assert_eq!(after, before + 201);
        node.dp.set_budget(Budget::default());
        node.told(&large, &[], 1500);

        // Another way to the pod would be under its policy.
        let endpoint = Endpoint { flags: 0, ..node.endpoint() };
        node.dp.put(map::ENDPOINTS, Addr::from(pod), endpoint);
        node.stacks("it is not reached directly", &large, &[]);
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
        let endpoint = node.endpoint();
        node.dp.put(map::ENDPOINTS, Addr::from(pod), Endpoint { flags: 0, ..endpoint });
        node.stacks("it is for a pod of this node", &node.to(pod), &[]);
        node.dp.put(map::ENDPOINTS, Addr::from(pod), endpoint);
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
