//! Services that nobody serves: who asks is told at once, by a reset or "port unreachable" made of the packet.

use crate::{
    fixture::{Dataplane, REDIRECT, SHOT, UNSPEC},
    packet::{self, ACK, FIN, RST, SYN, TCP, UDP, addr, read, read_ip},
    uplink::{self, CLIENT_PORT, LOCAL_SET, NODE_PORT, Net, nets},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{Addr, BackendSet, DropReason, Endpoint, Frontend, FrontendKey, NetnsCookie, Port, map, prog};

const SCTP: u8 = 132;

/// A node whose NodePort has no endpoints, and a ClusterIP (the address `outside`) with nobody at port 80.
fn node(net: &Net, flags: u32) -> Dataplane {
    let mut dp = uplink::node(net);
    dp.put(map::BACKEND_SETS, LOCAL_SET, BackendSet { count: 0, flags });
    let endpoint = Endpoint {
        id: 1,
        ifindex: 1,
        pod_mac: [2; 6],
        host_mac: [4; 6],
        flags: Endpoint::DIRECT | Endpoint::ISOLATE_INGRESS,
        epoch: 1,
        netns: NetnsCookie::UNKNOWN,
    };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
    let frontend = Frontend { service: 9, internal: LOCAL_SET, external: LOCAL_SET, flags: 0, affinity_timeout: 0 };
    for proto in [TCP, UDP, SCTP] {
        dp.put(map::FRONTENDS, FrontendKey::new(net.outside.into(), Port::new(80), proto), frontend);
    }
    let none = Frontend { service: 0, internal: 0, external: 0, flags: 0, affinity_timeout: 0 };
    dp.put(map::FRONTENDS, FrontendKey::address(net.outside.into()), none);
    dp
}

/// What came back, its checksums found right and its link addresses turned round.
fn answer(dp: &Dataplane, program: &str, asked: &[u8], reason: DropReason) -> packet::Read {
    let before = dp.counter(map::DROPS, reason as u32);
    let out = dp.run(program, asked);
    assert_eq!(out.verdict, REDIRECT, "{program} {:?}", read_ip(&asked[14..]));
    assert_eq!(out.bytes[..12], [&asked[6..12], &asked[..6]].concat());
    let after = dp.counter(map::DROPS, reason as u32);
    assert_eq!((after.packets, after.bytes), (before.packets + 1, before.bytes + asked.len() as u64), "{reason:?} is counted");
    read(&out.bytes)
}

fn silent(dp: &Dataplane, program: &str, asked: &[u8], reason: DropReason) {
    let before = dp.drops(reason);
    assert_eq!(dp.run(program, asked).verdict, SHOT, "{program} {:?}", read_ip(&asked[14..]));
    assert_eq!(dp.drops(reason), before + 1, "{reason:?} is counted");
}

/// Sequence number, acknowledgement, flags.
fn tcp_fields(l4: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes(l4[at..at + 4].try_into().unwrap());
    (word(4), word(8), l4[13])
}

/// Where each program sees a client ask, and why nobody answers.
fn questions(net: &Net) -> [(&'static str, (IpAddr, u16), (IpAddr, u16), DropReason); 3] {
    [
        (prog::FROM_UPLINK, (net.client, CLIENT_PORT), (net.node, NODE_PORT), DropReason::NoBackend),
        (prog::FROM_POD, (net.pod, 1000), (net.outside, 80), DropReason::NoBackend),
        (prog::FROM_POD, (net.pod, 1000), (net.outside, 81), DropReason::NoServicePort),
    ]
}

#[test]
fn tcp_is_reset() {
    for net in nets() {
        let dp = node(&net, 0);
        for (program, client, asked, reason) in questions(&net) {
            // The packets here have sequence number 1, acknowledge 2, and carry 4 bytes.
            for (flags, expected) in
                [(SYN, (0, 1 + 4 + 1, RST | ACK)), (FIN, (0, 1 + 4 + 1, RST | ACK)), (ACK, (2, 0, RST)), (SYN | ACK, (2, 0, RST))]
            {
                let reset = answer(&dp, program, &packet::tcp(client, asked, flags), reason);
                assert_eq!((reset.tuple(), reset.proto), ((asked, client), TCP), "{program}");
                assert_eq!(tcp_fields(&reset.l4), expected, "{program} {flags}");
                assert_eq!(reset.l4.len(), 20);
            }
            silent(&dp, program, &packet::tcp(client, asked, RST), reason);
            silent(&dp, program, &packet::tcp(client, asked, RST | ACK), reason);
        }
    }
}

#[test]
fn a_reset_counts_data_and_leaves_options_out() {
    let net = &nets()[0];
    let dp = node(net, 0);
    let (client, asked) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT));
    // TCP options (a maximum segment size) and 100 bytes of data.
    let mut segment = packet::tcp_segment(client, asked, SYN, &[]);
    segment[12] = 6 << 4;
    segment.extend([2, 4, 5, 180]);
    segment.extend([7; 100]);
    let asks = packet::ethernet(&packet::ip(net.client, net.node, TCP, &segment));
    let reset = answer(&dp, prog::FROM_UPLINK, &asks, DropReason::NoBackend);
    assert_eq!(tcp_fields(&reset.l4), (0, 1 + 100 + 1, RST | ACK));
    // IPv4 options.
    let plain = packet::ip(net.client, net.node, TCP, &packet::tcp_segment(client, asked, SYN, b"data"));
    let mut options = plain[..20].to_vec();
    options[0] = 0x46;
    options[2..4].copy_from_slice(&(plain.len() as u16 + 4).to_be_bytes());
    options.extend([1, 1, 1, 0]);
    options.extend(&plain[20..]);
    let reset = answer(&dp, prog::FROM_UPLINK, &packet::ethernet(&options), DropReason::NoBackend);
    assert_eq!(tcp_fields(&reset.l4), (0, 1 + 4 + 1, RST | ACK));
}

