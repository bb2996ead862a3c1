//! Direct server return on made-up packets: what the node that takes a client's packet sends, and what the pod's node makes of it.

use crate::{
    fixture::{Dataplane, REDIRECT, SHOT, UNSPEC},
    packet::{self, ACK, FIN, SYN, TCP, UDP, read},
    uplink::{Net, make, make_answer, nets, untouched},
    xdp::{OWN, PASS, REMOTE_PORT, REMOTE_SET, ROUTER, TARGET_PORT, TX, XdpNode, tuple},
};
use aya::{TestRun, programs::SchedClassifier};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, Backend, Config, DropReason, Endpoint, Frontend, FrontendKey, MemberKey, Nat, NetnsCookie, Port, SlotKey, Uplink, direct::range,
    forward, map, prog,
};

const CLIENT: u16 = 45000;

/// Bytes of an outer header.
fn header(net: &Net) -> usize {
    if net.node.is_ipv4() { 20 } else { 40 }
}

/// The node that takes clients' packets: REMOTE_PORT leads to a pod of another node, directly.
fn sender(net: &Net) -> XdpNode {
    let mut node = XdpNode::new(net);
    direct(&mut node.dp, net);
    node
}

fn direct(dp: &mut Dataplane, net: &Net) {
    for proto in [TCP, UDP] {
        let flags = Frontend::EXTERNAL | Frontend::DIRECT;
        let value = Frontend { service: 5, internal: 99, external: REMOTE_SET, flags, affinity_timeout: 0 };
        dp.put(map::FRONTENDS, FrontendKey::node_port(net.node.is_ipv4(), Port::new(REMOTE_PORT), proto), value);
    }
    belongs(dp, net.node, 128, range::NODE);
    belongs(dp, net.remote_pod, 120, range::PODS);
}

fn belongs(dp: &mut Dataplane, ip: IpAddr, bits: u32, whose: u32) {
    dp.put_prefix(map::NO_MASQUERADE, bits, Addr::from(ip), range::INSIDE | whose);
}

/// What the sender takes, if any Service is reached directly.
fn takes_direct(dp: &mut Dataplane) {
    let flags = Config::DIRECT;
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags });
}

/// The pod's node.
fn receiver(net: &Net) -> Dataplane {
    let mut dp = Dataplane::load();
    takes_direct(&mut dp);
    let endpoint = Endpoint { id: 1, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags: 0, epoch: 1, netns: NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.remote_pod), endpoint);
    belongs(&mut dp, net.node, 128, range::NODE);
    dp
}

/// Runs a classifier on a packet that came in on the node's uplink, where its routes are known. `segment`: bytes of payload in
/// each packet that is to be made of this one.
pub fn at_uplink(node: &XdpNode, packet: &[u8], segment: u32) -> (i32, Vec<u8>) {
    run_at_uplink(node, prog::FROM_UPLINK, packet, segment)
}

fn run_at_uplink(node: &XdpNode, program: &str, packet: &[u8], segment: u32) -> (i32, Vec<u8>) {
    // struct __sk_buff: the device is the eleventh number, the size of segments the forty-fifth.
    let mut context = vec![0u8; 192];
    context[40..44].copy_from_slice(&node.uplink.to_ne_bytes());
    context[176..180].copy_from_slice(&segment.to_ne_bytes());
    let program: &SchedClassifier = node.dp.ebpf.program(program).expect("there").try_into().expect("a classifier");
    node.space.test_run(packet, &context, |options| program.test_run(options))
}

/// An IP packet with one hop fewer.
fn one_hop_on(ip: &[u8]) -> Vec<u8> {
    let mut ip = ip.to_vec();
    if ip[0] >> 4 == 4 {
        ip[8] -= 1;
        ip[10..12].copy_from_slice(&[0, 0]);
        let sum = packet::checksum(&[&ip[..20]]);
        ip[10..12].copy_from_slice(&sum);
    } else {
        ip[7] -= 1;
    }
    ip
}

