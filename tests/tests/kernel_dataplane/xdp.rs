//! Packets in the driver: what goes to backends elsewhere turns round there, translated in both ends at once.

use crate::{
    dsr::at_uplink,
    fixture::{self as tc, Dataplane, UNSPEC},
    packet::{self, ACK, FIN, RST, Read, SYN, TCP, UDP, read},
    uplink::{Net, make, make_answer, nets, node},
    wire::Space,
};
use aya::{
    TestRun,
    programs::{Xdp, XdpMode},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropReason, Frontend, FrontendKey, MemberKey, Nat, Port, SlotKey, SourceRangeKey, Tuple, Uplink,
    XdpDevice, forward, map, prog,
};
use xebec_ebpf_logic::{budget::Budget, reject::may_answer};

pub const PASS: i32 = 2;
pub const TX: i32 = 3;
const REDIRECT: i32 = 4;

pub const REMOTE_PORT: u16 = 30081;
const LOCAL_PORT: u16 = 30080;
pub const TARGET_PORT: u16 = 8080;
pub const REMOTE_SET: u32 = 2;
const CLIENT: u16 = 45000;
/// The addresses that `packet::ethernet` writes: the device's own, and somebody's.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER_OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER_ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 8];

/// A node with routes, so that the program can find next hops, and its program in a native driver.
pub struct XdpNode {
    pub space: Space,
    pub dp: Dataplane,
    pub uplink: u32,
    pub second: u32,
}

impl XdpNode {
    pub fn new(net: &Net) -> XdpNode {
        let space = Space::new();
        for family in ["ipv4", "ipv6"] {
            space.sysctl(&format!("{family}/conf/all/forwarding"), "1");
        }
        let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
        let (full, wire) = if net.node.is_ipv4() { (32, 24) } else { (128, 64) };
        for (name, own) in [("up0", OWN), ("up1", OTHER_OWN)] {
            space.ip(&format!("link add {name} address {} type veth peer name peer-{name}", text(own)));
            space.ip(&format!("link set {name} up"));
            space.ip(&format!("link set peer-{name} up"));
        }
        let fresh = if net.node.is_ipv6() { "nodad" } else { "" };
        space.ip(&format!("addr add {}/{wire} dev up0 {fresh}", net.node));
        let router = if net.node.is_ipv4() { "192.0.2.254" } else { "2001:db8:2::ffff" };
        space.ip(&format!("neigh add {router} lladdr {} dev up0 nud permanent", text(ROUTER)));
        for to in [net.client, net.remote_pod] {
            space.ip(&format!("route add {to}/{full} via {router}"));
        }
        space.ip(&format!("route add {}/{full} dev up1", net.outside));
        space.ip(&format!("neigh add {} lladdr {} dev up1 nud permanent", net.outside, text(OTHER_ROUTER)));
        let (uplink, second) = (space.ifindex("up0"), space.ifindex("up1"));
        let mut dp = node(net);
        let own = Addr::from(net.node);
        dp.put(map::UPLINKS, uplink, Uplink { v4: own, v6: own, mtu: 1500 });
        dp.put(map::XDP_DEVICES, uplink, XdpDevice::new(OWN));
        let mut node = XdpNode { space, dp, uplink, second };
        node.attach();
        node
    }

    /// Test runs on a device need one whose driver has a program.
    fn attach(&mut self) {
        let (file, uplink) = (self.space.0.try_clone().expect("a descriptor"), self.uplink);
        let ebpf = &mut self.dp.ebpf;
        std::thread::scope(|scope| {
            let attached = scope.spawn(move || {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
                let program: &mut Xdp = ebpf.program_mut(prog::XDP_UPLINK).expect("there").try_into().expect("an XDP program");
                program.attach_to_if_index(uplink, XdpMode::Driver).expect("attaches");
            });
            attached.join().expect("attached");
        });
    }

    /// Runs the program on a packet that came in on the uplink.
    pub fn run(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        let mut context = Vec::new();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        for field in [0, packet.len() as u32, 0, self.uplink, 0, 0] {
            context.extend(field.to_ne_bytes());
        }
        let program: &Xdp = self.dp.ebpf.program(prog::XDP_UPLINK).expect("there").try_into().expect("an XDP program");
        self.space.test_run(packet, &context, |options| program.test_run(options))
    }

