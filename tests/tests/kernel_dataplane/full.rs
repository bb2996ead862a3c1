//! Maps that take no further entry: what is new is refused with a reason, what lives goes on, and places that get free are used.

use crate::{
    fixture::{Dataplane, UNSPEC},
    packet::{self, ACK, SYN, TCP, UDP},
    uplink::{CLIENT_PORT, NODE_PORT, TARGET_PORT, dropped, fill, make, make_answer, nets, pass},
};
use xebec_ebpf_abi::{
    Addr, DropReason, Endpoint, Flow, FlowKey, Nat, NetnsCookie, PolicyKey, PolicyVerdict, Port, Tuple, direction, map, prog,
};

#[test]
fn a_full_map_of_translations_refuses_the_new_and_keeps_the_old() {
    for net in nets() {
        let mut dp = Dataplane::load_with(|loader| {
            // Two flows, each with an entry a direction.
            loader.map_max_entries(map::NAT, 4);
        });
        fill(&mut dp, &net);
        let (asked, target) = ((net.node, NODE_PORT), (net.pod, TARGET_PORT));
        let client = |n: u16| (net.client, CLIENT_PORT + n);
        for n in [0, 1] {
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &make(TCP, client(n), asked)).tuple(), (client(n), target));
        }
        for proto in [TCP, UDP] {
            dropped(&dp, prog::FROM_UPLINK, &make(proto, client(2), asked), DropReason::NatTableFull);
            dropped(&dp, prog::TO_UPLINK, &make(proto, (net.pod, 1000), (net.outside, 443)), DropReason::NatTableFull);
        }
        // The refusals have left nothing behind that would take a place.
        assert_eq!(dp.hash::<Tuple, Nat>(map::NAT).keys().count(), 4);
        for n in [0, 1] {
            assert_eq!(pass(&dp, prog::TO_UPLINK, &make_answer(TCP, target, client(n))).tuple(), (asked, client(n)));
            assert_eq!(pass(&dp, prog::FROM_UPLINK, &packet::tcp(client(n), asked, ACK)).tuple(), (client(n), target));
        }
        // User space takes away what has expired.
        let tuple =
            |from: (_, u16), to: (_, u16)| Tuple::new(Addr::from(from.0), Port::new(from.1), Addr::from(to.0), Port::new(to.1), TCP);
        for key in [tuple(client(0), asked), tuple(target, client(0))] {
            dp.hash::<Tuple, Nat>(map::NAT).remove(&key).expect("it was there");
        }
        assert_eq!(pass(&dp, prog::FROM_UPLINK, &make(TCP, client(2), asked)).tuple(), (client(2), target));
    }
}

#[test]
fn a_full_map_of_flows_refuses_where_policy_needs_them_and_nowhere_else() {
    for net in nets() {
        let mut dp = Dataplane::load_with(|loader| {
            loader.map_max_entries(map::FLOWS, 1);
        });
        fill(&mut dp, &net);
        let pod = |flags| Endpoint { id: 1, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
        let all = PolicyKey::new(1, direction::EGRESS, 0, 0, Port::new(0));
        dp.put_prefix(map::POLICY, PolicyKey::ANY_PROTO, all, PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 });
        dp.put(map::ENDPOINTS, Addr::from(net.pod), pod(Endpoint::ISOLATE_EGRESS));
        let from = |port: u16| packet::tcp((net.pod, port), (net.outside, 443), SYN);
        assert_eq!(dp.run(prog::FROM_POD, &from(1)).verdict, UNSPEC);
        dropped(&dp, prog::FROM_POD, &from(2), DropReason::FlowTableFull);
        // The flow that is known, and its answers.
        assert_eq!(dp.run(prog::FROM_POD, &from(1)).verdict, UNSPEC);
        assert_eq!(dp.run(prog::TO_POD, &packet::tcp((net.outside, 443), (net.pod, 1), SYN | ACK)).verdict, UNSPEC);
        let key = FlowKey::new(1, Port::new(1), Addr::from(net.outside), Port::new(443), TCP);
        dp.hash::<FlowKey, Flow>(map::FLOWS).remove(&key).expect("it was there");
        assert_eq!(dp.run(prog::FROM_POD, &from(2)).verdict, UNSPEC);
        // A pod that no policy is for needs no entry.
        dp.put(map::ENDPOINTS, Addr::from(net.pod), pod(0));
        assert_eq!(dp.run(prog::FROM_POD, &from(3)).verdict, UNSPEC);
    }
}
