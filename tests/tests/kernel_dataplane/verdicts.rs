//! Every reason a packet can be dropped for: one packet each that is, and counted once, under that reason alone, with its bytes.
//! A reason without an example here does not compile.

use crate::{
    fixture::{Dataplane, SHOT, UNSPEC},
    packet::{self, ACK, SYN, TCP, UDP, addr},
    socket::with_hooks,
    uplink::{CLIENT_PORT, LOCAL_SET, NODE_PORT, Net, TARGET_PORT, nets, node},
};
use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, UdpSocket},
};
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropCount, DropReason, Endpoint, Frontend, FrontendKey, Limit, LimitKey, NetnsCookie, PolicyKey,
    PolicyVerdict, Port, direction, map, prog,
};

/// A packet that is dropped, and where.
struct Example {
    dp: Dataplane,
    program: &'static str,
    packet: Vec<u8>,
}

enum Shown {
    By(Box<Example>),
    /// It takes a socket: here, or in another test, which is named.
    BySocket,
    ByTest(#[allow(dead_code, reason = "for people")] &'static str),
}

fn by(dp: Dataplane, program: &'static str, packet: Vec<u8>) -> Shown {
    Shown::By(Box::new(Example { dp, program, packet }))
}

fn pod(dp: &mut Dataplane, net: &Net, flags: u32) {
    let endpoint = Endpoint { id: 1, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
}

/// The node, where maps have so few places.
fn small(net: &Net, name: &'static str, places: u32) -> Dataplane {
    let mut dp = Dataplane::load_with(|loader| {
        loader.map_max_entries(name, places);
    });
    crate::uplink::fill(&mut dp, net);
    dp
}

/// A Service on an address of no device, inside and outside.
fn service(dp: &mut Dataplane, net: &Net, proto: u8, flags: u32) {
    let value = Frontend { service: 7, internal: LOCAL_SET, external: LOCAL_SET, flags: flags | Frontend::EXTERNAL, affinity_timeout: 0 };
    dp.put(map::FRONTENDS, FrontendKey::new(net.outside.into(), Port::new(80), proto), value);
}

fn empty(dp: &mut Dataplane, flags: u32) {
    dp.put(map::BACKEND_SETS, LOCAL_SET, BackendSet { count: 0, flags });
}

fn later_fragment(src: IpAddr, dst: IpAddr) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => packet::ethernet(&packet::ip_fragment(src, dst, UDP, &[8; 40], 9, 0x77)),
        IpAddr::V6(_) => {
            let mut payload = vec![UDP, 0, 0, 9 << 3, 0, 0, 0, 0x77];
            payload.extend([8; 40]);
            packet::ethernet(&packet::ip(src, dst, 44, &payload))
        }
    }
}