    /// A packet that must leave again by the device it came in on, to the router; read, with its hop limit.
    fn turns(&self, packet: &[u8]) -> Read {
        self.leaves(packet, TX, ROUTER, OWN)
    }

    fn leaves(&self, packet: &[u8], verdict: i32, to: [u8; 6], from: [u8; 6]) -> Read {
        let (got, bytes) = self.run(packet);
        assert_eq!(got, verdict);
        assert_eq!(bytes.len(), packet.len());
        assert_eq!((&bytes[..6], &bytes[6..12]), (&to[..], &from[..]), "the next link");
        let ttl = if bytes[14] >> 4 == 4 { 22 } else { 21 };
        assert_eq!(bytes[ttl], packet[ttl] - 1, "one hop fewer");
        read(&bytes)
    }

    fn passes(&self, packet: &[u8]) {
        let (verdict, bytes) = self.run(packet);
        assert_eq!(verdict, PASS);
        assert_eq!(bytes, packet, "untouched");
    }

    pub fn entry(&mut self, tuple: &Tuple) -> Option<Nat> {
        self.dp.hash::<Tuple, Nat>(map::NAT).get(tuple, 0).ok()
    }
}

pub fn tuple(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Tuple {
    Tuple::new(src.0.into(), Port::new(src.1), dst.0.into(), Port::new(dst.1), proto)
}

#[test]
fn request_and_reply_of_a_backend_elsewhere_turn_round_in_the_driver() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        for proto in [TCP, UDP] {
            let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
            let before = [forward::DRIVER_SERVICE, forward::DRIVER_REPLY].map(|path| node.dp.counter(map::FORWARDS, path));
            let request = make(proto, client, asked);
            let out = node.turns(&request);
            assert_eq!((out.src, out.dst, out.dport), (net.node, net.remote_pod, TARGET_PORT));
            assert!((Config::NAT_PORT_MIN..=Config::NAT_PORT_MAX).contains(&out.sport));
            let answer = make_answer(proto, target, (net.node, out.sport));
            assert_eq!(node.turns(&answer).tuple(), (asked, client));
            // From what was decided: the same, to the byte.
            let later = if proto == TCP { packet::tcp(client, asked, ACK) } else { request.clone() };
            for _ in 0..3 {
                assert_eq!(node.turns(&later).tuple(), ((net.node, out.sport), target));
                assert_eq!(node.turns(&make_answer(proto, target, (net.node, out.sport))).tuple(), (asked, client));
            }
            let entry = node.entry(&tuple(proto, client, asked)).expect("an entry");
            assert_eq!((entry.flags, entry.backend), (Nat::BOTH, REMOTE_SET));
            assert_eq!(entry.to, tuple(proto, (net.node, out.sport), target));
            let back = node.entry(&entry.to.reversed()).expect("its other half");
            assert_eq!((back.flags, back.to), (Nat::BOTH | Nat::REPLY, tuple(proto, asked, client)));
            let after = [forward::DRIVER_SERVICE, forward::DRIVER_REPLY].map(|path| node.dp.counter(map::FORWARDS, path));
            assert_eq!(after.map(|c| c.packets), before.map(|c| c.packets + 4));
            assert_eq!(after[0].bytes, before[0].bytes + (request.len() + 3 * later.len()) as u64);
            assert_eq!(after[1].bytes, before[1].bytes + 4 * answer.len() as u64);
        }
        for reason in DropReason::ALL {
            assert_eq!(node.dp.drops(*reason), 0, "{reason:?}");
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let net = &nets()[0];
    let node = XdpNode::new(net);
    let mut request = packet::udp((net.client, CLIENT), (net.node, REMOTE_PORT));
    request[40..42].copy_from_slice(&[0, 0]);
    for _ in 0..2 {
        let (verdict, bytes) = node.run(&request);
        assert_eq!((verdict, &bytes[40..42]), (TX, &[0, 0][..]));
        assert_eq!(packet::read_ip(&bytes[14..]).dst, net.remote_pod);
    }
}

#[test]
fn what_is_not_for_a_backend_elsewhere_passes_untouched() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        let client = (net.client, CLIENT);
        for proto in [TCP, UDP] {
            node.passes(&make(proto, client, (net.node, LOCAL_PORT)));
            node.passes(&make(proto, client, (net.node, 22)));
            node.passes(&make(proto, client, (net.outside, REMOTE_PORT)));
        }
        node.passes(&packet::echo(net.client, net.node, false, 7));
        // An established flow to a backend here is tc's.
        let there = packet::tcp(client, (net.node, LOCAL_PORT), SYN);
        assert_eq!(node.dp.run(prog::FROM_UPLINK, &there).verdict, UNSPEC);
        node.passes(&packet::tcp(client, (net.node, LOCAL_PORT), ACK));
        // So is a ClusterIP, whoever asks.
        let inside = Frontend { service: 9, internal: REMOTE_SET, external: REMOTE_SET, flags: 0, affinity_timeout: 0 };
        node.dp.put(map::FRONTENDS, FrontendKey::new(net.outside.into(), Port::new(80), TCP), inside);
        node.passes(&packet::tcp(client, (net.outside, 80), SYN));
    }
}