#[test]
fn udp_and_sctp_are_told_that_the_port_is_unreachable() {
    for net in nets() {
        let dp = node(&net, 0);
        for (program, client, asked, reason) in questions(&net) {
            let sctp = [&client.1.to_be_bytes()[..], &asked.1.to_be_bytes(), &[0; 12]].concat();
            for asks in [packet::udp(client, asked), packet::ethernet(&packet::ip(client.0, asked.0, SCTP, &sctp))] {
                // No NodePort of SCTP here: that is not a Service's.
                if program == prog::FROM_UPLINK && read_ip(&asks[14..]).proto == SCTP {
                    continue;
                }
                let error = answer(&dp, program, &asks, reason);
                assert_eq!((error.src, error.dst), (asked.0, client.0));
                let (proto, kind) = if client.0.is_ipv4() { (1, [3, 3]) } else { (58, [1, 4]) };
                assert_eq!((error.proto, &error.l4[..2]), (proto, &kind[..]));
                assert_eq!(error.l4[4..8], [0; 4]);
                // All of its IP header and the start of its transport header.
                let header = if client.0.is_ipv4() { 20 } else { 40 };
                assert_eq!(error.l4[8..], asks[14..14 + header + 8]);
            }
        }
    }
}

#[test]
fn extension_headers_are_quoted_and_endless_ones_are_not_answered() {
    let net = &nets()[1];
    let dp = node(net, 0);
    let (client, asked) = ((net.client, CLIENT_PORT), (net.node, NODE_PORT));
    let datagram = packet::udp_datagram(client, asked, b"datagram");
    // Destination options of the given number of 8 bytes.
    let with = |units: u8| {
        let mut options = vec![0; 8 * (usize::from(units) + 1)];
        (options[0], options[1]) = (UDP, units);
        packet::ethernet(&packet::ip(net.client, net.node, 60, &[options, datagram.clone()].concat()))
    };
    let error = answer(&dp, prog::FROM_UPLINK, &with(1), DropReason::NoBackend);
    assert_eq!(error.l4[8..], with(1)[14..14 + 40 + 16 + 8]);
    silent(&dp, prog::FROM_UPLINK, &with(30), DropReason::NoBackend);
}