fn example(reason: DropReason, net: &Net) -> Shown {
    let mut dp = node(net);
    let (from_pod, from_client) = ((net.pod, 1000), (net.client, CLIENT_PORT));
    let (asked, elsewhere) = ((net.outside, 80), (net.outside, 443));
    match reason {
        DropReason::Malformed => {
            let mut cut = packet::tcp(from_pod, elsewhere, SYN);
            cut.truncate(cut.len() - 12);
            by(dp, prog::FROM_POD, cut)
        }
        DropReason::SpoofedSource => by(dp, prog::FROM_POD, packet::tcp((net.client, 1), elsewhere, SYN)),
        DropReason::UnknownEndpoint => by(dp, prog::TO_POD, packet::tcp(from_client, (net.remote_pod, 1), SYN)),
        DropReason::PolicyIngress => {
            pod(&mut dp, net, Endpoint::ISOLATE_INGRESS);
            by(dp, prog::TO_POD, packet::tcp(from_client, from_pod, SYN))
        }
        DropReason::PolicyEgress => {
            pod(&mut dp, net, Endpoint::ISOLATE_EGRESS);
            by(dp, prog::FROM_POD, packet::tcp(from_pod, elsewhere, SYN))
        }
        DropReason::NoBackend => {
            service(&mut dp, net, TCP, 0);
            empty(&mut dp, 0);
            by(dp, prog::FROM_POD, packet::tcp(from_pod, asked, SYN))
        }
        DropReason::SourceRange => {
            service(&mut dp, net, TCP, Frontend::SOURCE_RANGES);
            by(dp, prog::FROM_UPLINK, packet::tcp(from_client, asked, SYN))
        }
        DropReason::NatPortExhausted => {
            dp.configure(Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61000, flags: 0 });
            assert_eq!(dp.run(prog::TO_UPLINK, &packet::udp((net.pod, 1), elsewhere)).verdict, UNSPEC);
            by(dp, prog::TO_UPLINK, packet::udp((net.pod, 2), elsewhere))
        }
        DropReason::FlowTableFull => {
            let mut dp = small(net, map::FLOWS, 1);
            pod(&mut dp, net, Endpoint::ISOLATE_EGRESS);
            let all = PolicyKey::new(1, direction::EGRESS, 0, 0, Port::new(0));
            dp.put_prefix(map::POLICY, PolicyKey::ANY_PROTO, all, PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 });
            assert_eq!(dp.run(prog::FROM_POD, &packet::udp((net.pod, 1), elsewhere)).verdict, UNSPEC);
            by(dp, prog::FROM_POD, packet::udp((net.pod, 2), elsewhere))
        }
        DropReason::FragmentUnknown => by(dp, prog::TO_POD, later_fragment(net.client, net.pod)),
        DropReason::IcmpUnrelated => {
            let stray = packet::ip(net.client, net.pod, UDP, &packet::udp_datagram(from_client, from_pod, b"x"));
            by(dp, prog::TO_UPLINK, packet::too_big(net.pod, net.client, &stray))
        }
        DropReason::ProtocolUnsupported => {
            service(&mut dp, net, 132, 0);
            let chunk = [CLIENT_PORT.to_be_bytes(), 80u16.to_be_bytes()].concat();
            by(dp, prog::FROM_UPLINK, packet::ethernet(&packet::ip(net.client, net.outside, 132, &chunk)))
        }
        DropReason::RewriteFailed => {
            // Ports, and then the end: no checksum that could be put right.
            service(&mut dp, net, UDP, 0);
            let mut cut = packet::udp(from_client, asked);
            cut.truncate(14 + if net.node.is_ipv4() { 20 } else { 40 } + 4);
            by(dp, prog::FROM_UPLINK, cut)
        }
        DropReason::NotIp => {
            let mut other = packet::tcp(from_pod, elsewhere, SYN);
            other[12..14].copy_from_slice(&[0x88, 0xcc]);
            by(dp, prog::FROM_POD, other)
        }
        DropReason::MappedAddress => {
            let (mapped, six) = (addr("::ffff:198.51.100.9"), addr("2001:db8:2::1"));
            by(dp, prog::FROM_UPLINK, packet::tcp((mapped, 1), (six, NODE_PORT), SYN))
        }
        DropReason::NotConfigured => {
            // A backend elsewhere, and no address its answers could come back to.
            service(&mut dp, net, TCP, 0);
            dp.put(map::BACKENDS, LOCAL_SET, Backend::new(net.remote_pod.into(), Port::new(TARGET_PORT), 0));
            dp.hash::<u32, xebec_ebpf_abi::Uplink>(map::UPLINKS).remove(&1).expect("it was there");
            by(dp, prog::FROM_UPLINK, packet::tcp(from_client, asked, SYN))
        }
        DropReason::NatTableFull => {
            let mut dp = small(net, map::NAT, 1);
            service(&mut dp, net, TCP, 0);
            by(dp, prog::FROM_UPLINK, packet::tcp(from_client, asked, SYN))
        }
        DropReason::NoLocalBackend => {
            service(&mut dp, net, TCP, 0);
            empty(&mut dp, BackendSet::DROP_WHEN_EMPTY);
            by(dp, prog::FROM_UPLINK, packet::tcp(from_client, asked, SYN))
        }
        DropReason::NoServicePort => {
            let nothing = Frontend { service: 0, internal: 0, external: 0, flags: 0, affinity_timeout: 0 };
            dp.put(map::FRONTENDS, FrontendKey::address(net.outside.into()), nothing);
            by(dp, prog::FROM_POD, packet::tcp(from_pod, asked, SYN))
        }
        DropReason::Bandwidth => {
            pod(&mut dp, net, Endpoint::LIMIT_EGRESS);
            // Its bucket is empty for longer than any machine has run.
            let never = Limit { rate: 1, burst: 1, until: u64::MAX / 2 };
            dp.put(map::LIMITS, LimitKey { endpoint: 1, direction: u32::from(direction::EGRESS) }, never);
            by(dp, prog::FROM_POD, packet::tcp(from_pod, elsewhere, ACK))
        }
        DropReason::PortReserved => Shown::BySocket,
        DropReason::BackendGone => Shown::ByTest("kernel_netns: steer"),
        DropReason::DirectSource | DropReason::DirectInner => {
            dp.configure(Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61000, flags: Config::DIRECT });
            if reason == DropReason::DirectInner {
                dp.put_prefix(map::NO_MASQUERADE, 128, Addr::from(net.outside), xebec_ebpf_abi::direct::range::NODE);
            }
            let tunnel = if net.node.is_ipv4() { 4 } else { 41 };
            by(dp, prog::TAKE_DIRECT, packet::ethernet(&packet::ip(net.outside, net.pod, tunnel, &[0; 60])))
        }
        DropReason::TooBig => Shown::ByTest("kernel_dataplane: route"),
        DropReason::DirectTooBig | DropReason::DirectNoRoute | DropReason::TtlExceeded => Shown::ByTest("kernel_dataplane: dsr"),
    }
}

fn all(dp: &Dataplane) -> Vec<DropCount> {
    (0..DropReason::COUNT).map(|reason| dp.counter(map::DROPS, reason)).collect()
}

#[test]
fn each_reason_has_a_packet_that_is_dropped_for_it_and_counted_once() {
    // The families take turns: each example takes programs of its own, which take a while to load.
    for (&reason, net) in DropReason::ALL.iter().zip(nets().iter().cycle()) {
        let Shown::By(shown) = example(reason, net) else { continue };
        let Example { dp, program, packet } = *shown;
        let mut want = all(&dp);
        assert_eq!(dp.run(program, &packet).verdict, SHOT, "{reason:?}");
        want[reason as usize].packets += 1;
        want[reason as usize].bytes += packet.len() as u64;
        assert_eq!(all(&dp), want, "{reason:?} and nothing else is counted");
    }
}

#[test]
fn a_socket_that_wants_a_node_port_is_refused_and_counted() {
    with_hooks(|node| {
        node.is_the_node();
        let key = FrontendKey::node_port(true, Port::new(NODE_PORT), UDP);
        let value = Frontend { service: 1, internal: 1, external: 1, flags: Frontend::EXTERNAL, affinity_timeout: 0 };
        node.dataplane.put(map::FRONTENDS, key, value);
        let before = node.dataplane.drops(DropReason::PortReserved);
        let refused = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, NODE_PORT)).expect_err("the port is the Service's");
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        assert_eq!(node.dataplane.drops(DropReason::PortReserved), before + 1);
    });
}