#[test]
fn what_is_refused_is_left_to_tc_to_say_why() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        let client = (net.client, CLIENT);
        let flags = Frontend::EXTERNAL | Frontend::SOURCE_RANGES;
        let ranged = Frontend { service: 5, internal: 99, external: REMOTE_SET, flags, affinity_timeout: 0 };
        node.dp.put(map::FRONTENDS, FrontendKey::node_port(net.node.is_ipv4(), Port::new(REMOTE_PORT + 1), TCP), ranged);
        let request = packet::tcp(client, (net.node, REMOTE_PORT + 1), SYN);
        node.passes(&request);
        let source = Addr::from(net.client);
        let key = SourceRangeKey { service: 5, addr: source };
        node.dp.put_prefix(map::SOURCE_RANGES, SourceRangeKey::prefix_len(source, 24), key, 1u32);
        node.turns(&request);
        node.dp.put(map::BACKEND_SETS, REMOTE_SET, BackendSet { count: 0, flags: 0 });
        node.passes(&packet::tcp((net.client, CLIENT + 1), (net.node, REMOTE_PORT), SYN));
        // A flow that is known goes on.
        node.turns(&packet::tcp(client, (net.node, REMOTE_PORT + 1), ACK));
        node.dp.put(map::BACKEND_SETS, REMOTE_SET, BackendSet { count: 1, flags: 0 });
        // No port left to hide the client behind.
        node.dp.configure(Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61000, flags: 0 });
        let passed = (0..20).filter(|n| node.run(&packet::udp((net.client, 2000 + n), (net.node, REMOTE_PORT))).0 == PASS).count();
        assert_eq!(passed, 19, "one port, one flow");
    }
}

#[test]
fn broken_packets_options_fragments_and_errors_pass() {
    let net = &nets()[0];
    let node = XdpNode::new(net);
    let whole = packet::tcp((net.client, CLIENT), (net.node, REMOTE_PORT), SYN);
    node.turns(&whole);
    for len in 14..whole.len() {
        node.passes(&whole[..len]);
    }
    let udp = packet::udp((net.client, CLIENT), (net.node, REMOTE_PORT));
    for len in 14..udp.len() {
        node.passes(&udp[..len]);
    }
    let changed = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        bytes[at] = to;
        bytes
    };
    node.passes(&changed(14, 0x65));
    node.passes(&changed(14, 0x46));
    node.passes(&changed(20, 0x20));
    node.passes(&changed(21, 1));
    node.passes(&changed(22, 1));
    node.passes(&changed(22, 0));
    node.passes(&changed(23, 132));
    // Lengths that contradict the frame or have no room for a header.
    node.passes(&changed(17, whole.len() as u8));
    node.passes(&changed(17, 39));
    node.passes(&changed(17, 10));
    node.passes(&changed(13, 6));
    node.passes(&changed(12, 0x81));
    // Padding of short frames goes along.
    let mut padded = whole.clone();
    padded.extend([0; 30]);
    assert_eq!(node.run(&padded).0, TX);
}

