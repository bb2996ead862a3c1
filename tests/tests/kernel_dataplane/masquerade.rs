//! Uplinks: pods leave with the node's address, where they should.

use crate::{
    packet::{self, ACK, SYN, TCP, UDP},
    uplink::{make, make_answer, nets, node, pass, untouched},
};
use xebec_ebpf_abi::{Addr, Flow, FlowKey, Port, Uplink, direction, map, prog};

#[test]
fn pods_leave_with_the_nodes_address_and_get_their_answers() {
    for net in nets() {
        let dp = node(&net);
        for proto in [TCP, UDP] {
            let (pod, outside) = ((net.pod, 40000), (net.outside, 443));
            let leaves = pass(&dp, prog::TO_UPLINK, &make(proto, pod, outside));
            assert_eq!((leaves.src, leaves.dst, leaves.dport), (net.node, net.outside, 443));
            let back = pass(&dp, prog::FROM_UPLINK, &make_answer(proto, outside, (net.node, leaves.sport)));
            assert_eq!(back.tuple(), (outside, pod));
            assert_eq!(pass(&dp, prog::TO_UPLINK, &make(proto, pod, outside)), leaves);
        }
        // A checksum of zero means none, and stays none.
        if net.pod.is_ipv4() {
            let mut none = packet::udp((net.pod, 40001), (net.outside, 53));
            none[40..42].copy_from_slice(&[0, 0]);
            let out = dp.run(prog::TO_UPLINK, &none);
            assert_eq!(&out.bytes[40..42], &[0, 0]);
            assert_eq!(packet::read_ip(&out.bytes[14..]).src, net.node);
        }
    }
}

#[test]
fn pings_are_masqueraded_by_identifier() {
    for net in nets() {
        let dp = node(&net);
        let out = pass(&dp, prog::TO_UPLINK, &packet::echo(net.pod, net.outside, false, 77));
        assert_eq!((out.src, out.dst), (net.node, net.outside));
        let id = u16::from_be_bytes([out.l4[4], out.l4[5]]);
        let back = pass(&dp, prog::FROM_UPLINK, &packet::echo(net.outside, net.node, true, id));
        assert_eq!((back.src, back.dst), (net.outside, net.pod));
        assert_eq!(back.l4[4..6], 77u16.to_be_bytes());
    }
}

#[test]
fn destinations_without_masquerade_see_the_pod() {
    for net in nets() {
        let mut dp = node(&net);
        let remote = Addr::from(net.remote_pod);
        dp.put_prefix(map::NO_MASQUERADE, remote.prefix_len(32), remote, 1u32);
        untouched(&dp, prog::TO_UPLINK, &packet::tcp((net.pod, 40000), (net.remote_pod, 80), SYN));
        assert_eq!(pass(&dp, prog::TO_UPLINK, &packet::tcp((net.pod, 40000), (net.outside, 80), SYN)).src, net.node);
        // Nor is a pod masqueraded on a device without an address to do it with.
        dp.put(map::UPLINKS, 1u32, Uplink { v4: Addr::ANY, v6: Addr::ANY, mtu: 1500 });
        untouched(&dp, prog::TO_UPLINK, &packet::tcp((net.pod, 40001), (net.outside, 80), SYN));
    }
}

#[test]
fn answers_to_who_came_by_the_pods_own_address_keep_it() {
    for net in nets() {
        let mut dp = node(&net);
        let key = FlowKey::new(1, Port::new(80), net.outside.into(), Port::new(5000), TCP);
        dp.put(map::FLOWS, key, Flow::new(direction::INGRESS, 0, 1, u64::MAX));
        untouched(&dp, prog::TO_UPLINK, &packet::tcp((net.pod, 80), (net.outside, 5000), SYN | ACK));
    }
}