#[test]
fn where_only_other_nodes_have_endpoints_there_is_silence() {
    for net in nets() {
        let dp = node(&net, BackendSet::DROP_WHEN_EMPTY);
        for (program, client, asked, reason) in questions(&net).into_iter().filter(|q| q.3 == DropReason::NoBackend) {
            assert_eq!(reason, DropReason::NoBackend);
            silent(&dp, program, &packet::tcp(client, asked, SYN), DropReason::NoLocalBackend);
            silent(&dp, program, &packet::udp(client, asked), DropReason::NoLocalBackend);
        }
    }
}

#[test]
fn nobody_is_told_who_sent_to_many_or_is_nobody_and_other_ports_outside_are_the_nodes() {
    for net in nets() {
        let dp = node(&net, 0);
        let asked = (net.node, NODE_PORT);
        let mut broadcast = packet::udp((net.client, CLIENT_PORT), asked);
        broadcast[..6].copy_from_slice(&[0xff; 6]);
        silent(&dp, prog::FROM_UPLINK, &broadcast, DropReason::NoBackend);
        let nobodies = match net.node {
            IpAddr::V4(_) => ["0.0.0.0", "224.0.0.5", "255.255.255.255", "127.0.0.1"],
            IpAddr::V6(_) => ["::", "ff02::1", "ff0e::1", "::1"],
        };
        for nobody in nobodies {
            silent(&dp, prog::FROM_UPLINK, &packet::udp((addr(nobody), 1), asked), DropReason::NoBackend);
        }
        // A ClusterIP is not served to the outside, so not refused there either.
        for port in [80, 81] {
            let out = dp.run(prog::FROM_UPLINK, &packet::udp((net.client, CLIENT_PORT), (net.outside, port)));
            assert_eq!(out.verdict, UNSPEC);
        }
        // Pings of a ClusterIP and later fragments have no port.
        assert_eq!(dp.run(prog::FROM_POD, &packet::echo(net.pod, net.outside, false, 1)).verdict, UNSPEC);
    }
}

#[test]
fn icmp_errors_are_limited_and_resets_are_not() {
    let net = &nets()[0];
    let dp = node(net, 0);
    let asks = packet::udp((net.client, CLIENT_PORT), (net.node, NODE_PORT));
    let start = std::time::Instant::now();
    let answered = (0..2000).filter(|_| dp.run(prog::FROM_UPLINK, &asks).verdict == REDIRECT).count();
    // 50 at once and one more a millisecond, on each CPU that ran a part of it.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let allowed = cpus * (50 + start.elapsed().as_millis() as usize + 1);
    assert!((50..=allowed).contains(&answered), "{answered} of at most {allowed}");
    assert_eq!(dp.drops(DropReason::NoBackend), 2000);
    let asks = packet::tcp((net.client, CLIENT_PORT), (net.node, NODE_PORT), SYN);
    assert!((0..500).all(|_| dp.run(prog::FROM_UPLINK, &asks).verdict == REDIRECT));
}

#[test]
fn without_a_direct_way_a_pod_is_not_answered() {
    let net = &nets()[0];
    let mut dp = node(net, 0);
    let endpoint = dp.hash::<Addr, Endpoint>(map::ENDPOINTS).get(&net.pod.into(), 0).expect("an entry");
    dp.put(map::ENDPOINTS, Addr::from(net.pod), Endpoint { flags: 0, ..endpoint });
    silent(&dp, prog::FROM_POD, &packet::udp((net.pod, 1), (net.outside, 81)), DropReason::NoServicePort);
}