/// Puts an IP packet into one from node to pod.
fn around(net: &Net, inner: &[u8], port: u16) -> Vec<u8> {
    let mut outer = match net.node {
        IpAddr::V4(_) => packet::ip_fragment(net.node, net.remote_pod, 4, inner, 0x4000, port),
        IpAddr::V6(_) => packet::ip(net.node, net.remote_pod, 41, inner),
    };
    if net.node.is_ipv6() {
        outer[2..4].copy_from_slice(&port.to_be_bytes());
    }
    packet::ethernet(&outer)
}

/// What goes to the pod's node must be the client's packet, one hop on, and around it a header of which all is known.
fn is_sent(net: &Net, sent: &[u8], packet: &[u8]) {
    assert_eq!(&sent[14..], &around(net, &one_hop_on(&packet[14..]), TARGET_PORT)[14..]);
    packet::read_ip(&sent[14..]);
    read(&unwrapped(net, sent));
}

fn unwrapped(net: &Net, sent: &[u8]) -> Vec<u8> {
    [&sent[..14], &sent[14 + header(net)..]].concat()
}

/// A packet that the pod's node takes out and hands to the pod.
fn is_taken(net: &Net, dp: &Dataplane, sent: &[u8]) -> packet::Read {
    let before = dp.counter(map::FORWARDS, forward::DIRECT_RECEIVED);
    let out = dp.run(prog::TAKE_DIRECT, sent);
    assert_eq!(out.verdict, UNSPEC);
    assert_eq!(out.bytes, unwrapped(net, sent), "what was inside, as it was");
    let after = dp.counter(map::FORWARDS, forward::DIRECT_RECEIVED);
    assert_eq!((after.packets, after.bytes), (before.packets + 1, before.bytes + out.bytes.len() as u64));
    read(&delivered(dp, &out.bytes))
}

/// What the next program makes of a packet that was taken out.
fn delivered(dp: &Dataplane, taken: &[u8]) -> Vec<u8> {
    let out = dp.run(prog::FROM_UPLINK, taken);
    assert_eq!(out.verdict, UNSPEC);
    out.bytes
}

#[test]
fn the_driver_sends_a_packet_as_it_is_and_the_pods_node_answers_the_client_itself() {
    for net in nets() {
        let (mut node, mut other) = (sender(&net), receiver(&net));
        for proto in [TCP, UDP] {
            let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
            let before = node.dp.counter(map::FORWARDS, forward::DRIVER_DIRECT);
            let first = make(proto, client, asked);
            let later = if proto == TCP { packet::tcp(client, asked, ACK) } else { first.clone() };
            for packet in [&first, &later, &later, &later] {
                let (verdict, sent) = node.run(packet);
                assert_eq!(verdict, TX);
                assert_eq!((&sent[..6], &sent[6..12]), (&ROUTER[..], &OWN[..]), "the next link");
                assert_eq!(sent[12..14], packet[12..14]);
                is_sent(&net, &sent, packet);
                assert_eq!(is_taken(&net, &other, &sent).tuple(), (client, target));
                let answer = other.run(prog::TO_UPLINK, &make_answer(proto, target, client));
                assert_eq!(read(&answer.bytes).tuple(), (asked, client));
            }
            let after = node.dp.counter(map::FORWARDS, forward::DRIVER_DIRECT);
            let bytes = (first.len() + 3 * later.len()) as u64;
            assert_eq!((after.packets, after.bytes), (before.packets + 4, before.bytes + bytes));
            let entry = node.entry(&tuple(proto, client, asked)).expect("an entry");
            assert_eq!((entry.flags, entry.backend, entry.set), (Nat::DIRECT, REMOTE_SET, REMOTE_SET));
            assert_eq!(entry.to, tuple(proto, client, target));
            assert!(node.entry(&entry.to.reversed()).is_none(), "no answers are seen here");
            let nat = other.hash::<xebec_ebpf_abi::Tuple, Nat>(map::NAT);
            let (there, back) = (nat.get(&tuple(proto, client, asked), 0), nat.get(&tuple(proto, target, client), 0));
            assert_eq!((there.expect("an entry").flags, back.expect("its other half").flags), (0, Nat::REPLY));
        }
        for reason in DropReason::ALL {
            assert_eq!((node.dp.drops(*reason), other.drops(*reason)), (0, 0), "{reason:?}");
        }
    }
}

