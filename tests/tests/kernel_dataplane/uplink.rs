//! Uplinks: NodePorts from outside, ICMP errors, fragments.

use crate::{
    fixture::{Dataplane, SHOT, UNSPEC},
    packet::{self, ACK, FIN, RST, Read, SYN, TCP, UDP, addr, read},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropReason, Endpoint, Flow, Frontend, FrontendKey, Nat, NodeAddr, Port, SlotKey, SourceRangeKey,
    Tuple, Uplink, forward, map, prog,
};

/// Addresses of one family.
#[derive(Clone)]
pub struct Net {
    pub client: IpAddr,
    pub node: IpAddr,
    pub pod: IpAddr,
    pub remote_pod: IpAddr,
    pub outside: IpAddr,
}

pub fn nets() -> [Net; 2] {
    [
        Net {
            client: addr("198.51.100.9"),
            node: addr("192.0.2.1"),
            pod: addr("10.244.0.5"),
            remote_pod: addr("10.244.1.7"),
            outside: addr("203.0.113.80"),
        },
        Net {
            client: addr("2001:db8:1::9"),
            node: addr("2001:db8:2::1"),
            pod: addr("fd00:244::5"),
            remote_pod: addr("fd00:244:1::7"),
            outside: addr("2001:db8:3::80"),
        },
    ]
}

pub const NODE_PORT: u16 = 30080;
pub const TARGET_PORT: u16 = 8080;
pub const CLIENT_PORT: u16 = 45000;
pub const LOCAL_SET: u32 = 1;
pub const REMOTE_SET: u32 = 2;

/// A node with a pod, and Services on its NodePorts: NODE_PORT to the pod here, NODE_PORT + 1 to one
/// elsewhere.
pub fn node(net: &Net) -> Dataplane {
    let mut dp = Dataplane::load();
    fill(&mut dp, net);
    dp
}

/// The same in maps that are there.
pub fn fill(dp: &mut Dataplane, net: &Net) {
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 });
    let own = Addr::from(net.node);
    let (v4, v6) = if own.is_v4() { (own, Addr::ANY) } else { (Addr::ANY, own) };
    dp.put(map::UPLINKS, 1u32, Uplink { v4, v6, mtu: 1500 });
    dp.put(map::NODE_ADDRS, own, NodeAddr { flags: NodeAddr::NODEPORT });
    let endpoint =
        Endpoint { id: 1, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags: 0, epoch: 1, netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
    for (port, set, pod, flags) in [(NODE_PORT, LOCAL_SET, net.pod, Backend::LOCAL), (NODE_PORT + 1, REMOTE_SET, net.remote_pod, 0)] {
        for proto in [TCP, UDP] {
            frontend(dp, FrontendKey::node_port(own.is_v4(), Port::new(port), proto), set, 0);
        }
        dp.put(map::BACKENDS, set, Backend::new(pod.into(), Port::new(TARGET_PORT), flags));
        dp.put(map::BACKEND_SLOTS, SlotKey { set, slot: 0 }, set);
        dp.put(map::SET_MEMBERS, xebec_ebpf_abi::MemberKey { set, backend: set }, 0u32);
        dp.put(map::BACKEND_SETS, set, BackendSet { count: 1, flags: 0 });
    }
}

pub fn frontend(dp: &mut Dataplane, key: FrontendKey, set: u32, flags: u32) {
    let flags = flags | Frontend::EXTERNAL;
    dp.put(map::FRONTENDS, key, Frontend { service: set, internal: 99, external: set, flags, affinity_timeout: 60 });
}

/// Runs a packet that must pass, and reads what came out.
pub fn pass(dp: &Dataplane, program: &str, packet: &[u8]) -> Read {
    let out = dp.run(program, packet);
    assert_eq!(out.verdict, UNSPEC, "{program}");
    assert_eq!(out.bytes.len(), packet.len());
    read(&out.bytes)
}

pub fn untouched(dp: &Dataplane, program: &str, packet: &[u8]) {
    let out = dp.run(program, packet);
    assert_eq!(out.verdict, UNSPEC);
    assert_eq!(out.bytes, packet);
}

