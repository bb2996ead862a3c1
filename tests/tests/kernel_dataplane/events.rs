//! What programs tell of packets, to whom, and how much of it.

use std::net::IpAddr;
use std::time::Instant;

use aya::maps::{Array, PerCpuArray, PerCpuHashMap, RingBuf};
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, DropReason, Endpoint, Event, Frontend, FrontendKey, Listen, MemberKey, NetnsCookie, PolicyKey,
    PolicyVerdict, Port, Remote, ServiceCount, SlotKey, Tuple, direction, map, prog, seen,
};

use crate::fixture::{Dataplane, SHOT, UNSPEC};
use crate::packet::{self, ACK, SYN, TCP, addr};
use crate::uplink;
use crate::xdp::XdpNode;

const POD: u32 = 7;
const PEER: u32 = 300;
const SERVICE: u32 = 41;

struct Net {
    pod: IpAddr,
    peer: IpAddr,
    stranger: IpAddr,
    vip: IpAddr,
}

fn nets() -> [Net; 2] {
    [
        Net { pod: addr("10.244.0.5"), peer: addr("10.244.1.6"), stranger: addr("203.0.113.80"), vip: addr("10.96.0.10") },
        Net { pod: addr("fd00:244::5"), peer: addr("fd00:244:1::6"), stranger: addr("2001:db8:3::80"), vip: addr("fd00:96::10") },
    ]
}

/// A pod that may talk to one peer at one port, by rule 77, and a Service whose endpoint that is.
fn node(net: &Net) -> Dataplane {
    let mut dp = Dataplane::load();
    let flags = Endpoint::ISOLATE_EGRESS;
    let endpoint = Endpoint { id: POD, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
    dp.put_prefix(map::IPCACHE, 128, Addr::from(net.peer), Remote { identity: PEER, flags: 0 });
    let key = PolicyKey::new(POD, direction::EGRESS, PEER, TCP, Port::new(8080));
    dp.put_prefix(map::POLICY, PolicyKey::EXACT, key, PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 77 });
    let frontend = Frontend { service: SERVICE, internal: 1, external: 1, flags: 0, affinity_timeout: 0 };
    dp.put(map::FRONTENDS, FrontendKey::new(net.vip.into(), Port::new(80), TCP), frontend);
    dp
}

fn serve(dp: &mut Dataplane, net: &Net) {
    dp.put(map::BACKENDS, 9u32, Backend::new(net.peer.into(), Port::new(8080), 0));
    dp.put(map::BACKEND_SLOTS, SlotKey { set: 1, slot: 0 }, 9u32);
    dp.put(map::SET_MEMBERS, MemberKey { set: 1, backend: 9 }, 0u32);
    dp.put(map::BACKEND_SETS, 1u32, BackendSet { count: 1, flags: 0 });
}

fn listen(dp: &mut Dataplane, wanted: u32, rate: u32) {
    let mut map: Array<_, Listen> = Array::try_from(dp.ebpf.map_mut(map::LISTEN).expect("LISTEN")).expect("an array");
    map.set(0, Listen { wanted, rate }, 0).expect("the entry is written");
}

fn events(dp: &mut Dataplane) -> Vec<Event> {
    let mut ring = RingBuf::try_from(dp.ebpf.map_mut(map::EVENTS).expect("EVENTS")).expect("a ring");
    let mut found = Vec::new();
    while let Some(item) = ring.next() {
        assert_eq!(item.len(), size_of::<Event>());
        // SAFETY: as many bytes as an event has, and any bytes are one.
        found.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
    }
    found
}

fn untold(dp: &Dataplane) -> u64 {
    let map: PerCpuArray<_, u64> = PerCpuArray::try_from(dp.ebpf.map(map::UNTOLD).expect("UNTOLD")).expect("a per-CPU array");
    map.get(&0, 0).expect("the entry is read").iter().sum()
}

