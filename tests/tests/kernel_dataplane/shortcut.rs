//! Connections that are judged once in a while: what makes a shortcut, what follows it, what ends it.

use crate::{
    fixture::{Dataplane, REDIRECT, SHOT, UNSPEC},
    packet::{self, ACK, FIN, RST, SYN, addr},
};
use aya::maps::{HashMap, PerCpuArray, PerCpuValues};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, Config, DropReason, Endpoint, Flow, FlowKey, Limit, LimitKey, NetnsCookie, Port, Shortcut, Tuple, direction, forward, map, prog,
};
use xebec_ebpf_logic::conntrack::STEP;

const POD: u32 = 7;
const OTHER: u32 = 8;
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 7, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];

struct Pods {
    dp: Dataplane,
    pod: (IpAddr, u16),
    other: (IpAddr, u16),
}

/// Both pods are behind ifindex 1, the only one a program can be run with here. `direct`: the other one is a pod of the node.
fn pods(pod: &str, other: &str, direct: bool) -> Pods {
    let mut dp = Dataplane::load();
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 });
    let mut pods = Pods { dp, pod: (addr(pod), 1000), other: (addr(other), 80) };
    pods.endpoint(POD, pods.pod.0, 0, 1);
    if direct {
        pods.endpoint(OTHER, pods.other.0, 0, 1);
    }
    pods
}

/// Of both families, to a pod of the node and to one elsewhere.
fn each(mut f: impl FnMut(Pods, i32)) {
    for (pod, other) in [("10.244.0.5", "10.244.0.6"), ("fd00:244::5", "fd00:244::6")] {
        f(pods(pod, other, true), REDIRECT);
        f(pods(pod, other, false), UNSPEC);
    }
}

impl Pods {
    fn endpoint(&mut self, id: u32, ip: IpAddr, flags: u32, epoch: u32) {
        let flags = flags | Endpoint::DIRECT;
        let endpoint = Endpoint { id, ifindex: 1, pod_mac: POD_MAC, host_mac: HOST_MAC, flags, epoch, netns: NetnsCookie::UNKNOWN };
        self.dp.put(map::ENDPOINTS, Addr::from(ip), endpoint);
    }

    fn frame(&self, flags: u8) -> Vec<u8> {
        packet::tcp(self.pod, self.other, flags)
    }

    /// The verdict on the pod's packet; one that goes on is as it came, but for hardware addresses.
    fn send(&self, flags: u8) -> i32 {
        let frame = self.frame(flags);
        let out = self.dp.run(prog::FROM_POD, &frame);
        match out.verdict {
            REDIRECT => assert_eq!(out.bytes, [&POD_MAC[..], &HOST_MAC, &frame[12..]].concat()),
            UNSPEC => assert_eq!(out.bytes, frame),
            other => assert_eq!(other, SHOT),
        }
        out.verdict
    }

    fn flows(&mut self) -> HashMap<&mut aya::maps::MapData, FlowKey, Flow> {
        self.dp.hash(map::FLOWS)
    }

    /// Makes all flows as old as those that a packet pushes on.
    fn age(&mut self) {
        let mut flows = self.flows();
        for entry in flows.iter().collect::<Vec<_>>() {
            let (key, mut flow) = entry.expect("nobody else writes");
            flow.expires -= 2 * STEP;
            flows.insert(key, flow, 0).expect("it is there");
        }
    }

    /// After that a packet that is judged leaves an entry, and one that is not leaves none.
    fn forget(&mut self) {
        let mut flows = self.flows();
        let keys: Vec<FlowKey> = flows.keys().map(|key| key.expect("nobody else writes")).collect();
        keys.iter().for_each(|key| flows.remove(key).expect("it was there"));
    }

    fn is_judged(&mut self, flags: u8) -> bool {
        self.forget();
        self.send(flags);
        self.flows().keys().count() > 0
    }

    /// Has the connection's shortcuts changed.
    fn change(&mut self, change: impl Fn(&mut Shortcut)) {
        let place = Shortcut::place(&self.tuple());
        let map = self.dp.ebpf.map_mut(map::SHORTCUTS).expect("SHORTCUTS");
        let mut map: PerCpuArray<_, Shortcut> = PerCpuArray::try_from(map).expect("a per-CPU array");
        let mut all = map.get(&place, 0).expect("the entry is read").to_vec();
        all.iter_mut().for_each(change);
        let all = PerCpuValues::try_from(all).expect("one for each CPU");
        map.set(place, all, 0).expect("the entry is written");
    }

    fn tuple(&self) -> Tuple {
        let (src, dst) = (self.pod, self.other);
        Tuple::new(src.0.into(), Port::new(src.1), dst.0.into(), Port::new(dst.1), packet::TCP)
    }

    fn shortcuts(&mut self) -> usize {
        let map = self.dp.ebpf.map(map::SHORTCUTS).expect("SHORTCUTS");
        let map: PerCpuArray<_, Shortcut> = PerCpuArray::try_from(map).expect("a per-CPU array");
        let all = map.get(&Shortcut::place(&self.tuple()), 0).expect("the entry is read");
        all.iter().filter(|shortcut| shortcut.until > 0).count()
    }

