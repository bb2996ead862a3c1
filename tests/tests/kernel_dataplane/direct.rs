//! Packets of pods to Services that the socket hooks have not seen, and packets that go straight to a
//! pod.

use crate::{
    fixture::{Dataplane, REDIRECT, SHOT, UNSPEC},
    packet::{self, ACK, FIN, Read, SYN, TCP, UDP, addr, read},
};
use std::net::IpAddr;
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropReason, Endpoint, Frontend, FrontendKey, MemberKey, NodeAddr, PolicyKey, PolicyVerdict, Port,
    Remote, SlotKey, SourceRangeKey, Uplink, direction, forward, map, prog,
};

struct Net {
    pod: IpAddr,
    other: IpAddr,
    remote: IpAddr,
    vip: IpAddr,
    node: IpAddr,
    client: IpAddr,
}

fn nets() -> [Net; 2] {
    [
        Net {
            pod: addr("10.244.0.5"),
            other: addr("10.244.0.6"),
            remote: addr("10.244.1.7"),
            vip: addr("10.96.0.10"),
            node: addr("192.0.2.1"),
            client: addr("198.51.100.9"),
        },
        Net {
            pod: addr("fd00:244::5"),
            other: addr("fd00:244::6"),
            remote: addr("fd00:244:1::7"),
            vip: addr("fd00:96::10"),
            node: addr("2001:db8:2::1"),
            client: addr("2001:db8:1::9"),
        },
    ]
}

const POD: u32 = 7;
const OTHER: u32 = 8;
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 7, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];
const IDENTITY: u32 = 300;

/// Both pods are behind ifindex 1, the only one a program can be run with here.
fn endpoint(dp: &mut Dataplane, addr: IpAddr, id: u32, flags: u32) {
    let endpoint =
        Endpoint { id, ifindex: 1, pod_mac: POD_MAC, host_mac: HOST_MAC, flags, epoch: 1, netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN };
    dp.put(map::ENDPOINTS, Addr::from(addr), endpoint);
    let addr = Addr::from(addr);
    dp.put_prefix(map::IPCACHE, 128, addr, Remote { identity: IDENTITY + id, flags: 0 });
}

/// A node with two pods and a Service at port 80 of the VIP and at NodePort 30080.
fn node(net: &Net, flags: u32, backend: IpAddr) -> Dataplane {
    let mut dp = Dataplane::load();
    dp.configure(Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 });
    endpoint(&mut dp, net.pod, POD, flags);
    endpoint(&mut dp, net.other, OTHER, flags);
    dp.put(map::NODE_ADDRS, Addr::from(net.node), NodeAddr { flags: NodeAddr::NODEPORT });
    let own = Addr::from(net.node);
    dp.put(map::UPLINKS, 1u32, Uplink { v4: own, v6: own, mtu: 1500 });
    let frontend = |flags| Frontend { service: 1, internal: 1, external: 1, flags, affinity_timeout: 0 };
    for proto in [TCP, UDP] {
        let vip = FrontendKey::new(net.vip.into(), Port::new(80), proto);
        dp.put(map::FRONTENDS, vip, frontend(0));
        let node_port = FrontendKey::node_port(own.is_v4(), Port::new(30080), proto);
        dp.put(map::FRONTENDS, node_port, frontend(Frontend::EXTERNAL));
    }
    dp.put(map::BACKENDS, 1u32, Backend::new(backend.into(), Port::new(8080), Backend::LOCAL));
    dp.put(map::BACKEND_SLOTS, SlotKey { set: 1, slot: 0 }, 1u32);
    dp.put(map::SET_MEMBERS, MemberKey { set: 1, backend: 1 }, 0u32);
    dp.put(map::BACKEND_SETS, 1u32, BackendSet { count: 1, flags: 0 });
    dp
}

fn run(dp: &Dataplane, program: &str, packet: &[u8], verdict: i32) -> Read {
    let out = dp.run(program, packet);
    assert_eq!(out.verdict, verdict, "{program}");
    if verdict == REDIRECT {
        assert_eq!(out.bytes[..12], [POD_MAC, HOST_MAC].concat());
        assert_eq!(out.bytes[12..14], packet[12..14]);
    }
    read(&out.bytes)
}