pub fn dropped(dp: &Dataplane, program: &str, packet: &[u8], reason: DropReason) {
    let before = dp.counter(map::DROPS, reason as u32);
    assert_eq!(dp.run(program, packet).verdict, SHOT);
    let after = dp.counter(map::DROPS, reason as u32);
    assert_eq!(after.packets, before.packets + 1, "{reason:?} is counted");
    assert_eq!(after.bytes, before.bytes + packet.len() as u64);
}

pub fn make(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    if proto == TCP { packet::tcp(src, dst, SYN) } else { packet::udp(src, dst) }
}

pub fn make_answer(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    if proto == TCP { packet::tcp(src, dst, SYN | ACK) } else { packet::udp(src, dst) }
}

#[test]
fn a_node_port_with_a_backend_here_keeps_the_client_and_answers_from_the_node() {
    for net in nets() {
        let dp = node(&net);
        for proto in [TCP, UDP] {
            let client = (net.client, CLIENT_PORT);
            let (asked, target) = ((net.node, NODE_PORT), (net.pod, TARGET_PORT));
            let request = make(proto, client, asked);
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &request).tuple(), (client, target));
            let answer = make_answer(proto, target, client);
            assert_eq!(pass(&dp, prog::TO_UPLINK, &answer).tuple(), (asked, client));
            // And again, from the entries.
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &request).tuple(), (client, target));
        }
        assert_eq!(dp.counter(map::FORWARDS, forward::UPLINK_SERVICE).packets, 4);
        assert_eq!(dp.counter(map::FORWARDS, forward::UPLINK_REPLY).packets, 2);
    }
}

#[test]
fn a_node_port_with_a_backend_elsewhere_hides_the_client_behind_the_node() {
    for net in nets() {
        let dp = node(&net);
        for proto in [TCP, UDP] {
            let client = (net.client, CLIENT_PORT);
            let (asked, target) = ((net.node, NODE_PORT + 1), (net.remote_pod, TARGET_PORT));
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &make(proto, client, asked)).tuple(), (client, target));
            let leaves = pass(&dp, prog::TO_UPLINK, &make(proto, client, target));
            assert_eq!((leaves.src, leaves.dst, leaves.dport), (net.node, net.remote_pod, TARGET_PORT));
            assert!((Config::NAT_PORT_MIN..=Config::NAT_PORT_MAX).contains(&leaves.sport));
            let node = (net.node, leaves.sport);
            let back = pass(&dp, prog::FROM_UPLINK, &make_answer(proto, target, node));
            assert_eq!(back.tuple(), (target, client));
            let answer = pass(&dp, prog::TO_UPLINK, &make_answer(proto, target, client));
            assert_eq!(answer.tuple(), (asked, client));
            // Same flow, same port.
            assert_eq!(pass(&dp, prog::TO_UPLINK, &make(proto, client, target)), leaves);
        }
    }
}

#[test]
fn many_clients_of_one_backend_get_ports_of_their_own() {
    let net = &nets()[0];
    let dp = node(net);
    let mut ports = std::collections::HashSet::new();
    for n in 0..500u16 {
        let client = (net.client, 1024 + n);
        pass(&dp, prog::FROM_UPLINK, &packet::udp(client, (net.node, NODE_PORT + 1)));
        let leaves = pass(&dp, prog::TO_UPLINK, &packet::udp(client, (net.remote_pod, TARGET_PORT)));
        assert!(ports.insert(leaves.sport), "port {} twice", leaves.sport);
    }
}

#[test]
fn ports_run_out_with_a_reason() {
    let net = &nets()[0];
    let mut dp = node(net);
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61001, flags: 0 });
    let mut passed = 0;
    for n in 0..20u16 {
        let out = dp.run(prog::FROM_UPLINK, &packet::udp((net.client, 1024 + n), (net.node, NODE_PORT + 1)));
        passed += u64::from(out.verdict == UNSPEC);
    }
    assert_eq!(passed, 2, "two ports, two flows");
    assert_eq!(dp.drops(DropReason::NatPortExhausted), 18);
}

