//! What a packet costs, for people to read: `cargo test ... cost -- --ignored --nocapture`.

use crate::{
    fixture::Dataplane,
    packet::{self, ACK, addr},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{Addr, Config, Endpoint, Flow, FlowKey, Nat, NodeAddr, Port, Tuple, Uplink, direction, map, prog};

#[test]
#[ignore = "a measurement: it cannot fail"]
fn of_established_flows() {
    for (family, pod, peer, node) in [
        ("IPv4", addr("10.244.0.5"), addr("10.244.1.7"), addr("192.0.2.1")),
        ("IPv6", addr("fd00:244::5"), addr("fd00:244:1::7"), addr("2001:db8::1")),
    ] {
        let mut dp = node_with(pod, node);
        let flow = Flow::new(direction::EGRESS, Flow::REPLIED, 1, u64::MAX);
        let key = FlowKey::new(1, Port::new(1000), peer.into(), Port::new(80), packet::TCP);
        dp.put(map::FLOWS, key, flow);
        let there = packet::tcp((pod, 1000), (peer, 80), ACK);
        let back = packet::tcp((peer, 80), (pod, 1000), ACK);
        let mut arp = there.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        let say = |what: &str, ns: u128| println!("{family} {what}: {ns} ns");
        say("from_pod, ARP (the floor)", dp.cost(prog::FROM_POD, &arp));
        say("from_pod, known flow", dp.cost(prog::FROM_POD, &there));
        say("to_pod, known flow", dp.cost(prog::TO_POD, &back));
        say("from_uplink, nothing to do", dp.cost(prog::FROM_UPLINK, &packet::tcp((peer, 80), (node, 50000), ACK)));
        say("to_uplink, nothing to do", dp.cost(prog::TO_UPLINK, &packet::tcp((node, 50000), (peer, 80), ACK)));
        // A translation to itself costs what any other does.
        let tuple = Tuple::new(peer.into(), Port::new(80), node.into(), Port::new(61000), packet::TCP);
        dp.put(map::NAT, tuple, Nat::new(tuple, 0, 1, 0, u64::MAX));
        say("from_uplink, translated", dp.cost(prog::FROM_UPLINK, &packet::tcp((peer, 80), (node, 61000), ACK)));
    }
}

fn node_with(pod: IpAddr, node: IpAddr) -> Dataplane {
    let mut dp = Dataplane::load();
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 });
    let own = Addr::from(node);
    dp.put(map::NODE_ADDRS, own, NodeAddr { flags: NodeAddr::NODEPORT });
    dp.put(map::UPLINKS, 1u32, Uplink { v4: own, v6: own, flags: 0 });
    let endpoint = Endpoint {
        id: 1,
        ifindex: 1,
        pod_mac: [2; 6],
        host_mac: [4; 6],
        flags: Endpoint::ISOLATE_INGRESS,
        epoch: 1,
        netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN,
    };
    dp.put(map::ENDPOINTS, Addr::from(pod), endpoint);
    dp
}