#[test]
fn ipv6_extensions_fragments_and_mapped_addresses_pass() {
    let net = &nets()[1];
    let node = XdpNode::new(net);
    let whole = packet::tcp((net.client, CLIENT), (net.node, REMOTE_PORT), SYN);
    node.turns(&whole);
    for len in 14..whole.len() {
        node.passes(&whole[..len]);
    }
    for (at, to) in [(14, 0x40), (20, 0), (20, 44), (20, 60), (21, 1), (18, 1), (19, 5)] {
        let mut bytes = whole.clone();
        bytes[at] = to;
        node.passes(&bytes);
    }
    let mapped: IpAddr = "::ffff:198.51.100.9".parse().expect("an address");
    node.passes(&packet::tcp((mapped, CLIENT), (net.node, REMOTE_PORT), SYN));
}

#[test]
fn a_checksum_that_a_device_was_to_complete_is_the_kernels() {
    for net in nets() {
        let node = XdpNode::new(&net);
        let l4 = if net.node.is_ipv4() { 34 } else { 54 };
        for (proto, at) in [(TCP, l4 + 16), (UDP, l4 + 6)] {
            let request = make(proto, (net.client, CLIENT), (net.node, REMOTE_PORT));
            node.turns(&request);
            // The sum of everything but the pseudo header is taken out: what is left is the sum of that.
            let mut partial = request.clone();
            partial[at..at + 2].copy_from_slice(&packet::pseudo_sum(&request));
            node.passes(&partial);
        }
    }
}

#[test]
fn a_packet_that_a_switch_sent_to_everyone_is_left_alone() {
    for net in nets() {
        let node = XdpNode::new(&net);
        let request = packet::tcp((net.client, CLIENT), (net.node, REMOTE_PORT), SYN);
        let mut foreign = request.clone();
        foreign[5] = 9;
        node.passes(&foreign);
        node.turns(&request);
        let mut later = packet::tcp((net.client, CLIENT), (net.node, REMOTE_PORT), ACK);
        node.turns(&later);
        later[5] = 9;
        node.passes(&later);
    }
}

#[test]
fn nobodys_addresses_are_not_hidden_behind_the_nodes() {
    let [v4, v6] = nets();
    let from = |net: &Net, sources: &[&str]| {
        let mut node = XdpNode::new(net);
        for source in sources.iter().map(|s| packet::addr(s)).chain([net.node]) {
            for proto in [TCP, UDP] {
                node.passes(&make(proto, (source, CLIENT), (net.node, REMOTE_PORT)));
                assert!(node.entry(&tuple(proto, (source, CLIENT), (net.node, REMOTE_PORT))).is_none(), "{source}");
            }
        }
        node.turns(&make(TCP, (net.client, CLIENT), (net.node, REMOTE_PORT)));
    };
    from(&v4, &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]);
    from(&v6, &["::", "::1", "fe80::9", "febf::9", "ff02::1"]);
}

#[test]
fn a_udp_flow_whose_backend_leaves_its_service_goes_to_another_one() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let tcp = node.turns(&make(TCP, client, asked));
        assert_eq!(node.turns(&make(UDP, client, asked)).dst, net.remote_pod);
        let (old, new) = (REMOTE_SET, 77u32);
        node.dp.put(map::BACKENDS, new, Backend::new(net.client.into(), Port::new(TARGET_PORT), 0));
        node.dp.put(map::BACKEND_SLOTS, SlotKey { set: REMOTE_SET, slot: 0 }, new);
        node.dp.put(map::SET_MEMBERS, MemberKey { set: REMOTE_SET, backend: new }, 0u32);
        node.dp.hash::<MemberKey, u32>(map::SET_MEMBERS).remove(&MemberKey { set: REMOTE_SET, backend: old }).expect("it was one");
        // At the latest when what was decided is looked at again.
        std::thread::sleep(std::time::Duration::from_nanos(2 * xebec_ebpf_logic::conntrack::DECIDED));
        let out = node.turns(&make(UDP, client, asked));
        assert_eq!(out.dst, net.client);
        assert_eq!(node.turns(&make_answer(UDP, (net.client, TARGET_PORT), (net.node, out.sport))).tuple(), (asked, client));
        // A connection stays.
        assert_eq!(node.turns(&packet::tcp(client, asked, ACK)).tuple(), ((net.node, tcp.sport), (net.remote_pod, TARGET_PORT)));
        // Through the stack the same.
        node.dp.hash::<u32, XdpDevice>(map::XDP_DEVICES).remove(&node.uplink).expect("there was one");
        node.dp.put(map::BACKEND_SLOTS, SlotKey { set: REMOTE_SET, slot: 0 }, old);
        node.dp.put(map::SET_MEMBERS, MemberKey { set: REMOTE_SET, backend: old }, 0u32);
        node.dp.hash::<MemberKey, u32>(map::SET_MEMBERS).remove(&MemberKey { set: REMOTE_SET, backend: new }).expect("it was one");
        let half = node.dp.run(prog::FROM_UPLINK, &make(UDP, client, asked));
        assert_eq!(read(&half.bytes).tuple(), (client, (net.remote_pod, TARGET_PORT)));
    }
}