    /// A connection that has lived for a moment.
    fn connected(&mut self) {
        for flags in [SYN, ACK] {
            self.send(flags);
        }
        assert_eq!(self.shortcuts(), 0, "short connections pay nothing");
        self.age();
        self.send(ACK);
        assert_eq!(self.shortcuts(), 1);
    }
}

#[test]
fn packets_of_a_connection_that_was_just_judged_are_not_judged_again_but_counted() {
    each(|mut pods, verdict| {
        pods.connected();
        pods.forget();
        let counts = |pods: &Pods| [forward::FROM_POD, forward::TO_POD].map(|path| pods.dp.counter(map::FORWARDS, path));
        let (before, len) = (counts(&pods), pods.frame(ACK).len() as u64);
        assert_eq!(pods.send(ACK), verdict);
        assert_eq!(pods.flows().keys().count(), 0);
        let after = counts(&pods);
        let delivered = u64::from(verdict == REDIRECT);
        assert_eq!([0, 1].map(|i: usize| after[i].packets - before[i].packets), [1, delivered]);
        assert_eq!([0, 1].map(|i: usize| after[i].bytes - before[i].bytes), [len, len * delivered]);
    });
}

#[test]
fn what_opens_or_ends_a_connection_is_judged_and_so_is_all_that_is_not_just_its() {
    each(|mut pods, _| {
        pods.connected();
        for flags in [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK] {
            assert!(pods.is_judged(flags), "{flags}");
        }
        let (pod, other) = (pods.pod, pods.other);
        pods.other.1 += 1;
        assert!(pods.is_judged(ACK));
        (pods.pod, pods.other) = ((pod.0, pod.1 + 1), other);
        assert!(pods.is_judged(ACK));
        pods.pod = pod;
        assert!(!pods.is_judged(ACK));
    });
}

#[test]
fn a_shortcut_ends_with_its_second_and_with_every_change_of_endpoints() {
    each(|mut pods, _| {
        pods.connected();
        assert!(!pods.is_judged(ACK));
        pods.dp.end_shortcuts();
        assert!(pods.is_judged(ACK));
        pods.age();
        pods.send(ACK);
        assert!(!pods.is_judged(ACK));
        pods.change(|shortcut| shortcut.until = 1);
        assert!(pods.is_judged(ACK));
    });
}

#[test]
fn a_policy_that_comes_ends_a_connection_with_its_next_packet() {
    each(|mut pods, verdict| {
        pods.connected();
        assert_eq!(pods.send(ACK), verdict);
        let pod = pods.pod.0;
        pods.endpoint(POD, pod, Endpoint::ISOLATE_EGRESS, 2);
        let before = pods.dp.drops(DropReason::PolicyEgress);
        assert_eq!(pods.send(ACK), SHOT);
        assert_eq!(pods.dp.drops(DropReason::PolicyEgress), before + 1);
    });
}

#[test]
fn another_pods_packet_in_the_connections_name_is_spoofed() {
    each(|mut pods, _| {
        pods.connected();
        // As if the shortcut were of another device: what is not from there has none, and no such pod is behind this one.
        pods.change(|shortcut| shortcut.from = 2);
        let pod = Addr::from(pods.pod.0);
        let mut endpoints = pods.dp.hash::<Addr, Endpoint>(map::ENDPOINTS);
        let endpoint = endpoints.get(&pod, 0).expect("it is there");
        endpoints.insert(pod, Endpoint { ifindex: 2, ..endpoint }, 0).expect("it is there");
        assert_eq!(pods.send(ACK), SHOT);
        assert_eq!(pods.dp.drops(DropReason::SpoofedSource), 1);
    });
}

#[test]
fn a_pod_with_a_limit_has_every_packet_counted_against_it() {
    each(|mut pods, verdict| {
        let mut limits = vec![(POD, pods.pod.0, Endpoint::LIMIT_EGRESS, direction::EGRESS)];
        if verdict == REDIRECT {
            limits.push((OTHER, pods.other.0, Endpoint::LIMIT_INGRESS, direction::INGRESS));
        }
        for (endpoint, ip, flag, way) in limits {
            let limit = Limit { rate: 1_000_000, burst: 1_000_000_000, until: 0 };
            let key = LimitKey { endpoint, direction: u32::from(way) };
            pods.dp.put(map::LIMITS, key, limit);
            pods.endpoint(endpoint, ip, flag, 1);
            for flags in [SYN, ACK] {
                pods.send(flags);
            }
            pods.age();
            assert_eq!(pods.send(ACK), verdict);
            assert_eq!(pods.shortcuts(), 0);
            assert!(pods.dp.hash::<LimitKey, Limit>(map::LIMITS).get(&key, 0).expect("it is there").until > 0);
            pods.endpoint(endpoint, ip, 0, 1);
            pods.forget();
        }
    });
}
