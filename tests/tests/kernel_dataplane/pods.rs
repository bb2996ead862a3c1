//! Pods: source check, policy, conntrack.

use crate::{
    fixture::{Dataplane, SHOT, UNSPEC},
    packet::{self, ACK, FIN, RST, SYN, TCP, UDP, addr},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, DropReason, Endpoint, Flow, FlowKey, NetnsCookie, PolicyKey, PolicyVerdict, Port, Remote, direction, forward, identity, map,
    port_prefixes, prog,
};

struct Net {
    pod: IpAddr,
    peer: IpAddr,
    node: IpAddr,
    world: IpAddr,
}

fn nets() -> [Net; 2] {
    [
        Net { pod: addr("10.244.0.5"), peer: addr("10.244.0.6"), node: addr("192.0.2.1"), world: addr("203.0.113.80") },
        Net { pod: addr("fd00:244::5"), peer: addr("fd00:244::6"), node: addr("2001:db8:2::1"), world: addr("2001:db8:3::80") },
    ]
}

const POD: u32 = 7;
const PEER: u32 = 300;

fn endpoint(flags: u32, epoch: u32) -> Endpoint {
    Endpoint { id: POD, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch, netns: NetnsCookie::UNKNOWN }
}

fn node(net: &Net, flags: u32) -> Dataplane {
    let mut dp = Dataplane::load();
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint(flags, 1));
    let full = |a: IpAddr| (Addr::from(a), 128);
    let (peer, bits) = full(net.peer);
    dp.put_prefix(map::IPCACHE, bits, peer, Remote { identity: PEER, flags: 0 });
    let (node, bits) = full(net.node);
    dp.put_prefix(map::IPCACHE, bits, node, Remote { identity: identity::HOST, flags: Remote::HOST });
    dp
}

fn allow(dp: &mut Dataplane, way: u8, identity: u32, proto: u8, port: u16, bits: u32) {
    let key = PolicyKey::new(POD, way, identity, proto, Port::new(port));
    dp.put_prefix(map::POLICY, bits, key, PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 1 });
}

fn passes(dp: &Dataplane, program: &str, packet: &[u8]) {
    let out = dp.run(program, packet);
    assert_eq!(out.verdict, UNSPEC, "{program} {:?}", packet::read_ip(&packet[14..]));
    assert_eq!(out.bytes, packet, "nothing is changed");
}

fn drops(dp: &Dataplane, program: &str, packet: &[u8], reason: DropReason) {
    let before = dp.drops(reason);
    assert_eq!(dp.run(program, packet).verdict, SHOT, "{program} {:?}", packet::read_ip(&packet[14..]));
    assert_eq!(dp.drops(reason), before + 1, "{reason:?} is counted");
}

#[test]
fn without_policy_everything_passes_both_ways() {
    for net in nets() {
        let dp = node(&net, 0);
        passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.world, 80), SYN));
        passes(&dp, prog::TO_POD, &packet::udp((net.world, 1000), (net.pod, 53)));
        passes(&dp, prog::FROM_POD, &packet::echo(net.pod, net.world, false, 1));
        assert_eq!(dp.counter(map::FORWARDS, forward::FROM_POD).packets, 2);
        assert_eq!(dp.counter(map::FORWARDS, forward::TO_POD).packets, 1);
    }
}

#[test]
fn a_pod_sends_from_its_own_address_only() {
    for net in nets() {
        let mut dp = node(&net, 0);
        let spoofed = packet::udp((net.peer, 1), (net.world, 2));
        drops(&dp, prog::FROM_POD, &spoofed, DropReason::SpoofedSource);
        // Also when the address is another local pod's.
        dp.put(map::ENDPOINTS, Addr::from(net.peer), Endpoint { id: 8, ifindex: 99, ..endpoint(0, 1) });
        drops(&dp, prog::FROM_POD, &spoofed, DropReason::SpoofedSource);
        drops(&dp, prog::TO_POD, &packet::udp((net.world, 1), (net.peer, 2)), DropReason::UnknownEndpoint);
        drops(&dp, prog::TO_POD, &packet::udp((net.world, 1), (net.node, 2)), DropReason::UnknownEndpoint);
    }
}

