//! Consistent hashing in the kernel: rings in their maps, both generations.

use crate::{
    fixture::Dataplane,
    packet::{self, ACK, SYN, TCP},
    uplink::{Net, nets, node, pass},
};
use std::{collections::BTreeMap, net::IpAddr};
use xebec_dataplane::compile::maglev::{Member, places};
use xebec_ebpf_abi::{Addr, Backend, BackendSet, Frontend, FrontendKey, Places, PlacesKey, Port, Ring, Rings, SlotKey, map, prog};

const SET: u32 = 50;
const NODE_PORT: u16 = 30090;
const SIZE: u32 = 1021;

fn pod(net: &Net, n: u32) -> Addr {
    match net.pod {
        IpAddr::V4(_) => Addr::v4([10, 244, 0, 100 + n as u8]),
        IpAddr::V6(_) => Addr::from(
            "fd00:244::100".parse::<std::net::Ipv6Addr>().map(|a| (u128::from(a) + u128::from(n)).into()).map(IpAddr::V6).unwrap(),
        ),
    }
}

fn member(net: &Net, n: u32) -> Member {
    Member { addr: pod(net, n), port: Port::new(80), weight: 1, id: 100 + n }
}

/// Writes a ring of these backends under a number.
fn ring(dp: &mut Dataplane, net: &Net, number: u32, backends: &[u32]) -> Ring {
    let members: Vec<Member> = backends.iter().map(|n| member(net, *n)).collect();
    for (part, chunk) in (0..).zip(places(&members, SIZE).chunks(Places::COUNT as usize)) {
        let mut backends = [0; Places::COUNT as usize];
        backends[..chunk.len()].copy_from_slice(chunk);
        dp.put(map::RING_PLACES, PlacesKey { ring: number, part }, Places { backends });
    }
    Ring { number, size: SIZE }
}

/// A node with a NodePort on a set of eight local backends.
fn with_rings(net: &Net) -> Dataplane {
    let mut dp = node(net);
    for n in 0..8 {
        dp.put(map::BACKENDS, 100 + n, Backend::new(pod(net, n), Port::new(80), Backend::LOCAL));
        dp.put(map::BACKEND_SLOTS, SlotKey { set: SET, slot: n }, 100 + n);
    }
    dp.put(map::BACKEND_SETS, SET, BackendSet { count: 8, flags: 0 });
    let flags = Frontend::EXTERNAL | Frontend::RING;
    let frontend = Frontend { service: SET, internal: SET, external: SET, flags, affinity_timeout: 0 };
    dp.put(map::FRONTENDS, FrontendKey::node_port(net.node.is_ipv4(), Port::new(NODE_PORT), TCP), frontend);
    let current = ring(&mut dp, net, 1, &[0, 1, 2, 3, 4, 5, 6, 7]);
    dp.put(map::RINGS, SET, Rings { current, ..Rings::default() });
    dp
}

/// Where packets of 300 clients go that nobody has seen before.
fn targets(dp: &mut Dataplane, net: &Net, flags: u8) -> BTreeMap<u16, IpAddr> {
    let there = |n| pass(dp, prog::FROM_UPLINK, &packet::tcp((net.client, n), (net.node, NODE_PORT), flags)).dst;
    let found = (2000..2300).map(|n| (n, there(n))).collect();
    // Another node has none of these entries.
    let nat: Vec<_> = dp.hash::<xebec_ebpf_abi::Tuple, xebec_ebpf_abi::Nat>(map::NAT).keys().flatten().collect();
    for key in nat {
        let _ = dp.hash::<xebec_ebpf_abi::Tuple, xebec_ebpf_abi::Nat>(map::NAT).remove(&key);
    }
    found
}

#[test]
fn a_change_of_backends_and_of_the_balancing_node_breaks_no_flow() {
    for net in nets() {
        let mut dp = with_rings(&net);
        let before = targets(&mut dp, &net, SYN);
        assert_eq!(before.values().collect::<std::collections::BTreeSet<_>>().len(), 8, "all get some");
        assert_eq!(targets(&mut dp, &net, ACK), before, "a flow's later packets find the same place");
        // Backends 0 and 1 leave: 0 still serves while it ends, 1 is gone.
        let previous = Ring { number: 1, size: SIZE };
        let current = ring(&mut dp, &net, 2, &[2, 3, 4, 5, 6, 7]);
        dp.put(map::RINGS, SET, Rings { current, previous, until: 0 });
        dp.hash::<u32, Backend>(map::BACKENDS).remove(&101).expect("there was one");
        let (draining, gone) = (pod(&net, 0).to_ip(), pod(&net, 1).to_ip());
        let new = targets(&mut dp, &net, SYN);
        assert!(!new.values().any(|t| [draining, gone].contains(t)), "new connections go to who is there");
        for (client, target) in targets(&mut dp, &net, ACK) {
            if before[&client] == gone {
                assert_eq!(target, new[&client]);
            } else {
                assert_eq!(target, before[&client], "an established flow stays");
            }
        }
    }
}

#[test]
fn a_ring_that_is_not_there_costs_consistency_but_no_connection() {
    let net = &nets()[0];
    let mut dp = with_rings(net);
    dp.put(map::RINGS, SET, Rings { current: Ring { number: 99, size: SIZE }, ..Rings::default() });
    assert_eq!(targets(&mut dp, net, SYN).values().collect::<std::collections::BTreeSet<_>>().len(), 8);
    // One place: the number is the backend.
    dp.put(map::RINGS, SET, Rings { current: Ring { number: 103, size: 1 }, ..Rings::default() });
    assert!(targets(&mut dp, net, SYN).values().all(|t| *t == pod(net, 3).to_ip()));
}