fn count(dp: &Dataplane, service: u32) -> ServiceCount {
    let map: PerCpuHashMap<_, u32, ServiceCount> =
        PerCpuHashMap::try_from(dp.ebpf.map(map::SERVICE_COUNTS).expect("SERVICE_COUNTS")).expect("a per-CPU hash");
    let counts = map.get(&service, 0).expect("the Service has a count");
    counts.iter().fold(ServiceCount::default(), |a, b| ServiceCount { flows: a.flows + b.flows, refused: a.refused + b.refused })
}

const ALL: u32 = Listen::DROPS | Listen::FLOWS;

#[test]
fn a_drop_and_a_new_flow_are_told_with_what_decided_and_what_follows_is_not() {
    for net in nets() {
        let mut dp = node(&net);
        listen(&mut dp, ALL, 1000);
        let first = packet::tcp((net.pod, 1000), (net.peer, 8080), SYN);
        assert_eq!(dp.run(prog::FROM_POD, &first).verdict, UNSPEC);
        let [flow] = events(&mut dp)[..] else { panic!("one event") };
        assert_eq!(flow.tuple, Tuple::new(net.pod.into(), Port::new(1000), net.peer.into(), Port::new(8080), TCP));
        assert_eq!((flow.seen, flow.reason, flow.ifindex, flow.bytes), (seen::FROM_POD, 0, 1, first.len() as u32));
        assert_eq!((flow.rules, flow.service), ([0, 77], 0), "allowed by this rule, and no Service's");
        assert!(flow.time > 0);
        assert_eq!(dp.run(prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.peer, 8080), ACK)).verdict, UNSPEC);
        assert_eq!(events(&mut dp), [], "not new any more");

        assert_eq!(dp.run(prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.stranger, 443), SYN)).verdict, SHOT);
        let [drop] = events(&mut dp)[..] else { panic!("one event") };
        assert_eq!((drop.reason, drop.tuple.dst), (DropReason::PolicyEgress as u32, Addr::from(net.stranger)));
        // Of what cannot be read only the device and the size are known, whatever was seen before.
        let cut = &first[..if net.pod.is_ipv4() { 40 } else { 60 }];
        assert_eq!(dp.run(prog::FROM_POD, cut).verdict, SHOT);
        let mut lldp = first.clone();
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(dp.run(prog::FROM_POD, &lldp).verdict, SHOT);
        let [cut_off, not_ip] = events(&mut dp)[..] else { panic!("two events") };
        assert_eq!((cut_off.reason, cut_off.tuple.dport), (DropReason::Malformed as u32, Port::new(0)));
        let unread = Event::new(not_ip.time, seen::FROM_POD, DropReason::NotIp as u32, lldp.len() as u32, 1);
        assert_eq!(not_ip, unread);
    }
}

#[test]
fn a_service_is_named_and_counted_whether_it_serves_or_not() {
    for net in nets() {
        let mut dp = node(&net);
        listen(&mut dp, ALL, 1000);
        let ask = |port| packet::tcp((net.pod, port), (net.vip, 80), SYN);
        // Answered with a refusal, which is a drop all the same.
        dp.run(prog::FROM_POD, &ask(1000));
        let [refused] = events(&mut dp)[..] else { panic!("one event") };
        assert_eq!((refused.reason, refused.service), (DropReason::NoBackend as u32, SERVICE));
        assert_eq!((refused.asked, refused.asked_port), (net.vip.into(), Port::new(80)));
        assert_eq!(count(&dp, SERVICE), ServiceCount { flows: 0, refused: 1 });

        serve(&mut dp, &net);
        assert_eq!(dp.run(prog::FROM_POD, &ask(1001)).verdict, UNSPEC);
        let [flow] = events(&mut dp)[..] else { panic!("one event") };
        assert_eq!((flow.reason, flow.service, flow.rules), (0, SERVICE, [0, 77]));
        assert_eq!((flow.asked, flow.asked_port), (net.vip.into(), Port::new(80)));
        assert_eq!((flow.tuple.dst, flow.tuple.dport), (net.peer.into(), Port::new(8080)), "the endpoint that was chosen");
        assert_eq!(dp.run(prog::FROM_POD, &ask(1002)).verdict, UNSPEC);
        assert_eq!(dp.run(prog::FROM_POD, &packet::tcp((net.pod, 1002), (net.vip, 80), ACK)).verdict, UNSPEC);
        assert_eq!(count(&dp, SERVICE), ServiceCount { flows: 2, refused: 1 }, "flows, not packets");
    }
}