#[test]
fn only_ip_and_what_it_needs_leaves_a_pod() {
    let net = &nets()[0];
    let dp = node(net, Endpoint::ISOLATE_EGRESS | Endpoint::ISOLATE_INGRESS);
    let mut frame = packet::udp((net.pod, 1), (net.world, 2));
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(dp.run(prog::FROM_POD, &frame).verdict, UNSPEC, "ARP");
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(dp.run(prog::FROM_POD, &frame).verdict, SHOT, "LLDP");
    assert_eq!(dp.drops(DropReason::NotIp), 1);
    let solicit = packet::icmp(addr("fe80::1"), addr("ff02::1:ff00:1"), 135, 0, [0; 4], &[0; 16]);
    passes(&dp, prog::FROM_POD, &solicit);
    passes(&dp, prog::TO_POD, &solicit);
}

#[test]
fn cut_off_headers_are_malformed() {
    for net in nets() {
        let dp = node(&net, 0);
        let whole = packet::tcp((net.pod, 1), (net.world, 2), SYN);
        let header = if net.pod.is_ipv4() { 20 } else { 40 };
        let mut count = 0;
        // The kernel itself refuses to run a program on less than an IP header.
        for len in 14 + header..14 + header + 16 {
            assert_eq!(dp.run(prog::FROM_POD, &whole[..len]).verdict, SHOT, "{len} bytes");
            count += 1;
        }
        assert_eq!(dp.drops(DropReason::Malformed), count);
    }
}

#[test]
fn isolation_denies_what_no_rule_allows() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_INGRESS);
        let request = |port| packet::tcp((net.peer, 1000), (net.pod, port), SYN);
        drops(&dp, prog::TO_POD, &request(80), DropReason::PolicyIngress);
        allow(&mut dp, direction::INGRESS, PEER, TCP, 80, PolicyKey::EXACT);
        passes(&dp, prog::TO_POD, &request(80));
        drops(&dp, prog::TO_POD, &request(81), DropReason::PolicyIngress);
        // Another protocol, another peer, another direction: other things.
        drops(&dp, prog::TO_POD, &packet::udp((net.peer, 1000), (net.pod, 80)), DropReason::PolicyIngress);
        drops(&dp, prog::TO_POD, &packet::tcp((net.world, 1000), (net.pod, 80), SYN), DropReason::PolicyIngress);
        drops(&dp, prog::TO_POD, &packet::echo(net.peer, net.pod, false, 1), DropReason::PolicyIngress);
        passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1001), (net.world, 80), SYN));
    }
}

#[test]
fn egress_isolation_looks_at_the_other_side() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_EGRESS);
        allow(&mut dp, direction::EGRESS, PEER, TCP, 5432, PolicyKey::EXACT);
        passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.peer, 5432), SYN));
        drops(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.peer, 80), SYN), DropReason::PolicyEgress);
        drops(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.world, 5432), SYN), DropReason::PolicyEgress);
        passes(&dp, prog::TO_POD, &packet::tcp((net.world, 1000), (net.pod, 80), SYN));
    }
}

#[test]
fn rules_may_name_any_peer_any_port_and_ranges() {
    let net = &nets()[0];
    let flags = Endpoint::ISOLATE_INGRESS;
    let from = |peer, port| packet::tcp((peer, 1000), (net.pod, port), SYN);
    let mut dp = node(net, flags);
    allow(&mut dp, direction::INGRESS, identity::ANY, TCP, 443, PolicyKey::EXACT);
    passes(&dp, prog::TO_POD, &from(net.peer, 443));
    passes(&dp, prog::TO_POD, &from(net.world, 443));
    drops(&dp, prog::TO_POD, &from(net.peer, 444), DropReason::PolicyIngress);
    let mut dp = node(net, flags);
    allow(&mut dp, direction::INGRESS, PEER, TCP, 0, PolicyKey::ANY_PORT);
    passes(&dp, prog::TO_POD, &from(net.peer, 1));
    drops(&dp, prog::TO_POD, &packet::udp((net.peer, 1), (net.pod, 1)), DropReason::PolicyIngress);
    let mut dp = node(net, flags);
    allow(&mut dp, direction::INGRESS, PEER, 0, 0, PolicyKey::ANY_PROTO);
    passes(&dp, prog::TO_POD, &packet::udp((net.peer, 1), (net.pod, 1)));
    passes(&dp, prog::TO_POD, &packet::echo(net.peer, net.pod, false, 5));
    drops(&dp, prog::TO_POD, &from(net.world, 1), DropReason::PolicyIngress);
    let mut dp = node(net, flags);
    for (port, bits) in port_prefixes(32000, 32768) {
        allow(&mut dp, direction::INGRESS, identity::WORLD, TCP, port.get(), bits);
    }
    for port in [32000, 32001, 32500, 32767, 32768] {
        passes(&dp, prog::TO_POD, &from(net.world, port));
    }
    for port in [31999, 32769, 1, 65535] {
        drops(&dp, prog::TO_POD, &from(net.world, port), DropReason::PolicyIngress);
    }
}