#[test]
fn tc_sends_the_same_where_the_driver_does_not() {
    for net in nets() {
        let (mut node, other) = (sender(&net), receiver(&net));
        for proto in [TCP, UDP] {
            let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
            let first = make(proto, client, asked);
            for _ in 0..3 {
                let (verdict, sent) = at_uplink(&node, &first, 0);
                assert_eq!(verdict, REDIRECT);
                is_sent(&net, &sent, &first);
                assert_eq!(is_taken(&net, &other, &sent).tuple(), (client, (net.remote_pod, TARGET_PORT)));
            }
            // The driver goes on with it.
            let (verdict, sent) = node.run(&first);
            assert_eq!(verdict, TX);
            is_sent(&net, &sent, &first);
            let entry = node.entry(&tuple(proto, client, asked)).expect("an entry");
            assert_eq!((entry.flags, entry.to), (Nat::DIRECT, tuple(proto, client, (net.remote_pod, TARGET_PORT))));
        }
        assert_eq!(node.dp.counter(map::FORWARDS, forward::UPLINK_DIRECT).packets, 6);
    }
}

/// What a device makes of such packets is shown by `kernel_netns`: a test run does not say what they are made of.
#[test]
fn of_what_becomes_many_packets_each_has_to_fit() {
    for net in nets() {
        let node = sender(&net);
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let segment = packet::tcp_segment(client, asked, ACK, &[7; 3000]);
        let large = packet::ethernet(&packet::ip(net.client, net.node, TCP, &segment));
        let refused = |size: u32| {
            let before = node.dp.drops(DropReason::DirectTooBig);
            at_uplink(&node, &large, size);
            node.dp.drops(DropReason::DirectTooBig) > before
        };
        // With IP and TCP around it, it fills the wire; what goes around that is taken from each.
        let fits = 1500 - header(&net) as u32 - 20;
        assert!(!refused(fits) && refused(fits + 1));
    }
}