#[test]
fn a_flow_that_turns_round_in_the_driver_is_told_and_counted_once() {
    const TURNS: i32 = 3;
    for net in uplink::nets() {
        let mut node = XdpNode::new(&net);
        listen(&mut node.dp, ALL, 1000);
        for flags in [SYN, ACK] {
            assert_eq!(node.run(&packet::tcp((net.client, 45000), (net.node, 30081), flags)).0, TURNS);
        }
        let [flow] = events(&mut node.dp)[..] else { panic!("one event") };
        assert_eq!((flow.seen, flow.reason, flow.ifindex), (seen::XDP, 0, node.uplink));
        assert_eq!(flow.tuple, Tuple::new(net.client.into(), Port::new(45000), net.remote_pod.into(), Port::new(8080), TCP));
        assert_eq!((flow.asked, flow.asked_port), (net.node.into(), Port::new(30081)));
        assert_ne!(flow.service, 0);
        assert_eq!(count(&node.dp, flow.service), ServiceCount { flows: 1, refused: 0 });
        // What that hook leaves to the next one is that one's to tell and to count.
        let local = packet::tcp((net.client, 45001), (net.node, 30080), SYN);
        assert_ne!(node.run(&local).0, TURNS);
        assert_eq!(events(&mut node.dp), []);
    }
}

#[test]
fn nothing_is_told_to_nobody_and_drops_alone_to_who_asked_for_them() {
    let net = &nets()[0];
    let mut dp = node(net);
    let both = |dp: &Dataplane, port| {
        dp.run(prog::FROM_POD, &packet::tcp((net.pod, port), (net.peer, 8080), SYN));
        dp.run(prog::FROM_POD, &packet::tcp((net.pod, port), (net.stranger, 443), SYN));
    };
    both(&dp, 1000);
    assert_eq!((events(&mut dp), untold(&dp)), (vec![], 0));
    listen(&mut dp, Listen::DROPS, 1000);
    both(&dp, 1001);
    assert!(matches!(events(&mut dp)[..], [Event { reason: 5, .. }]));
    listen(&mut dp, Listen::FLOWS, 1000);
    both(&dp, 1002);
    assert!(matches!(events(&mut dp)[..], [Event { reason: 0, .. }]));
    assert_eq!(untold(&dp), 0, "what nobody wants is not missed");
}

#[test]
fn a_flood_is_told_at_a_bounded_rate_and_the_rest_is_counted() {
    const PACKETS: u64 = 4000;
    let net = &nets()[0];
    let mut dp = node(net);
    listen(&mut dp, Listen::DROPS, 1);
    let begun = Instant::now();
    let flood = packet::tcp((net.pod, 1000), (net.stranger, 443), SYN);
    (0..PACKETS).for_each(|_| drop(dp.run(prog::FROM_POD, &flood)));
    let told = events(&mut dp).len() as u64;
    let seconds = begun.elapsed().as_secs();
    let cpus = aya::util::nr_cpus().expect("a number of CPUs") as u64;
    assert_eq!(told + untold(&dp), PACKETS, "told or counted");
    assert!(told >= 1 && told <= cpus * (seconds + 2), "{told} in {seconds} s on {cpus} CPUs");
}