#[test]
fn what_is_no_node_port_passes_untouched() {
    for net in nets() {
        let mut dp = node(&net);
        let client = (net.client, CLIENT_PORT);
        untouched(&dp, prog::FROM_UPLINK, &packet::tcp(client, (net.node, 22), SYN));
        untouched(&dp, prog::FROM_UPLINK, &packet::tcp(client, (net.pod, NODE_PORT), SYN));
        untouched(&dp, prog::FROM_UPLINK, &packet::echo(net.client, net.node, false, 7));
        untouched(&dp, prog::TO_UPLINK, &packet::tcp((net.node, 40000), (net.outside, 443), SYN));
        untouched(&dp, prog::TO_UPLINK, &packet::echo(net.node, net.client, true, 7));
        // A ClusterIP is not for the outside.
        let cluster_ip = FrontendKey::new(net.outside.into(), Port::new(80), TCP);
        let inside = Frontend { service: 9, internal: LOCAL_SET, external: LOCAL_SET, flags: 0, affinity_timeout: 0 };
        dp.put(map::FRONTENDS, cluster_ip, inside);
        untouched(&dp, prog::FROM_UPLINK, &packet::tcp(client, (net.outside, 80), SYN));
    }
}

#[test]
fn broken_packets_and_other_protocols_are_left_to_the_stack() {
    let net = &nets()[0];
    let dp = node(net);
    let whole = packet::tcp((net.client, CLIENT_PORT), (net.node, NODE_PORT), SYN);
    // The kernel itself refuses to run a program on less than an IP header.
    for len in 14 + 20..14 + 20 + 16 {
        untouched(&dp, prog::FROM_UPLINK, &whole[..len]);
    }
    let mut arp = whole.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    untouched(&dp, prog::FROM_UPLINK, &arp);
    let mut version = whole.clone();
    version[14] = 0x65;
    untouched(&dp, prog::FROM_UPLINK, &version);
    let mut short = whole;
    short[14] = 0x44;
    untouched(&dp, prog::FROM_UPLINK, &short);
}

#[test]
fn an_ipv6_packet_with_a_mapped_address_is_dropped() {
    let net = &nets()[1];
    let dp = node(net);
    let mapped = addr("::ffff:198.51.100.9");
    let IpAddr::V6(node) = net.node else { panic!() };
    // The text form of a mapped address parses to IPv6.
    dropped(&dp, prog::FROM_UPLINK, &packet::tcp((mapped, 1), (node.into(), NODE_PORT), SYN), DropReason::MappedAddress);
}

#[test]
fn source_ranges_admit_only_their_own() {
    for net in nets() {
        let mut dp = node(&net);
        frontend(&mut dp, FrontendKey::new(net.outside.into(), Port::new(443), TCP), LOCAL_SET, Frontend::SOURCE_RANGES);
        let request = packet::tcp((net.client, CLIENT_PORT), (net.outside, 443), SYN);
        dropped(&dp, prog::FROM_UPLINK, &request, DropReason::SourceRange);
        let client = Addr::from(net.client);
        let key = SourceRangeKey { service: LOCAL_SET, addr: client };
        dp.put_prefix(map::SOURCE_RANGES, SourceRangeKey::prefix_len(client, 24), key, 1u32);
        assert_eq!(pass(&dp, prog::FROM_UPLINK, &request).dst, net.pod);
        let stranger = packet::tcp((net.remote_pod, CLIENT_PORT), (net.outside, 443), SYN);
        dropped(&dp, prog::FROM_UPLINK, &stranger, DropReason::SourceRange);
    }
}

#[test]
fn affinity_follows_the_clients_address() {
    let net = &nets()[0];
    let mut dp = node(net);
    frontend(&mut dp, FrontendKey::node_port(true, Port::new(NODE_PORT), TCP), LOCAL_SET, Frontend::AFFINITY);
    for slot in 0..8u32 {
        let id = 100 + slot;
        dp.put(map::BACKENDS, id, Backend::new(Addr::v4([10, 244, 0, 100 + slot as u8]), Port::new(80), Backend::LOCAL));
        dp.put(map::BACKEND_SLOTS, SlotKey { set: LOCAL_SET, slot }, id);
        dp.put(map::SET_MEMBERS, xebec_ebpf_abi::MemberKey { set: LOCAL_SET, backend: id }, slot);
    }
    dp.put(map::BACKEND_SETS, LOCAL_SET, BackendSet { count: 8, flags: 0 });
    let chosen: std::collections::HashSet<IpAddr> =
        (0..40).map(|n| pass(&dp, prog::FROM_UPLINK, &packet::tcp((net.client, 2000 + n), (net.node, NODE_PORT), SYN)).dst).collect();
    assert_eq!(chosen.len(), 1);
    let others: std::collections::HashSet<IpAddr> = (0..100)
        .map(|n| {
            let client = IpAddr::from([198, 51, 101, n]);
            pass(&dp, prog::FROM_UPLINK, &packet::tcp((client, 2000), (net.node, NODE_PORT), SYN)).dst
        })
        .collect();
    assert_eq!(others.len(), 8, "other clients go everywhere");
}