#[test]
fn only_what_a_node_has_put_in_is_taken_out() {
    for net in nets() {
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let packet = make(TCP, client, asked);
        let good = around(&net, &packet[14..], TARGET_PORT);
        let mut dp = receiver(&net);
        let refused = |dp: &Dataplane, packet: &[u8], reason: DropReason, what: &str| {
            let before = dp.counter(map::DROPS, reason as u32);
            assert_eq!(dp.run(prog::TAKE_DIRECT, packet).verdict, SHOT, "{what}");
            assert_eq!(dp.counter(map::DROPS, reason as u32).packets, before.packets + 1, "{what}");
        };
        // Sent by nobody of the cluster, or by a pod of it.
        let from = |src: IpAddr| {
            let mut outer = packet::ip(src, net.remote_pod, if src.is_ipv4() { 4 } else { 41 }, &packet[14..]);
            if src.is_ipv4() {
                outer[4..6].copy_from_slice(&TARGET_PORT.to_be_bytes());
            }
            packet::ethernet(&outer)
        };
        refused(&dp, &from(net.client), DropReason::DirectSource, "a client");
        belongs(&mut dp, net.pod, 120, range::PODS);
        refused(&dp, &from(net.pod), DropReason::DirectSource, "a pod");
        // Not a whole packet inside.
        let inner = &packet[14..];
        let wrapped = |inner: &[u8]| around(&net, inner, TARGET_PORT);
        refused(&dp, &wrapped(&inner[..inner.len() - 1]), DropReason::DirectInner, "one byte short");
        refused(&dp, &wrapped(&inner[..header(&net) + 2]), DropReason::DirectInner, "no ports");
        refused(&dp, &wrapped(&inner[..10]), DropReason::DirectInner, "no header");
        refused(&dp, &wrapped(&[]), DropReason::DirectInner, "nothing");
        refused(&dp, &wrapped(&good[14..]), DropReason::DirectInner, "another one inside");
        let foreign = nets().into_iter().find(|n| n.node.is_ipv4() != net.node.is_ipv4()).expect("two families");
        let other = make(TCP, (foreign.client, CLIENT), (foreign.node, REMOTE_PORT));
        refused(&dp, &wrapped(&other[14..]), DropReason::DirectInner, "the other family");
        let looped = make(TCP, (net.remote_pod, CLIENT), asked);
        refused(&dp, &wrapped(&looped[14..]), DropReason::DirectInner, "from a pod of this node");
        let arrived = make(TCP, client, (net.remote_pod, TARGET_PORT));
        refused(&dp, &wrapped(&arrived[14..]), DropReason::DirectInner, "for the pod itself");
        let echo = packet::echo(net.client, net.node, false, 7);
        refused(&dp, &wrapped(&echo[14..]), DropReason::DirectInner, "no flow");
        let mut longer = good.clone();
        longer.truncate(longer.len() - 4);
        refused(&dp, &longer, DropReason::DirectInner, "shorter than it says");
        assert_eq!(is_taken(&net, &dp, &good).tuple(), (client, (net.remote_pod, TARGET_PORT)));
        // For somebody else, or where nobody asks for it: as it was.
        let stranger = packet::ethernet(&packet::ip(net.node, net.pod, if net.node.is_ipv4() { 4 } else { 41 }, inner));
        untouched(&dp, prog::TAKE_DIRECT, &stranger);
        untouched(&dp, prog::TAKE_DIRECT, &packet);
        dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 });
        untouched(&dp, prog::TAKE_DIRECT, &good);
        untouched(&dp, prog::TAKE_DIRECT, &from(net.client));
    }
}

#[test]
fn the_pods_node_follows_the_one_that_chooses() {
    for net in nets() {
        let dp = receiver(&net);
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let sent = |flags: u8, port: u16| is_taken(&net, &dp, &around(&net, &packet::tcp(client, asked, flags)[14..], port)).dport;
        assert_eq!(sent(SYN, 8080), 8080);
        // A device that makes many packets of one counts their numbers up.
        assert_eq!(sent(ACK, 8081), 8080);
        // A new connection may have been given another port.
        assert_eq!(sent(SYN, 9090), 9090);
        assert_eq!(sent(ACK, 9090), 9090);
        let answer = dp.run(prog::TO_UPLINK, &packet::tcp((net.remote_pod, 9090), client, SYN | ACK));
        assert_eq!(read(&answer.bytes).tuple(), (asked, client));
        // In the middle of a flow nobody knows.
        let client = (net.client, CLIENT + 1);
        let packet = packet::tcp(client, asked, ACK);
        assert_eq!(is_taken(&net, &dp, &around(&net, &packet[14..], 8080)).tuple(), (client, (net.remote_pod, 8080)));
    }
}