#[test]
fn a_ring_that_nobody_reads_loses_events_and_no_packets() {
    let net = &nets()[0];
    let mut dp = node(net);
    listen(&mut dp, Listen::DROPS, u32::MAX);
    let flood = packet::tcp((net.pod, 1000), (net.stranger, 443), SYN);
    let places = (512 << 10) / (size_of::<Event>() as u64 + 8);
    (0..places + 100).for_each(|_| assert_eq!(dp.run(prog::FROM_POD, &flood).verdict, SHOT));
    let told = events(&mut dp).len() as u64;
    assert!(told <= places && told + untold(&dp) == places + 100, "{told} told, {} not", untold(&dp));
    dp.run(prog::FROM_POD, &flood);
    assert_eq!(events(&mut dp).len(), 1, "it has room again");
}

fn limited(net: &Net, flags: u32) -> Dataplane {
    let mut dp = Dataplane::load();
    let endpoint = Endpoint { id: POD, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(net.pod), endpoint);
    dp
}

#[test]
fn a_pods_bucket_empties_by_its_bytes_and_what_is_too_much_is_dropped() {
    use xebec_ebpf_abi::{Limit, LimitKey};
    const SECOND: u64 = 1_000_000_000;
    let hour = 3600 * SECOND;
    for net in nets() {
        for (flag, way, program) in
            [(Endpoint::LIMIT_EGRESS, direction::EGRESS, prog::FROM_POD), (Endpoint::LIMIT_INGRESS, direction::INGRESS, prog::TO_POD)]
        {
            let packet = match way {
                direction::EGRESS => packet::udp((net.pod, 1000), (net.stranger, 53)),
                _ => packet::udp((net.stranger, 53), (net.pod, 1000)),
            };
            let key = LimitKey { endpoint: POD, direction: u32::from(way) };
            let mut dp = limited(&net, flag);
            assert_eq!(dp.run(program, &packet).verdict, UNSPEC, "no limit is known yet");
            // What passes a full bucket tells the time. From there on hours ahead of it: what the test takes does not count.
            dp.put(map::LIMITS, key, Limit { rate: u64::MAX, burst: 1, until: 0 });
            assert_eq!(dp.run(program, &packet).verdict, UNSPEC);
            let now: Limit = dp.hash(map::LIMITS).get(&key, 0).expect("the limit");
            assert!(now.until > 0);
            let start = now.until + hour;
            let limit = Limit { rate: 1000, burst: 2 * hour, until: start };
            dp.put(map::LIMITS, key, limit);
            for sent in 1..=3u64 {
                assert_eq!(dp.run(program, &packet).verdict, UNSPEC);
                let left: Limit = dp.hash(map::LIMITS).get(&key, 0).expect("the limit");
                assert_eq!(left.until, start + sent * packet.len() as u64 * SECOND / 1000, "{program}: {sent} packets");
            }
            // The bucket is empty.
            dp.put(map::LIMITS, key, Limit { until: start + 2 * hour, ..limit });
            assert_eq!(dp.run(program, &packet).verdict, SHOT);
            assert_eq!(dp.drops(DropReason::Bandwidth), 1);
            let left: Limit = dp.hash(map::LIMITS).get(&key, 0).expect("the limit");
            assert_eq!(left.until, start + 2 * hour, "what is dropped takes nothing");
            // A full one takes a packet that is larger than all of it.
            dp.put(map::LIMITS, key, Limit { rate: 1, burst: 1, until: 0 });
            assert_eq!(dp.run(program, &packet).verdict, UNSPEC);
            assert_eq!(dp.run(program, &packet).verdict, SHOT);
            // The other direction has no limit.
            let other = if program == prog::FROM_POD { prog::TO_POD } else { prog::FROM_POD };
            let back = match way {
                direction::EGRESS => packet::udp((net.stranger, 53), (net.pod, 1000)),
                _ => packet::udp((net.pod, 1000), (net.stranger, 53)),
            };
            assert_eq!(dp.run(other, &back).verdict, UNSPEC);
        }
    }
}