fn sized(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16), data: usize) -> Vec<u8> {
    let payload = match proto {
        TCP => packet::tcp_segment(src, dst, ACK, &vec![7; data]),
        _ => packet::udp_datagram(src, dst, &vec![7; data]),
    };
    packet::ethernet(&packet::ip(src.0, dst.0, proto, &payload))
}

impl XdpNode {
    /// The way to an address takes 1300 bytes, and the routing table says so.
    fn narrow(&self, net: &Net, to: IpAddr) {
        let (full, router) = if net.node.is_ipv4() { (32, "192.0.2.254") } else { (128, "2001:db8:2::ffff") };
        self.space.ip(&format!("route replace {to}/{full} via {router} mtu lock 1300"));
    }

    /// The driver leaves the packet to tc, which tells its sender, in the addresses it knows, that 1300 bytes of it fit.
    fn tells(&self, net: &Net, packet: &[u8], segment: u32) {
        let before = self.dp.counter(map::DROPS, DropReason::TooBig as u32);
        let (verdict, told) = at_uplink(self, packet, segment);
        let asked = packet::read_ip(&packet[14..]);
        assert_eq!(verdict, tc::REDIRECT, "{:?}", asked.tuple());
        assert_eq!((&told[..6], &told[6..12]), (&packet[6..12], &packet[..6]), "back to where it came from");
        let error = read(&told);
        assert_eq!((error.src, error.dst), (asked.dst, asked.src));
        let kind = if net.node.is_ipv4() { [3, 4] } else { [2, 0] };
        assert_eq!((&error.l4[..2], &error.l4[4..8]), (&kind[..], &1300u32.to_be_bytes()[..]));
        let about = &error.l4[8..];
        assert_eq!(about, &packet[14..14 + about.len()], "as it was sent");
        let after = self.dp.counter(map::DROPS, DropReason::TooBig as u32);
        assert_eq!((after.packets, after.bytes), (before.packets + 1, before.bytes + packet.len() as u64));
    }

    /// It leaves the packet to tc, and that translates its half for the stack.
    fn halves(&self, packet: &[u8], segment: u32, half: ((IpAddr, u16), (IpAddr, u16))) {
        let before = self.dp.drops(DropReason::TooBig);
        let (verdict, bytes) = at_uplink(self, packet, segment);
        assert_eq!((verdict, read(&bytes).tuple()), (UNSPEC, half));
        assert_eq!(self.dp.drops(DropReason::TooBig), before);
    }
}

#[test]
fn what_does_not_fit_the_way_is_told_by_tc_or_the_stack() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        node.narrow(&net, net.remote_pod);
        let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
        let ip = if net.node.is_ipv4() { 20 } else { 40 };
        for (proto, header) in [(UDP, ip + 8), (TCP, ip + 20)] {
            let large = sized(proto, client, asked, 1301 - header);
            // Of a new flow, of one that is known, from what was decided.
            node.passes(&large);
            node.tells(&net, &large, 0);
            node.turns(&make(proto, client, asked));
            node.passes(&large);
            node.tells(&net, &large, 0);
            let fits = sized(proto, client, asked, 1300 - header);
            assert_eq!(node.run(&fits).0, TX);
            node.halves(&fits, 0, (client, target));
            // Of what was put together from several packets, each counts.
            let several = sized(proto, client, asked, 3000);
            node.tells(&net, &several, 1301 - header as u32);
            node.halves(&several, 1300 - header as u32, (client, target));
            if net.node.is_ipv4() {
                let mut may_be_cut = large.clone();
                may_be_cut[20] = 0;
                may_be_cut[24..26].fill(0);
                let sum = packet::checksum(&[&may_be_cut[14..34]]);
                may_be_cut[24..26].copy_from_slice(&sum);
                node.halves(&may_be_cut, 0, (client, target));
            }
        }
        // What the routing table does not say, though some route of the device takes less, the stack knows.
        let own = Addr::from(net.node);
        node.dp.put(map::UPLINKS, node.uplink, Uplink { v4: own, v6: own, mtu: 1290 });
        node.halves(&sized(UDP, client, asked, 1300 - ip - 8), 0, (client, target));
        let mut spent = Budget::default();
        while may_answer(&mut spent, u64::MAX) {}
        node.dp.set_budget(spent);
        assert_eq!(at_uplink(&node, &sized(UDP, client, asked, 1300), 0).0, tc::SHOT, "nothing more may be said");
    }
}