#[test]
fn a_deny_wins_over_an_allow() {
    let net = &nets()[0];
    let mut dp = node(net, Endpoint::ISOLATE_INGRESS);
    allow(&mut dp, direction::INGRESS, identity::ANY, TCP, 0, PolicyKey::ANY_PORT);
    let key = PolicyKey::new(POD, direction::INGRESS, PEER, TCP, Port::new(22));
    dp.put_prefix(map::POLICY, PolicyKey::EXACT, key, PolicyVerdict { verdict: PolicyVerdict::DENY, rule: 2 });
    drops(&dp, prog::TO_POD, &packet::tcp((net.peer, 1), (net.pod, 22), SYN), DropReason::PolicyIngress);
    passes(&dp, prog::TO_POD, &packet::tcp((net.world, 1), (net.pod, 22), SYN));
}

/// Tiers are resolved where entries are made: a peer that has entries is judged by them alone, within them the narrowest
/// decides, and only a peer without any is judged by those for all.
#[test]
fn a_peers_own_entries_decide_before_those_for_all() {
    let deny = |dp: &mut Dataplane, way: u8, identity: u32, proto: u8, port: u16, bits: u32| {
        let key = PolicyKey::new(POD, way, identity, proto, Port::new(port));
        dp.put_prefix(map::POLICY, bits, key, PolicyVerdict { verdict: PolicyVerdict::DENY, rule: 3 });
    };
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS);
        for way in [direction::INGRESS, direction::EGRESS] {
            deny(&mut dp, way, identity::ANY, 0, 0, PolicyKey::ANY_PROTO);
            allow(&mut dp, way, identity::ANY, UDP, 53, PolicyKey::EXACT);
            allow(&mut dp, way, PEER, 0, 0, PolicyKey::ANY_PROTO);
            deny(&mut dp, way, PEER, UDP, 0, PolicyKey::ANY_PORT);
            deny(&mut dp, way, PEER, TCP, 22, PolicyKey::EXACT);
        }
        for (program, from, to, reason) in
            [(prog::TO_POD, net.peer, net.pod, DropReason::PolicyIngress), (prog::FROM_POD, net.pod, net.peer, DropReason::PolicyEgress)]
        {
            passes(&dp, program, &packet::tcp((from, 1000), (to, 80), SYN));
            passes(&dp, program, &packet::echo(from, to, false, 1));
            drops(&dp, program, &packet::tcp((from, 1001), (to, 22), SYN), reason);
            drops(&dp, program, &packet::udp((from, 1002), (to, 53)), reason);
        }
        for (program, from, to, reason) in
            [(prog::TO_POD, net.world, net.pod, DropReason::PolicyIngress), (prog::FROM_POD, net.pod, net.world, DropReason::PolicyEgress)]
        {
            passes(&dp, program, &packet::udp((from, 1000), (to, 53)));
            drops(&dp, program, &packet::tcp((from, 1001), (to, 80), SYN), reason);
            drops(&dp, program, &packet::udp((from, 1002), (to, 54)), reason);
        }
        // What an administrator denies is denied to the node's address as well; the node's own packets always come in.
        drops(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.node, 10250), SYN), DropReason::PolicyEgress);
        passes(&dp, prog::TO_POD, &packet::tcp((net.node, 1000), (net.pod, 22), SYN));
    }
}

#[test]
fn the_node_always_reaches_its_pods() {
    for net in nets() {
        let dp = node(&net, Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS);
        passes(&dp, prog::TO_POD, &packet::tcp((net.node, 1000), (net.pod, 8080), SYN));
        passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 8080), (net.node, 1000), SYN | ACK));
        drops(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.node, 22), SYN), DropReason::PolicyEgress);
    }
}

#[test]
fn answers_pass_whatever_the_policy_of_their_direction() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS);
        allow(&mut dp, direction::EGRESS, PEER, 0, 0, PolicyKey::ANY_PROTO);
        let answer = packet::tcp((net.peer, 80), (net.pod, 1000), SYN | ACK);
        drops(&dp, prog::TO_POD, &answer, DropReason::PolicyIngress);
        passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.peer, 80), SYN));
        passes(&dp, prog::TO_POD, &answer);
        passes(&dp, prog::FROM_POD, &packet::udp((net.pod, 1000), (net.peer, 53)));
        passes(&dp, prog::TO_POD, &packet::udp((net.peer, 53), (net.pod, 1000)));
        drops(&dp, prog::TO_POD, &packet::udp((net.peer, 53), (net.pod, 1001)), DropReason::PolicyIngress);
        passes(&dp, prog::FROM_POD, &packet::echo(net.pod, net.peer, false, 9));
        passes(&dp, prog::TO_POD, &packet::echo(net.peer, net.pod, true, 9));
        drops(&dp, prog::TO_POD, &packet::echo(net.peer, net.pod, true, 10), DropReason::PolicyIngress);
    }
}