fn make(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Vec<u8> {
    if proto == TCP { packet::tcp(src, dst, flags) } else { packet::udp(src, dst) }
}

fn dropped(dp: &Dataplane, program: &str, packet: &[u8], reason: DropReason) {
    let before = dp.drops(reason);
    assert_eq!(dp.run(program, packet).verdict, SHOT);
    assert_eq!(dp.drops(reason), before + 1, "{reason:?}");
}

#[test]
fn a_packet_to_a_service_goes_to_the_backend_and_is_answered_by_the_service() {
    for net in nets() {
        let dp = node(&net, 0, net.remote);
        for (vip, port) in [(net.vip, 80), (net.node, 30080)] {
            for proto in [TCP, UDP] {
                let (pod, asked, backend) = ((net.pod, 1000 + port), (vip, port), (net.remote, 8080));
                let request = make(proto, pod, asked, SYN);
                assert_eq!(run(&dp, prog::FROM_POD, &request, UNSPEC).tuple(), (pod, backend));
                let answer = make(proto, backend, pod, SYN | ACK);
                assert_eq!(run(&dp, prog::TO_POD, &answer, UNSPEC).tuple(), (asked, pod));
                assert_eq!(run(&dp, prog::FROM_POD, &request, UNSPEC).tuple(), (pod, backend));
                // An error about the request tells the pod of the address it knows.
                let sent = make(proto, pod, backend, ACK);
                let error = packet::too_big(net.client, net.pod, &sent[14..]);
                let told = run(&dp, prog::TO_POD, &error, UNSPEC);
                assert_eq!(packet::read_ip(&told.l4[8..]).tuple(), (pod, asked));
            }
        }
    }
}

#[test]
fn answers_from_another_node_are_of_the_flow_at_the_pods_device() {
    for net in nets() {
        for flags in [0, Endpoint::DIRECT, Endpoint::DIRECT | Endpoint::ISOLATE_INGRESS] {
            let dp = node(&net, flags, net.remote);
            for proto in [TCP, UDP] {
                let (pod, asked, backend) = ((net.pod, 1000), (net.vip, 80), (net.remote, 8080));
                let exchange = |there: u8, back: u8| {
                    assert_eq!(run(&dp, prog::FROM_POD, &make(proto, pod, asked, there), UNSPEC).tuple(), (pod, backend));
                    let answer = make(proto, backend, pod, back);
                    if flags & Endpoint::DIRECT == 0 {
                        assert_eq!(run(&dp, prog::FROM_UPLINK, &answer, UNSPEC).tuple(), (backend, pod));
                        assert_eq!(run(&dp, prog::TO_POD, &answer, UNSPEC).tuple(), (asked, pod));
                    } else {
                        assert_eq!(run(&dp, prog::FROM_UPLINK, &answer, REDIRECT).tuple(), (asked, pod));
                    }
                };
                exchange(SYN, SYN | ACK);
                exchange(ACK, ACK);
                // A router on the way to the backend cannot pass the request on.
                let sent = make(proto, pod, backend, ACK);
                let error = packet::too_big(net.client, net.pod, &sent[14..]);
                if flags & Endpoint::DIRECT != 0 {
                    let told = run(&dp, prog::FROM_UPLINK, &error, REDIRECT);
                    assert_eq!(packet::read_ip(&told.l4[8..]).tuple(), (pod, asked));
                }
                exchange(FIN | ACK, FIN | ACK);
            }
        }
    }
}

#[test]
fn policy_looks_at_the_backend_not_at_the_service() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::ISOLATE_EGRESS, net.other);
        let request = packet::tcp((net.pod, 1000), (net.vip, 80), SYN);
        dropped(&dp, prog::FROM_POD, &request, DropReason::PolicyEgress);
        let key = PolicyKey::new(POD, direction::EGRESS, IDENTITY + OTHER, TCP, Port::new(8080));
        let allow = PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 };
        dp.put_prefix(map::POLICY, PolicyKey::EXACT, key, allow);
        let out = run(&dp, prog::FROM_POD, &request, UNSPEC);
        assert_eq!(out.tuple(), ((net.pod, 1000), (net.other, 8080)));
    }
}

#[test]
fn source_ranges_hold_for_pods() {
    for net in nets() {
        let mut dp = node(&net, 0, net.remote);
        let frontend =
            Frontend { service: 1, internal: 1, external: 1, flags: Frontend::EXTERNAL | Frontend::SOURCE_RANGES, affinity_timeout: 0 };
        dp.put(map::FRONTENDS, FrontendKey::new(net.vip.into(), Port::new(443), TCP), frontend);
        let request = packet::tcp((net.pod, 1000), (net.vip, 443), SYN);
        dropped(&dp, prog::FROM_POD, &request, DropReason::SourceRange);
        let pod = Addr::from(net.pod);
        dp.put_prefix(map::SOURCE_RANGES, SourceRangeKey::prefix_len(pod, 24), SourceRangeKey { service: 1, addr: pod }, 1u32);
        assert_eq!(run(&dp, prog::FROM_POD, &request, UNSPEC).tuple(), ((net.pod, 1000), (net.remote, 8080)));
    }
}