#[test]
fn what_does_not_fit_is_told_to_the_client() {
    for (net, is_locked) in nets().into_iter().flat_map(|net| [(net.clone(), true), (net, false)]) {
        let mut node = sender(&net);
        let (full, router) = if net.node.is_ipv4() { (32, "192.0.2.254") } else { (128, "2001:db8:2::ffff") };
        if is_locked {
            node.space.ip(&format!("route replace {}/{full} via {router} mtu lock 1400", net.remote_pod));
        } else {
            // The routing helper does not say so; the agent does.
            let own = Addr::from(net.node);
            node.dp.put(map::UPLINKS, node.uplink, Uplink { v4: own, v6: own, mtu: 1400 });
        }
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let datagram = |len: usize| {
            let head = header(&net) + 8;
            packet::ethernet(&packet::ip(net.client, net.node, UDP, &packet::udp_datagram(client, asked, &vec![7; len - head])))
        };
        let fits = 1400 - header(&net);
        for len in [fits, 1300] {
            let packet = datagram(len);
            let (verdict, sent) = node.run(&packet);
            assert_eq!(verdict, TX, "{len}");
            is_sent(&net, &sent, &packet);
            let (verdict, sent) = at_uplink(&node, &packet, 0);
            assert_eq!(verdict, REDIRECT);
            is_sent(&net, &sent, &packet);
        }
        let large = datagram(fits + 1);
        let (verdict, bytes) = node.run(&large);
        assert_eq!((verdict, bytes == large), (PASS, true), "tc tells");
        let (verdict, told) = at_uplink(&node, &large, 0);
        assert_eq!(verdict, REDIRECT, "back to where it came from");
        assert_eq!((&told[..6], &told[6..12]), (&large[6..12], &large[..6]));
        let error = read(&told);
        assert_eq!((error.src, error.dst), (net.node, net.client));
        let kind = if net.node.is_ipv4() { [3, 4] } else { [2, 0] };
        assert_eq!((&error.l4[..2], &error.l4[4..8]), (&kind[..], &(fits as u32).to_be_bytes()[..]));
        let about = &error.l4[8..];
        assert_eq!(about, &large[14..14 + about.len()], "the client's own packet");
        let count = node.dp.counter(map::DROPS, DropReason::DirectTooBig as u32);
        assert_eq!((count.packets, count.bytes), (1, large.len() as u64));
    }
}

#[test]
fn errors_about_answers_and_pieces_of_datagrams_go_the_same_way() {
    for net in nets() {
        let (node, other) = (sender(&net), receiver(&net));
        let (client, asked, target) = ((net.client, CLIENT), (net.node, REMOTE_PORT), (net.remote_pod, TARGET_PORT));
        let via = |packet: &[u8]| {
            let (verdict, bytes) = node.run(packet);
            assert_eq!((verdict, &bytes[..] == packet), (PASS, true), "the driver leaves it to tc");
            let (verdict, sent) = at_uplink(&node, packet, 0);
            assert_eq!(verdict, REDIRECT);
            sent
        };
        let (_, first) = node.run(&make(UDP, client, asked));
        is_taken(&net, &other, &first);
        // A router on the way of the answers.
        let answer = packet::ip(asked.0, client.0, UDP, &packet::udp_datagram(asked, client, b"datagram"));
        let out = is_taken(&net, &other, &via(&packet::too_big(net.outside, net.node, &answer)));
        assert_eq!((out.src, out.dst), (net.outside, net.remote_pod));
        assert_eq!(packet::read_ip(&out.l4[8..]).tuple(), (target, client));
        // One about a flow that the pod's node does not know is nobody's.
        let stranger = receiver(&net);
        let error = via(&packet::too_big(net.outside, net.node, &answer));
        assert_eq!(stranger.run(prog::TAKE_DIRECT, &error).verdict, SHOT);
        assert_eq!(stranger.drops(DropReason::IcmpUnrelated), 1);
        // Pieces: only the first has ports.
        let datagram = packet::udp_datagram(client, asked, &[9; 1200]);
        let pieces = match net.node {
            IpAddr::V4(_) => {
                let piece = |data: &[u8], at: u16| packet::ethernet(&packet::ip_fragment(net.client, net.node, UDP, data, at, 77));
                [piece(&datagram[..800], 0x2000), piece(&datagram[800..], 100)]
            }
            IpAddr::V6(_) => {
                let piece = |data: &[u8], at: u16| {
                    let mut payload = vec![UDP, 0];
                    payload.extend(at.to_be_bytes());
                    payload.extend([0, 0, 0, 77]);
                    payload.extend(data);
                    packet::ethernet(&packet::ip(net.client, net.node, 44, &payload))
                };
                [piece(&datagram[..800], 1), piece(&datagram[800..], 800)]
            }
        };
        let early = other.run(prog::TAKE_DIRECT, &around(&net, &pieces[1][14..], TARGET_PORT));
        assert_eq!((early.verdict, other.drops(DropReason::FragmentUnknown)), (SHOT, 1), "before its first");
        let at = header(&net) + if net.node.is_ipv4() { 0 } else { 8 };
        let mut whole = Vec::new();
        for piece in &pieces {
            let taken = other.run(prog::TAKE_DIRECT, &via(piece));
            assert_eq!(taken.verdict, UNSPEC);
            let bytes = delivered(&other, &taken.bytes);
            let addresses = if net.node.is_ipv4() { 26..34 } else { 22..54 };
            let ends = |ip: IpAddr| Addr::from(ip).octets();
            let (want, len) = ([ends(net.client), ends(net.remote_pod)], if net.node.is_ipv4() { 4 } else { 16 });
            assert_eq!(bytes[addresses], want.map(|o| o[16 - len..].to_vec()).concat());
            whole.extend(&bytes[14 + at..]);
        }
        // Put together again it is one of the client to the pod, and its checksum is right.
        let together = packet::ethernet(&packet::ip(net.client, net.remote_pod, UDP, &whole));
        assert_eq!(read(&together).tuple(), (client, target));
    }
}