#[test]
fn icmp_errors_find_the_flow_they_are_about() {
    for net in nets() {
        let dp = node(&net);
        let router = match net.node {
            IpAddr::V4(_) => addr("203.0.113.254"),
            IpAddr::V6(_) => addr("2001:db8:ff::1"),
        };
        for proto in [TCP, UDP] {
            // About a masqueraded pod's packet.
            let (pod, outside) = ((net.pod, 41000), (net.outside, 443));
            let sent = dp.run(prog::TO_UPLINK, &make(proto, pod, outside)).bytes;
            let error = packet::too_big(router, net.node, &sent[14..]);
            let out = pass(&dp, prog::FROM_UPLINK, &error);
            assert_eq!((out.src, out.dst), (router, net.pod));
            assert_eq!(packet::read_ip(&out.l4[8..]).tuple(), (pod, outside));
            // About an answer of a NodePort's backend, from a router at the client's side.
            let (client, asked) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT));
            pass(&dp, prog::FROM_UPLINK, &make(proto, client, asked));
            let answer = dp.run(prog::TO_UPLINK, &make_answer(proto, (net.pod, TARGET_PORT), client)).bytes;
            let out = pass(&dp, prog::FROM_UPLINK, &packet::too_big(router, net.node, &answer[14..]));
            assert_eq!((out.src, out.dst), (router, net.pod));
            assert_eq!(packet::read_ip(&out.l4[8..]).tuple(), ((net.pod, TARGET_PORT), client));
            // From the backend itself, about the request: leaves as the node's.
            let request = packet::ip(
                net.client,
                net.pod,
                proto,
                &make(proto, client, (net.pod, TARGET_PORT))[14 + if net.pod.is_ipv4() { 20 } else { 40 }..],
            );
            let out = pass(&dp, prog::TO_UPLINK, &packet::too_big(net.pod, net.client, &request));
            assert_eq!((out.src, out.dst), (net.node, net.client));
            assert_eq!(packet::read_ip(&out.l4[8..]).tuple(), (client, asked));
        }
        // About a ping.
        let sent = dp.run(prog::TO_UPLINK, &packet::echo(net.pod, net.outside, false, 99)).bytes;
        let out = pass(&dp, prog::FROM_UPLINK, &packet::too_big(router, net.node, &sent[14..]));
        assert_eq!(packet::read_ip(&out.l4[8..]).src, net.pod);
        assert_eq!(out.l4[8 + if net.pod.is_ipv4() { 24 } else { 44 }..][..2], 99u16.to_be_bytes());
        // About nothing anyone knows.
        let stray = packet::ip(net.pod, net.outside, UDP, &packet::udp_datagram((net.pod, 1), (net.outside, 2), b"x"));
        untouched(&dp, prog::FROM_UPLINK, &packet::too_big(router, net.node, &stray));
        let stray = packet::ip(net.outside, net.pod, UDP, &packet::udp_datagram((net.outside, 2), (net.pod, 1), b"x"));
        dropped(&dp, prog::TO_UPLINK, &packet::too_big(net.pod, net.outside, &stray), DropReason::IcmpUnrelated);
    }
}