#[test]
fn a_connection_back_over_an_established_ones_ports_is_judged_by_itself() {
    let net = &nets()[0];
    let dp = node(net, Endpoint::ISOLATE_INGRESS);
    passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.peer, 80), SYN));
    passes(&dp, prog::TO_POD, &packet::tcp((net.peer, 80), (net.pod, 1000), SYN | ACK));
    drops(&dp, prog::TO_POD, &packet::tcp((net.peer, 80), (net.pod, 1000), SYN), DropReason::PolicyIngress);
    passes(&dp, prog::TO_POD, &packet::tcp((net.peer, 80), (net.pod, 1000), ACK));
}

#[test]
fn icmp_errors_pass_with_the_flow_they_are_about() {
    for net in nets() {
        let dp = node(&net, Endpoint::ISOLATE_INGRESS);
        let router = if net.pod.is_ipv4() { addr("203.0.113.254") } else { addr("2001:db8:ff::1") };
        let sent = packet::udp((net.pod, 1000), (net.world, 53));
        let error = packet::too_big(router, net.pod, &sent[14..]);
        drops(&dp, prog::TO_POD, &error, DropReason::PolicyIngress);
        passes(&dp, prog::FROM_POD, &sent);
        passes(&dp, prog::TO_POD, &error);
        // The pod's own errors about what it was sent.
        let mut dp = node(&net, Endpoint::ISOLATE_EGRESS);
        let got = packet::udp((net.world, 53), (net.pod, 1000));
        let error = packet::too_big(net.pod, net.world, &got[14..]);
        drops(&dp, prog::FROM_POD, &error, DropReason::PolicyEgress);
        passes(&dp, prog::TO_POD, &got);
        passes(&dp, prog::FROM_POD, &error);
        // An error does not keep a flow that has ended.
        let key = FlowKey::new(POD, Port::new(1000), net.world.into(), Port::new(53), UDP);
        dp.put(map::FLOWS, key, Flow::new(direction::INGRESS, 0, 1, 1));
        drops(&dp, prog::FROM_POD, &error, DropReason::PolicyEgress);
    }
}

#[test]
fn a_changed_policy_ends_established_flows_and_only_those_it_forbids() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_INGRESS);
        allow(&mut dp, direction::INGRESS, PEER, TCP, 80, PolicyKey::EXACT);
        allow(&mut dp, direction::INGRESS, PEER, TCP, 81, PolicyKey::EXACT);
        let from_peer = |port| packet::tcp((net.peer, 1000), (net.pod, port), ACK);
        let to_peer = |port| packet::tcp((net.pod, port), (net.peer, 1000), ACK);
        for port in [80, 81] {
            passes(&dp, prog::TO_POD, &packet::tcp((net.peer, 1000), (net.pod, port), SYN));
            passes(&dp, prog::FROM_POD, &to_peer(port));
        }
        let key = PolicyKey::new(POD, direction::INGRESS, PEER, TCP, Port::new(80));
        dp.trie::<PolicyKey, PolicyVerdict>(map::POLICY).remove(&aya::maps::lpm_trie::Key::new(PolicyKey::EXACT, key)).unwrap();
        passes(&dp, prog::TO_POD, &from_peer(80));
        dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint(Endpoint::ISOLATE_INGRESS, 2));
        drops(&dp, prog::TO_POD, &from_peer(80), DropReason::PolicyIngress);
        // The pod is heard no more either: what it says belongs to the same flow.
        drops(&dp, prog::FROM_POD, &to_peer(80), DropReason::PolicyEgress);
        passes(&dp, prog::TO_POD, &from_peer(81));
        passes(&dp, prog::FROM_POD, &to_peer(81));
    }
}

#[test]
fn becoming_isolated_does_not_end_what_the_pod_itself_began() {
    let net = &nets()[0];
    let mut dp = node(net, 0);
    passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.world, 5432), SYN));
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint(Endpoint::ISOLATE_INGRESS, 2));
    passes(&dp, prog::TO_POD, &packet::tcp((net.world, 5432), (net.pod, 1000), ACK));
    passes(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.world, 5432), ACK));
}

