//! Packets that are rare: chains of extension headers, fragments that overlap or are cut too small, SCTP, ICMP errors of every kind.

use crate::{
    fixture::{Dataplane, SHOT, UNSPEC},
    packet::{self, ACK, SYN, TCP, UDP, addr, read},
    uplink::{CLIENT_PORT, LOCAL_SET, NODE_PORT, Net, TARGET_PORT, dropped, nets, node, pass, untouched},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, DropReason, Endpoint, Frontend, FrontendKey, NetnsCookie, PolicyKey, PolicyVerdict, Port, direction, map, prog,
};

const SCTP: u8 = 132;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// An IPv6 frame with these extension headers in front of UDP.
fn chained(kinds: &[u8], src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    let (mut next, mut payload) = (UDP, packet::udp_datagram(src, dst, b"behind a chain"));
    for &kind in kinds.iter().rev() {
        let mut header = vec![next, 1];
        match kind {
            // Of a datagram that is whole: no offset, nothing to come.
            FRAGMENT => header = vec![next, 0, 0, 0, 1, 2, 3, 4],
            AUTHENTICATION => header.resize(8 + 4, 0xaa),
            _ => header.resize(8 + 8, 0),
        }
        header.extend(payload);
        (next, payload) = (kind, header);
    }
    packet::ethernet(&packet::ip(src.0, dst.0, next, &payload))
}

#[test]
fn what_is_behind_extension_headers_is_translated_and_they_are_not() {
    let net = &nets()[1];
    let dp = node(net);
    let (client, asked, target) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT), (net.pod, TARGET_PORT));
    let all = [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION];
    for kinds in [&all[..1], &all[1..2], &all[2..3], &all[3..4], &all[4..5], &all[..3], &all[1..], &all[..5]] {
        // Written anew with the other addresses, ports and sum, it is the same packet.
        let out = dp.run(prog::FROM_UPLINK, &chained(kinds, client, asked));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, chained(kinds, client, target)), "{kinds:?}");
        let out = dp.run(prog::TO_UPLINK, &chained(kinds, target, client));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, chained(kinds, asked, client)), "{kinds:?}");
    }
    // One more than anybody needs: the node's own stack may make of it what it can, a pod does not get it.
    let endless = [DESTINATION; 7];
    untouched(&dp, prog::FROM_UPLINK, &chained(&endless, client, asked));
    dropped(&dp, prog::TO_POD, &chained(&endless, client, target), DropReason::Malformed);
    dropped(&dp, prog::FROM_POD, &chained(&endless, target, client), DropReason::Malformed);
}

/// A pod that only this protocol and port may come to.
fn guarded(net: &Net, proto: u8, port: u16) -> Dataplane {
    let mut dp = node(net);
    let flags = Endpoint::ISOLATE_INGRESS;
    let endpoint = Endpoint { id: 1, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
    let key = PolicyKey::new(1, direction::INGRESS, 0, proto, Port::new(port));
    dp.put_prefix(map::POLICY, PolicyKey::EXACT, key, PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 });
    dp
}

/// A piece of a datagram; `offset` in units of eight bytes.
fn piece(src: IpAddr, dst: IpAddr, payload: &[u8], offset: u16, more: bool) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => {
            let flags = offset | if more { 0x2000 } else { 0 };
            packet::ethernet(&packet::ip_fragment(src, dst, TCP, payload, flags, 0x55))
        }
        IpAddr::V6(_) => {
            let mut bytes = vec![TCP, 0];
            bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
            bytes.extend([0, 0, 0, 0x55]);
            bytes.extend(payload);
            packet::ethernet(&packet::ip(src, dst, FRAGMENT, &bytes))
        }
    }
}

#[test]
fn overlapping_and_tiny_fragments_bring_no_other_ports_past_a_policy() {
    for net in nets() {
        let dp = guarded(&net, TCP, 80);
        let (src, dst) = (net.client, net.pod);
        let allowed = packet::tcp_segment((src, 1000), (dst, 80), SYN, &[1; 28]);
        let denied = packet::tcp_segment((src, 1000), (dst, 22), SYN, &[2; 28]);
        assert_eq!(dp.run(prog::TO_POD, &piece(src, dst, &allowed[..24], 0, true)).verdict, UNSPEC);
        assert_eq!(dp.run(prog::TO_POD, &piece(src, dst, &allowed[24..], 3, false)).verdict, UNSPEC);
        // Over the ports of the first there lies only another first one, which is judged by itself.
        dropped(&dp, prog::TO_POD, &piece(src, dst, &denied[..24], 0, true), DropReason::PolicyIngress);
        // And what follows it goes with it.
        dropped(&dp, prog::TO_POD, &piece(src, dst, &denied[24..], 3, false), DropReason::PolicyIngress);
        // Flags in the second piece, so that the first seems harmless.
        dropped(&dp, prog::TO_POD, &piece(src, dst, &allowed[..8], 0, true), DropReason::Malformed);
        // An allowed first one takes its place again.
        assert_eq!(dp.run(prog::TO_POD, &piece(src, dst, &allowed[..24], 0, true)).verdict, UNSPEC);
        assert_eq!(dp.run(prog::TO_POD, &piece(src, dst, &allowed[24..], 3, false)).verdict, UNSPEC);
    }
}

fn sctp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    let mut chunk = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
    chunk.extend([0xab; 20]);
    packet::ethernet(&packet::ip(src.0, dst.0, SCTP, &chunk))
}

