//! Direct server return as values: what is put into a packet is what comes out of it, whatever it is.

mod fake;

use fake::{Bytes, Fake, routes::NextHop};
use proptest::prelude::*;
use std::cell::RefCell;
use xebec_ebpf_abi::{direct::range, *};
use xebec_ebpf_logic::{
    conntrack, direct,
    parse::{ACK, FIN, Headers, RST, SYN},
    pod::Verdict,
    uplink,
};

const UPLINK: u32 = 3;
/// By which everything leaves.
const OUT: u32 = 7;
const SET: u32 = 5;
const BACKEND: u32 = 9;
const TARGET: u16 = 8080;

/// Addresses of a client, of a node, of a pod of another one.
fn ends(v4: bool) -> [Addr; 3] {
    if v4 {
        [[198, 51, 100, 9], [192, 0, 2, 1], [10, 244, 1, 7]].map(Addr::v4)
    } else {
        [1, 2, 3].map(|n| Addr::v6([0x20, 1, 0xd, 0xb8, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]))
    }
}

fn prefix(addr: Addr) -> (Addr, u32) {
    (addr, 128)
}

fn node(v4: bool) -> Fake {
    let ([_, own, pod], fake) = (ends(v4), Fake::default());
    fake.routes.borrow_mut().way = Some(NextHop {
        device: OUT,
        mtu: 1500,
        link: None,
    });
    fake.config.set(Some(Config {
        node_netns_cookie: 1,
        nat_port_min: 61000,
        nat_port_max: 65535,
        flags: Config::DIRECT,
    }));
    fake.uplinks.borrow_mut().insert(
        UPLINK,
        Uplink {
            v4: own,
            v6: own,
            mtu: 1500,
        },
    );
    for (addr, whose) in [(own, range::NODE), (pod, range::PODS)] {
        let (addr, bits) = prefix(addr);
        fake.no_masquerade.borrow_mut().push((addr, bits, whose));
    }
    for proto in [proto::TCP, proto::UDP] {
        fake.frontends.borrow_mut().insert(
            FrontendKey::new(own, Port::new(30080), proto),
            Frontend {
                service: 1,
                internal: SET,
                external: SET,
                flags: Frontend::EXTERNAL | Frontend::DIRECT,
                affinity_timeout: 0,
            },
        );
    }
    let slot = SlotKey { set: SET, slot: 0 };
    fake.slots.borrow_mut().insert(slot, BACKEND);
    let member = MemberKey {
        set: SET,
        backend: BACKEND,
    };
    fake.members.borrow_mut().insert(member, 0);
    fake.sets
        .borrow_mut()
        .insert(SET, BackendSet { count: 1, flags: 0 });
    let backend = Backend::new(pod, Port::new(TARGET), 0);
    fake.backends.borrow_mut().insert(BACKEND, backend);
    fake
}

/// The pod's node.
fn other(v4: bool) -> Fake {
    let ([_, own, pod], fake) = (ends(v4), Fake::default());
    fake.config.set(node(v4).config.get());
    fake.no_masquerade
        .borrow_mut()
        .push((own, 128, range::NODE));
    let endpoint = Endpoint {
        id: 1,
        ifindex: 8,
        pod_mac: [2; 6],
        host_mac: [4; 6],
        flags: 0,
        epoch: 1,
        netns: NetnsCookie::UNKNOWN,
    };
    fake.endpoints.borrow_mut().insert(pod, endpoint);
    fake
}

/// A frame of the client for the node; sums are of no interest here.
fn frame(v4: bool, proto: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let [client, own, _] = ends(v4);
    let mut transport = [45000u16.to_be_bytes(), 30080u16.to_be_bytes()].concat();
    if proto == proto::TCP {
        transport.extend([
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            5 << 4,
            flags,
            0xff,
            0xff,
            1,
            1,
            0,
            0,
        ]);
    } else {
        transport.extend([0, 8 + data.len() as u8, 1, 1]);
    }
    transport.extend(data);
    let mut frame = vec![2; 12];
    if v4 {
        frame.extend([8, 0, 0x45, 0, 0, 20 + transport.len() as u8, 0, 0, 0x40, 0]);
        frame.extend([64, proto, 0, 0]);
        frame.extend(&client.octets()[12..]);
        frame.extend(&own.octets()[12..]);
    } else {
        frame.extend([
            0x86,
            0xdd,
            0x60,
            0,
            0,
            0,
            0,
            transport.len() as u8,
            proto,
            64,
        ]);
        frame.extend(client.octets());
        frame.extend(own.octets());
    }
    frame.extend(transport);
    frame
}

fn ethertype(v4: bool) -> u16 {
    if v4 { 0x0800 } else { 0x86dd }
}

fn sent(fake: &Fake, v4: bool, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let bytes = RefCell::new(frame.to_vec());
    let headers = &mut Headers::EMPTY.clone();
    let verdict = uplink::arrives(fake, fake, Bytes(&bytes), headers, ethertype(v4), UPLINK);
    (verdict, bytes.into_inner())
}