#[test]
fn a_backend_is_told_what_fits_the_way_to_its_client() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        node.narrow(&net, net.client);
        let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
        for proto in [UDP, TCP] {
            node.turns(&make(proto, client, asked));
            let hidden = node.entry(&tuple(proto, client, asked)).expect("the flow is known").to;
            let answer = sized(proto, target, (net.node, hidden.sport.get()), 1300);
            node.passes(&answer);
            node.tells(&net, &answer, 0);
            // One of its own size fits.
            node.halves(&sized(proto, target, (net.node, hidden.sport.get()), 1200), 0, (target, client));
        }
    }
}

#[test]
fn without_a_way_or_an_address_of_its_own_the_driver_begins_nothing() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let own = Addr::from(net.node);
        let nothing = |node: &mut XdpNode, why: &str| {
            node.passes(&make(TCP, client, asked));
            assert!(node.entry(&tuple(TCP, client, asked)).is_none(), "{why}");
        };
        node.space.ip(&format!("route del {}", net.remote_pod));
        nothing(&mut node, "no route");
        let router = if net.node.is_ipv4() { "192.0.2.254" } else { "2001:db8:2::ffff" };
        node.space.ip(&format!("route add blackhole {}", net.remote_pod));
        nothing(&mut node, "a blackhole");
        node.space.ip(&format!("route del blackhole {}", net.remote_pod));
        node.space.ip(&format!("route add {} via {router}", net.remote_pod));
        node.dp.put(map::UPLINKS, node.uplink, Uplink { v4: Addr::ANY, v6: Addr::ANY, mtu: 1500 });
        nothing(&mut node, "no address of the family");
        node.dp.hash::<u32, Uplink>(map::UPLINKS).remove(&node.uplink).expect("there was one");
        nothing(&mut node, "no uplink");
        node.dp.put(map::UPLINKS, node.uplink, Uplink { v4: own, v6: own, mtu: 1500 });
        node.turns(&make(TCP, client, asked));
    }
}

#[test]
fn a_flow_that_tc_has_begun_stays_tcs() {
    for net in nets() {
        let node = XdpNode::new(&net);
        for proto in [TCP, UDP] {
            let request = make(proto, (net.client, CLIENT), (net.node, REMOTE_PORT));
            assert_eq!(node.dp.run(prog::FROM_UPLINK, &request).verdict, UNSPEC);
            node.passes(&request);
            node.passes(&make_answer(proto, (net.client, CLIENT), (net.node, REMOTE_PORT)));
        }
    }
}

#[test]
fn a_datagrams_checksum_of_zero_is_sent_as_its_other_form() {
    for net in nets() {
        let node = XdpNode::new(&net);
        let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
        let hidden = (net.node, node.turns(&make(UDP, client, asked)).sport);
        let answer = |data: &[u8]| packet::ethernet(&packet::ip(target.0, hidden.0, UDP, &packet::udp_datagram(target, hidden, data)));
        let out = node.turns(&answer(&[0, 0]));
        // What is missing to a sum of all ones is the checksum: with that much more data it is zero.
        let out = node.turns(&answer(&out.l4[6..8]));
        assert_eq!((out.tuple(), &out.l4[6..8]), ((asked, client), &[0xff, 0xff][..]));
    }
}