#[test]
fn where_answers_could_not_find_their_way_the_client_is_hidden_as_ever() {
    for net in nets() {
        let hidden = |node: &XdpNode, client: (IpAddr, u16), why: &str| {
            let (verdict, sent) = node.run(&make(TCP, client, (net.node, REMOTE_PORT)));
            assert_eq!(verdict, TX, "{why}");
            assert_eq!((read(&sent).src, read(&sent).dst), (net.node, net.remote_pod), "{why}");
            let client = (client.0, client.1 + 100);
            let (verdict, half) = at_uplink(node, &make(TCP, client, (net.node, REMOTE_PORT)), 0);
            assert_eq!((verdict, read(&half).tuple()), (UNSPEC, (client, (net.remote_pod, TARGET_PORT))), "{why}");
        };
        let client = (net.client, CLIENT);
        let mut node = sender(&net);
        belongs(&mut node.dp, net.client, 128, range::PODS);
        hidden(&node, client, "a pod asks");
        belongs(&mut node.dp, net.client, 128, range::NODE);
        hidden(&node, (net.client, CLIENT + 1), "a node asks");
        belongs(&mut node.dp, net.client, 128, 0);
        assert_eq!(node.run(&make(TCP, (net.client, CLIENT + 2), (net.node, REMOTE_PORT))).1.len(), 14 + header(&net) * 2 + 24);
        let mut node = sender(&net);
        belongs(&mut node.dp, net.remote_pod, 120, 0);
        hidden(&node, client, "a backend that is no pod's");
        let mut node = sender(&net);
        belongs(&mut node.dp, net.node, 128, 0);
        hidden(&node, client, "this node is known by another address");
    }
}