#[test]
fn pods_of_one_node_reach_each_other_directly_under_both_policies() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::DIRECT, net.other);
        let request = packet::tcp((net.pod, 1000), (net.other, 8080), SYN);
        assert_eq!(run(&dp, prog::FROM_POD, &request, REDIRECT).tuple(), ((net.pod, 1000), (net.other, 8080)));
        let answer = packet::tcp((net.other, 8080), (net.pod, 1000), SYN | ACK);
        run(&dp, prog::FROM_POD, &answer, REDIRECT);
        assert_eq!(dp.counter(map::FORWARDS, forward::FROM_POD).packets, 2);
        assert_eq!(dp.counter(map::FORWARDS, forward::TO_POD).packets, 2);
        // Elsewhere the stack decides.
        run(&dp, prog::FROM_POD, &packet::tcp((net.pod, 1000), (net.remote, 8080), SYN), UNSPEC);
        // The receiver's policy holds without its own program.
        endpoint(&mut dp, net.other, OTHER, Endpoint::DIRECT | Endpoint::ISOLATE_INGRESS);
        let request = packet::tcp((net.pod, 1001), (net.other, 8080), SYN);
        dropped(&dp, prog::FROM_POD, &request, DropReason::PolicyIngress);
        let key = PolicyKey::new(OTHER, direction::INGRESS, IDENTITY + POD, TCP, Port::new(8080));
        let allow = PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 0 };
        dp.put_prefix(map::POLICY, PolicyKey::EXACT, key, allow);
        run(&dp, prog::FROM_POD, &request, REDIRECT);
    }
}

#[test]
fn a_service_between_pods_of_one_node_is_translated_both_ways_directly() {
    for net in nets() {
        let dp = node(&net, Endpoint::DIRECT, net.other);
        for proto in [TCP, UDP] {
            let (pod, vip, backend) = ((net.pod, 1000), (net.vip, 80), (net.other, 8080));
            let request = make(proto, pod, vip, SYN);
            assert_eq!(run(&dp, prog::FROM_POD, &request, REDIRECT).tuple(), (pod, backend));
            let answer = make(proto, backend, pod, SYN | ACK);
            assert_eq!(run(&dp, prog::FROM_POD, &answer, REDIRECT).tuple(), (vip, pod));
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_its_policies() {
    for net in nets() {
        let isolated = Endpoint::ISOLATE_EGRESS | Endpoint::ISOLATE_INGRESS;
        let mut dp = node(&net, Endpoint::DIRECT | isolated, net.pod);
        for proto in [TCP, UDP] {
            let (pod, vip) = ((net.pod, 1000), (net.vip, 80));
            let (as_client, as_server) = ((net.vip, 1000), (net.pod, 8080));
            let exchange = |dp: &Dataplane, flags: u8, back: u8| {
                let request = make(proto, pod, vip, flags);
                assert_eq!(run(dp, prog::FROM_POD, &request, REDIRECT).tuple(), (as_client, as_server));
                let answer = make(proto, as_server, as_client, back);
                assert_eq!(run(dp, prog::FROM_POD, &answer, REDIRECT).tuple(), (vip, pod));
            };
            exchange(&dp, SYN, SYN | ACK);
            exchange(&dp, ACK, ACK);
            // A change of policy does not concern it.
            let entry = Endpoint {
                id: POD,
                ifindex: 1,
                pod_mac: POD_MAC,
                host_mac: HOST_MAC,
                flags: Endpoint::DIRECT | isolated,
                epoch: 2,
                netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN,
            };
            dp.put(map::ENDPOINTS, Addr::from(net.pod), entry);
            exchange(&dp, ACK, ACK);
            exchange(&dp, FIN | ACK, FIN | ACK);
            exchange(&dp, SYN, SYN | ACK);
        }
    }
}

#[test]
fn from_outside_to_a_pod_here_goes_directly_under_its_policy() {
    for net in nets() {
        let mut dp = node(&net, Endpoint::DIRECT, net.pod);
        let (client, asked, backend) = ((net.client, 5000), (net.node, 30080), (net.pod, 8080));
        let request = packet::tcp(client, asked, SYN);
        assert_eq!(run(&dp, prog::FROM_UPLINK, &request, REDIRECT).tuple(), (client, backend));
        let answer = packet::tcp(backend, client, SYN | ACK);
        run(&dp, prog::FROM_POD, &answer, UNSPEC);
        assert_eq!(run(&dp, prog::TO_UPLINK, &answer, UNSPEC).tuple(), (asked, client));
        run(&dp, prog::FROM_UPLINK, &packet::udp(client, backend), REDIRECT);
        endpoint(&mut dp, net.pod, POD, Endpoint::DIRECT | Endpoint::ISOLATE_INGRESS);
        dropped(&dp, prog::FROM_UPLINK, &packet::tcp((net.client, 5001), asked, SYN), DropReason::PolicyIngress);
    }
}