#[test]
fn datagrams_from_port_zero_keep_it() {
    for net in nets() {
        let node = XdpNode::new(&net);
        let (client, asked, target) = ((net.client, 0), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
        assert_eq!(node.turns(&make(UDP, client, asked)).tuple(), ((net.node, 0), target));
        assert_eq!(node.turns(&make(UDP, target, (net.node, 0))).tuple(), (asked, client));
    }
}

#[test]
fn other_devices_are_used_only_if_their_driver_takes_part() {
    for net in nets() {
        let mut node = XdpNode::new(&net);
        node.dp.put(map::BACKENDS, REMOTE_SET, Backend::new(net.outside.into(), Port::new(TARGET_PORT), 0));
        let request = packet::tcp((net.client, CLIENT), (net.node, REMOTE_PORT), SYN);
        node.passes(&request);
        // Such a flow is tc's from the start.
        assert!(node.entry(&tuple(TCP, (net.client, CLIENT), (net.node, REMOTE_PORT))).is_none());
        node.dp.put(map::XDP_DEVICES, node.second, XdpDevice::new(OTHER_OWN));
        let out = node.leaves(&request, REDIRECT, OTHER_ROUTER, OTHER_OWN);
        assert_eq!((out.src, out.dst), (net.node, net.outside));
        // Without an entry of its own a device passes everything.
        node.dp.hash::<u32, XdpDevice>(map::XDP_DEVICES).remove(&node.uplink).expect("there was one");
        node.passes(&packet::tcp((net.client, CLIENT + 1), (net.node, REMOTE_PORT), SYN));
    }
}

#[test]
fn what_needs_the_stack_is_finished_by_tc_in_two_halves() {
    for net in nets() {
        let node = XdpNode::new(&net);
        // Nobody has resolved this neighbour yet.
        let (family, wire) = if net.node.is_ipv4() { ("192.0.2.77", net.client) } else { ("2001:db8:2::77", net.client) };
        let full = if wire.is_ipv4() { 32 } else { 128 };
        node.space.ip(&format!("route replace {}/{full} via {family}", net.remote_pod));
        for proto in [TCP, UDP] {
            let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
            let request = make(proto, client, asked);
            node.passes(&request);
            let half = node.dp.run(prog::FROM_UPLINK, &request);
            assert_eq!(half.verdict, UNSPEC);
            assert_eq!(read(&half.bytes).tuple(), (client, target), "the stack sees the client as the source");
            // What the stack has to say about it comes to the client as if about its own packet.
            let error = packet::too_big(net.node, net.client, &half.bytes[14..]);
            let told = node.dp.run(prog::TO_UPLINK, &error);
            assert_eq!(packet::read_ip(&read(&told.bytes).l4[8..]).tuple(), (client, asked));
            let out = read(&node.dp.run(prog::TO_UPLINK, &half.bytes).bytes);
            assert_eq!((out.src, out.dst, out.dport), (net.node, net.remote_pod, TARGET_PORT));
            // The answer comes through the driver, and its ICMP errors through tc.
            let back = make_answer(proto, target, (net.node, out.sport));
            assert_eq!(node.turns(&back).tuple(), (asked, client));
            let half = node.dp.run(prog::FROM_UPLINK, &back);
            assert_eq!(read(&half.bytes).tuple(), (target, client));
            assert_eq!(read(&node.dp.run(prog::TO_UPLINK, &half.bytes).bytes).tuple(), (asked, client));
        }
    }
}

#[test]
fn a_flows_end_is_seen_and_its_port_used_again() {
    let net = &nets()[0];
    let mut node = XdpNode::new(net);
    let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
    let first = node.turns(&packet::tcp(client, asked, SYN));
    node.turns(&packet::tcp(target, (net.node, first.sport), SYN | ACK));
    let open = node.entry(&tuple(TCP, client, asked)).expect("an entry");
    node.turns(&packet::tcp(client, asked, FIN | ACK));
    node.turns(&packet::tcp(target, (net.node, first.sport), FIN | ACK));
    let closed = node.entry(&tuple(TCP, client, asked)).expect("an entry");
    assert!(closed.expires < open.expires, "a closed flow does not live long");
    node.dp.put(map::BACKENDS, REMOTE_SET, Backend::new(net.client.into(), Port::new(TARGET_PORT), 0));
    assert_eq!(node.turns(&packet::tcp(client, asked, SYN)).dst, net.client, "the next connection chooses anew");
    node.turns(&packet::tcp(client, asked, RST));
}