#[test]
fn fragments_follow_their_first_one() {
    let net = &nets()[0];
    let dp = node(net);
    let (client, asked) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT));
    // A whole datagram's header; the checksum covers parts that are elsewhere.
    let first = packet::udp_datagram(client, asked, &[7; 64]);
    let first = packet::ethernet(&packet::ip_fragment(net.client, net.node, UDP, &first, 0x2000, 0x1234));
    let later = packet::ethernet(&packet::ip_fragment(net.client, net.node, UDP, &[8; 40], 9, 0x1234));
    untouched(&dp, prog::FROM_UPLINK, &later);
    let out = dp.run(prog::FROM_UPLINK, &first);
    assert_eq!(out.verdict, UNSPEC);
    assert_eq!(packet::read_ip(&out.bytes[14..]).tuple(), (client, (net.pod, TARGET_PORT)));
    let out = dp.run(prog::FROM_UPLINK, &later);
    assert_eq!(packet::read_ip(&out.bytes[14..]).dst, net.pod);
    assert_eq!(&out.bytes[34..], &[8; 40], "nothing behind the IP header is touched");
    // A pod's later fragment alone would show the pod's address outside.
    let stray = packet::ethernet(&packet::ip_fragment(net.pod, net.outside, UDP, &[8; 40], 9, 0x1235));
    dropped(&dp, prog::TO_UPLINK, &stray, DropReason::FragmentUnknown);
}

#[test]
fn sctp_is_served_while_the_port_stays() {
    let net = &nets()[0];
    let mut dp = node(net);
    for (port, ok) in [(TARGET_PORT, true), (NODE_PORT, false)] {
        frontend(&mut dp, FrontendKey::node_port(true, Port::new(port), 132), LOCAL_SET, 0);
        let mut chunk = vec![];
        chunk.extend(5000u16.to_be_bytes());
        chunk.extend(port.to_be_bytes());
        chunk.extend([0; 12]);
        let request = packet::ethernet(&packet::ip(net.client, net.node, 132, &chunk));
        if ok {
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &request).dst, net.pod);
        } else {
            dropped(&dp, prog::FROM_UPLINK, &request, DropReason::ProtocolUnsupported);
        }
    }
}

fn entry(dp: &mut Dataplane, proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Nat {
    let key = Tuple::new(src.0.into(), Port::new(src.1), dst.0.into(), Port::new(dst.1), proto);
    dp.hash::<Tuple, Nat>(map::NAT).get(&key, 0).expect("an entry")
}

#[test]
fn both_entries_share_a_flows_state_and_life() {
    let net = &nets()[0];
    let mut dp = node(net);
    let (client, asked, target) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT), (net.pod, TARGET_PORT));
    let there = packet::tcp(client, asked, SYN);
    pass(&dp, prog::FROM_UPLINK, &there);
    let new = entry(&mut dp, TCP, client, asked);
    assert_eq!((new.flags, new.state, new.backend), (0, 0, LOCAL_SET));
    pass(&dp, prog::TO_UPLINK, &packet::tcp(target, client, SYN | ACK));
    let (one, other) = (entry(&mut dp, TCP, client, asked), entry(&mut dp, TCP, target, client));
    assert_eq!(one.state, u16::from(Flow::REPLIED));
    assert_eq!((one.state, one.expires), (other.state, other.expires));
    assert!(one.expires > new.expires + 3600 * 1_000_000_000, "established lives long");
    assert_eq!(other.flags, Nat::REPLY);
    pass(&dp, prog::FROM_UPLINK, &packet::tcp(client, asked, FIN | ACK));
    pass(&dp, prog::TO_UPLINK, &packet::tcp(target, client, FIN | ACK));
    let closed = entry(&mut dp, TCP, client, asked);
    assert!(closed.expires < one.expires, "closed does not");
    // The client may use the port again, and gets whatever backend there is now.
    dp.put(map::BACKENDS, LOCAL_SET, Backend::new(net.remote_pod.into(), Port::new(1234), Backend::LOCAL));
    assert_eq!(pass(&dp, prog::FROM_UPLINK, &there).dst, net.remote_pod);
    // An established one stays where it is.
    pass(&dp, prog::TO_UPLINK, &packet::tcp((net.remote_pod, 1234), client, SYN | ACK));
    dp.put(map::BACKENDS, LOCAL_SET, Backend::new(net.pod.into(), Port::new(1), Backend::LOCAL));
    assert_eq!(pass(&dp, prog::FROM_UPLINK, &packet::tcp(client, asked, ACK)).dst, net.remote_pod);
    pass(&dp, prog::FROM_UPLINK, &packet::tcp(client, asked, RST));
    assert_eq!(pass(&dp, prog::FROM_UPLINK, &there).dst, net.pod);
}