#[test]
fn flows_live_as_long_as_their_state_says() {
    let net = &nets()[0];
    let mut dp = node(net, 0);
    let key = FlowKey::new(POD, Port::new(1000), net.world.into(), Port::new(80), TCP);
    let flow = |dp: &mut Dataplane| dp.hash::<FlowKey, Flow>(map::FLOWS).get(&key, 0).expect("an entry");
    let there = |flags| packet::tcp((net.pod, 1000), (net.world, 80), flags);
    let back = |flags| packet::tcp((net.world, 80), (net.pod, 1000), flags);
    const MINUTE: u64 = 60 * 1_000_000_000;
    passes(&dp, prog::FROM_POD, &there(SYN));
    let new = flow(&mut dp);
    assert_eq!((new.direction, new.state, new.epoch), (direction::EGRESS, 0, 1));
    passes(&dp, prog::TO_POD, &back(SYN | ACK));
    let established = flow(&mut dp);
    assert_eq!(established.state, Flow::REPLIED);
    assert!(established.expires > new.expires + 60 * MINUTE);
    passes(&dp, prog::FROM_POD, &there(FIN | ACK));
    assert!(flow(&mut dp).expires >= established.expires, "half closed may go on");
    passes(&dp, prog::TO_POD, &back(FIN | ACK));
    assert!(flow(&mut dp).expires < new.expires + MINUTE);
    // The ports may be used again.
    passes(&dp, prog::FROM_POD, &there(SYN));
    assert_eq!(flow(&mut dp).state, 0);
    passes(&dp, prog::TO_POD, &back(RST));
    assert_eq!(flow(&mut dp).state & Flow::RESET, Flow::RESET);
    assert!(flow(&mut dp).expires < new.expires + MINUTE);
}

#[test]
fn an_expired_flow_counts_for_nothing() {
    let net = &nets()[0];
    let mut dp = node(net, Endpoint::ISOLATE_INGRESS);
    let key = FlowKey::new(POD, Port::new(1000), net.world.into(), Port::new(80), TCP);
    dp.put(map::FLOWS, key, Flow::new(direction::EGRESS, Flow::REPLIED, 1, 1));
    drops(&dp, prog::TO_POD, &packet::tcp((net.world, 80), (net.pod, 1000), ACK), DropReason::PolicyIngress);
}

#[test]
fn later_fragments_share_the_verdict_of_the_first() {
    for first in [true, false] {
        let net = &nets()[0];
        let mut dp = node(net, Endpoint::ISOLATE_INGRESS);
        allow(&mut dp, direction::INGRESS, PEER, UDP, 53, PolicyKey::EXACT);
        let head = packet::udp_datagram((net.peer, 1000), (net.pod, 53), &[1; 64]);
        let head = packet::ethernet(&packet::ip_fragment(net.peer, net.pod, UDP, &head, 0x2000, 5));
        let tail = packet::ethernet(&packet::ip_fragment(net.peer, net.pod, UDP, &[2; 32], 9, 5));
        if first {
            passes(&dp, prog::TO_POD, &head);
            passes(&dp, prog::TO_POD, &tail);
        } else {
            drops(&dp, prog::TO_POD, &tail, DropReason::FragmentUnknown);
        }
    }
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let net = &nets()[1];
    let mut dp = node(net, Endpoint::ISOLATE_INGRESS);
    allow(&mut dp, direction::INGRESS, PEER, UDP, 53, PolicyKey::EXACT);
    let datagram = |port| packet::udp_datagram((net.peer, 1000), (net.pod, port), b"x");
    // Hop-by-hop (16 bytes), then destination options (8), then an atomic fragment, then UDP.
    let chain = |port| {
        let mut bytes = vec![60, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend([UDP, 0, 0, 0, 0, 0, 0, 9]);
        bytes.extend(datagram(port));
        packet::ethernet(&packet::ip(net.peer, net.pod, 0, &bytes))
    };
    passes(&dp, prog::TO_POD, &chain(53));
    drops(&dp, prog::TO_POD, &chain(54), DropReason::PolicyIngress);
    // More headers than are walked.
    let mut bytes = Vec::new();
    for _ in 0..9 {
        bytes.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(datagram(53));
    drops(&dp, prog::TO_POD, &packet::ethernet(&packet::ip(net.peer, net.pod, 60, &bytes)), DropReason::Malformed);
}