#[test]
fn a_flow_that_ends_or_loses_its_pod_chooses_anew() {
    for net in nets() {
        let mut node = sender(&net);
        let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
        let port = |node: &XdpNode, packet: &[u8]| {
            let (verdict, sent) = node.run(packet);
            assert_eq!(verdict, TX);
            let at = 14 + if net.node.is_ipv4() { 4 } else { 2 };
            u16::from_be_bytes([sent[at], sent[at + 1]])
        };
        assert_eq!(port(&node, &packet::tcp(client, asked, SYN)), TARGET_PORT);
        assert_eq!(port(&node, &packet::tcp(client, asked, ACK)), TARGET_PORT);
        let open = node.entry(&tuple(TCP, client, asked)).expect("an entry");
        assert_eq!(port(&node, &make(UDP, client, asked)), TARGET_PORT);
        let new = 77u32;
        node.dp.put(map::BACKENDS, new, Backend::new(net.remote_pod.into(), Port::new(9090), 0));
        node.dp.put(map::BACKEND_SLOTS, SlotKey { set: REMOTE_SET, slot: 0 }, new);
        node.dp.put(map::SET_MEMBERS, MemberKey { set: REMOTE_SET, backend: new }, 0u32);
        node.dp.hash::<MemberKey, u32>(map::SET_MEMBERS).remove(&MemberKey { set: REMOTE_SET, backend: REMOTE_SET }).expect("it was one");
        std::thread::sleep(std::time::Duration::from_nanos(2 * xebec_ebpf_logic::conntrack::DECIDED));
        assert_eq!(port(&node, &packet::tcp(client, asked, ACK)), TARGET_PORT, "a connection stays");
        assert_eq!(port(&node, &make(UDP, client, asked)), 9090, "datagrams do not");
        assert_eq!(port(&node, &packet::tcp(client, asked, FIN | ACK)), TARGET_PORT);
        let closed = node.entry(&tuple(TCP, client, asked)).expect("an entry");
        assert!(closed.expires < open.expires, "what is over does not live long");
        assert_eq!(port(&node, &packet::tcp(client, asked, SYN)), 9090, "the next connection");
    }
}

#[test]
fn without_hops_or_a_way_it_ends_here() {
    for net in nets() {
        let node = sender(&net);
        let packet = make(UDP, (net.client, CLIENT), (net.node, REMOTE_PORT));
        let mut last = packet.clone();
        last[if net.node.is_ipv4() { 22 } else { 21 }] = 1;
        if net.node.is_ipv4() {
            last[24..26].copy_from_slice(&[0, 0]);
            let sum = packet::checksum(&[&last[14..34]]);
            last[24..26].copy_from_slice(&sum);
        }
        assert_eq!(node.run(&last).0, PASS);
        assert_eq!(at_uplink(&node, &last, 0).0, SHOT);
        assert_eq!(node.dp.drops(DropReason::TtlExceeded), 1);
        node.space.ip(&format!("route del {}", net.remote_pod));
        assert_eq!(node.run(&packet).0, PASS);
        assert_eq!(at_uplink(&node, &packet, 0).0, SHOT);
        assert_eq!(node.dp.drops(DropReason::DirectNoRoute), 1);
    }
}

/// An ICMP error, with the second half of its header and all that it quotes.
fn error(net: &Net, (kind, code): (u8, u8), rest: [u8; 4], about: &[u8]) -> Vec<u8> {
    packet::icmp(net.outside, net.node, kind, code, rest, about)
}