fn taken(fake: &Fake, v4: bool, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let bytes = RefCell::new(frame.to_vec());
    let headers = &mut Headers::EMPTY.clone();
    let verdict = direct::arrives(fake, fake, Bytes(&bytes), headers, ethertype(v4));
    (verdict, bytes.into_inner())
}

proptest! {
    #[test]
    fn what_is_put_in_comes_out_one_hop_on(
        v4 in any::<bool>(), tcp in any::<bool>(), data in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let (node, other) = (node(v4), other(v4));
        let proto = if tcp { proto::TCP } else { proto::UDP };
        let frame = frame(v4, proto, SYN, &data);
        let (verdict, wire) = sent(&node, v4, &frame);
        prop_assert_eq!(verdict, Verdict::Neighbor(OUT));
        prop_assert_eq!(wire.len(), frame.len() + if v4 { 20 } else { 40 });
        let (verdict, mut out) = taken(&other, v4, &wire);
        prop_assert_eq!(verdict, Verdict::Pass);
        let hops = if v4 { 22 } else { 21 };
        prop_assert_eq!(out[hops], frame[hops] - 1);
        out[hops] += 1;
        if v4 {
            out[24..26].copy_from_slice(&frame[24..26]);
        }
        prop_assert_eq!(out, frame);
        let [client, own, pod] = ends(v4);
        let asked = Tuple::new(client, Port::new(45000), own, Port::new(30080), proto);
        let entry = other.nat.borrow()[&asked];
        prop_assert_eq!(entry.to, Tuple::new(client, Port::new(45000), pod, Port::new(TARGET), proto));
        prop_assert_eq!(other.nat.borrow()[&entry.to.reversed()].to, asked.reversed());
    }

    #[test]
    fn nothing_that_comes_inside_upsets_it(v4 in any::<bool>(), inside in proptest::collection::vec(any::<u8>(), 0..120)) {
        let (_, wire) = sent(&node(v4), v4, &frame(v4, proto::UDP, 0, &[7; 100]));
        let header = 14 + if v4 { 20 } else { 40 };
        let mut wire = wire[..header].to_vec();
        wire.extend(&inside);
        if v4 {
            wire[16..18].copy_from_slice(&(20 + inside.len() as u16).to_be_bytes());
        } else {
            wire[18..20].copy_from_slice(&(inside.len() as u16).to_be_bytes());
        }
        let other = other(v4);
        let (verdict, out) = taken(&other, v4, &wire);
        // By chance it is a packet.
        prop_assert!(matches!(verdict, Verdict::Drop(_)) || out[14..] == inside);
        let dropped: u64 = other.drops.borrow().values().sum();
        prop_assert_eq!(dropped, u64::from(matches!(verdict, Verdict::Drop(_))));
    }
}

#[test]
fn a_flow_of_which_only_requests_are_seen_lives_as_long_as_one_of_both() {
    for v4 in [true, false] {
        let (node, [client, own, _]) = (node(v4), ends(v4));
        let asked = Tuple::new(client, Port::new(45000), own, Port::new(30080), proto::TCP);
        let lives = |flags: u8| {
            let (verdict, _) = sent(&node, v4, &frame(v4, proto::TCP, flags, &[]));
            assert!(matches!(verdict, Verdict::Neighbor(_)));
            assert_eq!(node.nat.borrow().len(), 1, "no answer's entry");
            node.nat.borrow()[&asked].expires - node.time.get()
        };
        assert_eq!(lives(SYN), conntrack::TIMEOUT_NEW);
        assert_eq!(lives(ACK), conntrack::TIMEOUT_TCP);
        node.time.set(conntrack::TIMEOUT_TCP / 2);
        assert_eq!(lives(ACK), conntrack::TIMEOUT_TCP, "each packet renews it");
        assert_eq!(lives(FIN | ACK), conntrack::TIMEOUT_CLOSING);
        assert_eq!(lives(SYN), conntrack::TIMEOUT_NEW, "the next connection");
        assert_eq!(lives(RST), conntrack::TIMEOUT_CLOSING);
    }
}

#[test]
fn of_two_processors_the_first_to_choose_is_followed() {
    let (node, [client, own, pod]) = (node(true), ends(true));
    let asked = Tuple::new(client, Port::new(45000), own, Port::new(30080), proto::TCP);
    let mut theirs = asked;
    (theirs.dst, theirs.dport) = (pod, Port::new(9090));
    let entry = Nat::new(theirs, Nat::DIRECT, 77, 0, u64::MAX);
    // Between the lookup and the write.
    *node.meanwhile.borrow_mut() = Some(Box::new(move |fake| {
        fake.nat.borrow_mut().insert(asked, entry);
    }));
    let (_, wire) = sent(&node, true, &frame(true, proto::TCP, SYN, &[]));
    assert_eq!(wire[18..20], 9090u16.to_be_bytes());
}