#[test]
fn policy_knows_ports_of_sctp_from_those_of_others() {
    for net in nets() {
        let dp = guarded(&net, SCTP, 5000);
        let from = (net.client, 1000);
        untouched(&dp, prog::TO_POD, &sctp(from, (net.pod, 5000)));
        untouched(&dp, prog::FROM_POD, &sctp((net.pod, 5000), from));
        dropped(&dp, prog::TO_POD, &sctp(from, (net.pod, 5001)), DropReason::PolicyIngress);
        dropped(&dp, prog::TO_POD, &packet::tcp(from, (net.pod, 5000), SYN), DropReason::PolicyIngress);
        dropped(&dp, prog::TO_POD, &packet::udp(from, (net.pod, 5000)), DropReason::PolicyIngress);
    }
}

#[test]
fn a_service_of_sctp_is_reached_by_pods_and_from_outside() {
    for net in nets() {
        let mut dp = node(&net);
        let value = Frontend { service: 5, internal: LOCAL_SET, external: LOCAL_SET, flags: Frontend::EXTERNAL, affinity_timeout: 0 };
        dp.put(map::FRONTENDS, FrontendKey::new(net.outside.into(), Port::new(TARGET_PORT), SCTP), value);
        let (asked, target) = ((net.outside, TARGET_PORT), (net.pod, TARGET_PORT));
        // The sum is a CRC over the payload alone, so all of it stays.
        let out = dp.run(prog::FROM_UPLINK, &sctp((net.client, 1000), asked));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, sctp((net.client, 1000), target)));
        let out = dp.run(prog::TO_UPLINK, &sctp(target, (net.client, 1000)));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, sctp(asked, (net.client, 1000))));
        let backend = xebec_ebpf_abi::Backend::new(net.remote_pod.into(), Port::new(TARGET_PORT), 0);
        dp.put(map::BACKENDS, LOCAL_SET, backend);
        let remote = (net.remote_pod, TARGET_PORT);
        let out = dp.run(prog::FROM_POD, &sctp((net.pod, 1000), asked));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, sctp((net.pod, 1000), remote)));
        let out = dp.run(prog::TO_POD, &sctp(remote, (net.pod, 1000)));
        assert_eq!((out.verdict, out.bytes), (UNSPEC, sctp(asked, (net.pod, 1000))));
    }
}

/// Kinds and codes of ICMP errors: unreachable in several ways, too big, time exceeded, parameter problem.
fn errors(v4: bool) -> &'static [(u8, u8)] {
    if v4 { &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)] } else { &[(1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (4, 1)] }
}

#[test]
fn icmp_errors_of_every_kind_are_translated_both_ways() {
    for net in nets() {
        let router = if net.node.is_ipv4() { addr("203.0.113.254") } else { addr("2001:db8:ff::1") };
        let (mut dp, guarded) = (node(&net), guarded(&net, TCP, 80));
        let value = Frontend { service: 5, internal: 2, external: 2, flags: 0, affinity_timeout: 0 };
        dp.put(map::FRONTENDS, FrontendKey::new(net.outside.into(), Port::new(80), TCP), value);
        for &(kind, code) in errors(net.node.is_ipv4()) {
            let error = |to: IpAddr, about: &[u8]| {
                let about = &about[14..];
                packet::icmp(router, to, kind, code, [0, 0, 5, 0], &about[..about.len().min(64)])
            };
            let inside = |out: &packet::Read| packet::read_ip(&out.l4[8..]).tuple();
            // From outside to a NodePort: a router near the client about the answer, and one inside about the request.
            let (client, asked, target) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT), (net.pod, TARGET_PORT));
            pass(&dp, prog::FROM_UPLINK, &packet::tcp(client, asked, SYN));
            let answer = dp.run(prog::TO_UPLINK, &packet::tcp(target, client, SYN | ACK)).bytes;
            let told = pass(&dp, prog::FROM_UPLINK, &error(net.node, &answer));
            assert_eq!((told.src, told.dst, inside(&told)), (router, net.pod, (target, client)), "{kind}/{code}");
            let told = pass(&dp, prog::TO_UPLINK, &error(net.client, &packet::tcp(client, target, SYN)));
            assert_eq!((told.dst, inside(&told)), (net.client, (client, asked)), "{kind}/{code}");
            // From a pod to a Service elsewhere: a router on the way about the request, the pod about the answer.
            let (pod, vip, remote) = ((net.pod, 1000), (net.outside, 80), (net.remote_pod, TARGET_PORT));
            let sent = dp.run(prog::FROM_POD, &packet::tcp(pod, vip, SYN)).bytes;
            assert_eq!(read(&sent).tuple(), (pod, remote));
            let told = pass(&dp, prog::TO_POD, &error(net.pod, &sent));
            assert_eq!((told.dst, inside(&told)), (net.pod, (pod, vip)), "{kind}/{code}");
            let heard = dp.run(prog::TO_POD, &packet::tcp(remote, pod, SYN | ACK)).bytes;
            let about = &heard[14..];
            let complaint = packet::icmp(net.pod, net.outside, kind, code, [0, 0, 5, 0], &about[..about.len().min(64)]);
            let told = pass(&dp, prog::FROM_POD, &complaint);
            assert_eq!((told.src, told.dst, inside(&told)), (net.pod, net.remote_pod, (remote, pod)), "{kind}/{code}");
            // About nothing that anybody knows.
            let stray = packet::tcp((net.pod, 1), (net.remote_pod, 2), SYN);
            assert_eq!(guarded.run(prog::TO_POD, &error(net.pod, &stray)).verdict, SHOT);
        }
    }
}