#[test]
fn what_routers_say_of_packets_between_nodes_the_client_is_told_in_its_own_addresses() {
    for net in nets() {
        let mut node = sender(&net);
        takes_direct(&mut node.dp);
        let v4 = net.node.is_ipv4();
        let (too_big, no_way) = if v4 { ((3, 4), (3, 1)) } else { ((2, 0), (1, 3)) };
        // A host or net unreachable, a hop limit spent, and a header that somebody did not like.
        let (lost, spent, disliked) = if v4 { ((3, 0), (11, 0), (12, 0)) } else { ((1, 0), (3, 0), (4, 1)) };
        let mut told = 0;
        for proto in [TCP, UDP] {
            let (client, asked) = ((net.client, CLIENT), (net.node, REMOTE_PORT));
            let first = make(proto, client, asked);
            let (verdict, sent) = node.run(&first);
            assert_eq!(verdict, TX);
            let (inner, least) = (one_hop_on(&first[14..]), header(&net) * 2 + 8);
            let mtu = [0, 0, 5, 0];
            let fits = (0x500 - header(&net) as u32).to_be_bytes();
            for (said, rest, means, fits) in [
                (too_big, mtu, too_big, fits),
                (lost, [0; 4], no_way, [0; 4]),
                (spent, [0; 4], no_way, [0; 4]),
                (disliked, [9, 0, 0, 0], no_way, [0; 4]),
            ] {
                // As much as a router may quote: all of it, an odd number of bytes, or the ports and no more.
                for quoted in [sent.len() - 14, least + 3, least] {
                    let packet = error(&net, said, rest, &sent[14..14 + quoted]);
                    let (verdict, bytes) = run_at_uplink(&node, prog::TAKE_DIRECT, &packet, 0);
                    assert_eq!(verdict, REDIRECT, "{said:?} {quoted}");
                    let read = read(&bytes);
                    assert_eq!((read.src, read.dst), (asked.0, client.0));
                    assert_eq!((&read.l4[..2], &read.l4[4..8]), (&[means.0, means.1][..], &fits[..]), "{said:?}");
                    assert_eq!(read.l4[8..], inner[..quoted - header(&net)], "the client's own packet");
                    told += 1;
                }
            }
            assert_eq!(node.dp.counter(map::FORWARDS, forward::DIRECT_ERROR).packets, told);

            // The flow lives no longer by it.
            let before = node.entry(&tuple(proto, client, asked)).expect("an entry");
            run_at_uplink(&node, prog::TAKE_DIRECT, &error(&net, too_big, mtu, &sent[14..]), 0);
            told += 1;
            let after = node.entry(&tuple(proto, client, asked)).expect("an entry");
            assert_eq!((after.expires, after.state), (before.expires, before.state));

            // What nobody has sent: another client's, to another pod, about an error, in a later piece.
            let unrelated = |inner: &[u8], why: &str| {
                let before = node.dp.drops(DropReason::IcmpUnrelated);
                let packet = error(&net, too_big, mtu, &around(&net, inner, TARGET_PORT)[14..]);
                assert_eq!(run_at_uplink(&node, prog::TAKE_DIRECT, &packet, 0).0, SHOT, "{why}");
                assert_eq!(node.dp.drops(DropReason::IcmpUnrelated), before + 1, "{why}");
            };
            unrelated(&make(proto, (net.client, CLIENT + 1), asked)[14..], "another client's");
            unrelated(&packet::too_big(net.client, net.node, &first[14..])[14..], "an error");
            unrelated(&packet::ip(net.client, net.node, 47, &[0; 16]), "no ports");

            // Nothing that direct server return has to do with: that is the stack's, as it is.
            let left = |packet: &[u8], why: &str| {
                let (verdict, bytes) = run_at_uplink(&node, prog::TAKE_DIRECT, packet, 0);
                assert_eq!((verdict, &bytes[..] == packet), (UNSPEC, true), "{why}");
            };
            left(&error(&net, too_big, mtu, &sent[14..14 + least - 1]), "too little is quoted");
            left(&error(&net, too_big, mtu, &first[14..]), "about the client's own packet");
            left(&packet::icmp(net.outside, net.client, too_big.0, too_big.1, mtu, &sent[14..]), "for somebody else");
            let stranger = match v4 {
                true => packet::ip_fragment(net.outside, net.remote_pod, 4, &inner, 0x4000, TARGET_PORT),
                false => packet::ip(net.outside, net.remote_pod, 41, &inner),
            };
            left(&error(&net, too_big, mtu, &stranger), "another one's packet");
            let elsewhere = match v4 {
                true => packet::ip_fragment(net.node, net.outside, 4, &inner, 0x4000, TARGET_PORT),
                false => packet::ip(net.node, net.outside, 41, &inner),
            };
            left(&error(&net, too_big, mtu, &elsewhere), "to no pod");
        }
        // Where no Service is reached directly, nobody looks.
        let node = sender(&net);
        let (_, sent) = node.run(&make(UDP, (net.client, CLIENT), (net.node, REMOTE_PORT)));
        let packet = error(&net, too_big, [0, 0, 5, 0], &sent[14..]);
        assert_eq!(run_at_uplink(&node, prog::TAKE_DIRECT, &packet, 0), (UNSPEC, packet.clone()));
    }
}
