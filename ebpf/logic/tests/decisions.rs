//! Decisions beside the plainest way to say what they should be.

mod fake;

use fake::Fake;
use proptest::prelude::*;
use std::collections::HashSet;
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::{
    conntrack,
    nat::{self, Owner},
    policy, service,
    socket::{self, Action, Socket},
};

const POD: u32 = 7;

/// A rule as a person would write it.
#[derive(Clone, Copy, Debug)]
struct Rule {
    direction: u8,
    /// `None`: anyone.
    peer: Option<u32>,
    /// `None`: any protocol; with a range of ports or all of them.
    ports: Option<(u8, Option<(u16, u16)>)>,
}

impl Rule {
    fn matches(&self, direction: u8, peer: u32, proto: u8, port: u16) -> bool {
        self.direction == direction
            && self.peer.is_none_or(|p| p == peer)
            && self.ports.is_none_or(|(p, range)| {
                p == proto && range.is_none_or(|(a, b)| (a..=b).contains(&port))
            })
    }

    fn write(&self, fake: &Fake) {
        let peer = self.peer.unwrap_or(identity::ANY);
        let key = |proto, port| PolicyKey::new(POD, self.direction, peer, proto, port);
        let allow = PolicyVerdict {
            verdict: PolicyVerdict::ALLOW,
            rule: 0,
        };
        let none = Port::new(0);
        let mut table = fake.policies.borrow_mut();
        match self.ports {
            None => table.push((key(0, none), PolicyKey::ANY_PROTO, allow)),
            Some((proto, None)) => table.push((key(proto, none), PolicyKey::ANY_PORT, allow)),
            Some((proto, Some((first, last)))) => {
                table.extend(
                    port_prefixes(first, last).map(|(port, bits)| (key(proto, port), bits, allow)),
                );
            }
        }
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports = prop_oneof![
        Just(None),
        prop_oneof![Just(6u8), Just(17)].prop_map(|p| Some((p, None))),
        (prop_oneof![Just(6u8), Just(17)], 0u16..300, 0u16..300)
            .prop_map(|(p, a, b)| Some((p, Some((a.min(b), a.max(b)))))),
    ];
    (0u8..2, proptest::option::of(300u32..304), ports).prop_map(|(direction, peer, ports)| Rule {
        direction,
        peer,
        ports,
    })
}

fn peer_addr(n: u32) -> Addr {
    Addr::v4([10, 0, 0, n as u8])
}

fn with_peers() -> Fake {
    let fake = Fake::default();
    for peer in 300..304 {
        fake.remotes.borrow_mut().push((
            peer_addr(peer - 300),
            128,
            Remote {
                identity: peer,
                flags: 0,
            },
        ));
    }
    fake
}

proptest! {
    #[test]
    fn policy_allows_what_some_rule_allows(
        rules in proptest::collection::vec(rule(), 0..8),
        asked in proptest::collection::vec((0u8..2, 300u32..304, prop_oneof![Just(6u8), Just(17)], 0u16..310), 1..60),
    ) {
        let fake = with_peers();
        rules.iter().for_each(|r| r.write(&fake));
        let flags = Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS;
        let endpoint = Endpoint { id: POD, ifindex: 1, pod_mac: [0; 6], host_mac: [0; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
        for (direction, peer, proto, port) in asked {
            let allowed = policy::asks(&fake, &endpoint, direction, &peer_addr(peer - 300), proto, Port::new(port)).allowed;
            let expected = rules.iter().any(|r| r.matches(direction, peer, proto, port));
            prop_assert_eq!(allowed, expected, "{} {} {} {}", direction, peer, proto, port);
        }
    }

    #[test]
    fn the_most_specific_address_decides_who_a_peer_is(host in any::<u8>(), bits in 0u8..=32) {
        let fake = Fake::default();
        let net = Addr::v4([10, 1, 2, 3]);
        fake.remotes.borrow_mut().push((net, net.prefix_len(bits), Remote { identity: 300, flags: 0 }));
        let found = xebec_ebpf_logic::Env::remote(&fake, &Addr::v4([10, 1, 2, host]));
        let expected = bits <= 24 || (host ^ 3) >> (32 - bits) == 0;
        prop_assert_eq!(found.is_some(), expected);
    }

    #[test]
    fn ports_of_translated_sources_never_meet(count in 1usize..200) {
        let fake = Fake::default();
        fake.config.set(Some(Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61999, flags: 0 }));
        let (server, node) = (Addr::v4([192, 0, 2, 9]), Addr::v4([192, 0, 2, 1]));
        let mut seen = HashSet::new();
        for n in 0..count {
            let from = Tuple::new(Addr::v4([10, 0, 0, 1]), Port::new(1000 + n as u16), server, Port::new(80), proto::TCP);
            let mut to = from;
            to.src = node;
            let owner = Owner { flags: Nat::MASQUERADE, backend: 0, set: 0 };
            prop_assert!(nat::source(&fake, &from, &mut to, owner, 1).is_ok());
            prop_assert!((61000..=61999).contains(&to.sport.get()));
            prop_assert!(seen.insert(to.sport));
            prop_assert_eq!(fake.nat.borrow()[&to.reversed()].to, from.reversed());
        }
    }
}

fn two_backends(fake: &Fake) -> Frontend {
    for (slot, id) in [(0, 10), (1, 11)] {
        fake.slots.borrow_mut().insert(SlotKey { set: 1, slot }, id);
        fake.backends.borrow_mut().insert(
            id,
            Backend::new(Addr::v4([10, 0, 0, id as u8]), Port::new(80), 0),
        );
        fake.members.borrow_mut().insert(
            MemberKey {
                set: 1,
                backend: id,
            },
            slot,
        );
    }
    fake.sets
        .borrow_mut()
        .insert(1, BackendSet { count: 2, flags: 0 });
    Frontend {
        service: 1,
        internal: 1,
        external: 1,
        flags: 0,
        affinity_timeout: 10,
    }
}

#[test]
fn a_backend_that_goes_while_it_is_chosen_is_not_missed() {
    for dice in [0, u32::MAX / 2, u32::MAX] {
        let fake = Fake::default();
        let frontend = two_backends(&fake);
        let mut done = false;
        // The first reader of the set sees two slots; then the first backend is removed as the order of
        // writes says, before the slot is read.
        *fake.meanwhile.borrow_mut() = Some(Box::new(move |fake: &Fake| {
            if !std::mem::replace(&mut done, true) {
                fake.slots
                    .borrow_mut()
                    .insert(SlotKey { set: 1, slot: 0 }, 11);
                fake.sets
                    .borrow_mut()
                    .insert(1, BackendSet { count: 1, flags: 0 });
                fake.slots.borrow_mut().remove(&SlotKey { set: 1, slot: 1 });
                fake.backends.borrow_mut().remove(&10);
            }
        }));
        let client = AffinityKey::netns(1, 1);
        let chosen = service::choose(&fake, &frontend, 1, client, dice).expect("one is left");
        assert_eq!(chosen.id, 11);
    }
}

#[test]
fn affinity_ends_with_its_time_and_its_backend() {
    let fake = Fake::default();
    let frontend = Frontend {
        flags: Frontend::AFFINITY,
        ..two_backends(&fake)
    };
    let client = AffinityKey::netns(1, 1);
    let choose = |dice| {
        service::choose(&fake, &frontend, 1, client, dice)
            .expect("a backend")
            .id
    };
    assert_eq!(choose(0), 10);
    assert_eq!(choose(u32::MAX), 10, "kept");
    fake.time.set(9_999_999_999);
    assert_eq!(choose(u32::MAX), 10, "still");
    fake.time.set(19_999_999_998);
    assert_eq!(choose(u32::MAX), 10, "each use renews it");
    fake.time.set(29_999_999_998);
    assert_eq!(choose(u32::MAX), 11, "ten seconds unused");
    fake.members.borrow_mut().remove(&MemberKey {
        set: 1,
        backend: 11,
    });
    assert_eq!(choose(0), 10, "its backend has left");
}

#[test]
fn a_port_is_free_again_when_its_flow_has_expired() {
    let fake = Fake::default();
    fake.config.set(Some(Config {
        node_netns_cookie: 1,
        nat_port_min: 61000,
        nat_port_max: 61000,
        flags: 0,
    }));
    let source = |port, now| {
        let from = Tuple::new(
            Addr::v4([10, 0, 0, 1]),
            Port::new(port),
            Addr::v4([192, 0, 2, 9]),
            Port::new(80),
            proto::UDP,
        );
        let mut to = from;
        to.src = Addr::v4([192, 0, 2, 1]);
        nat::source(
            &fake,
            &from,
            &mut to,
            Owner {
                flags: 0,
                backend: 0,
                set: 0,
            },
            now,
        )
    };
    assert_eq!(source(1, 1), Ok(()));
    assert_eq!(source(2, 1), Err(DropReason::NatPortExhausted));
    assert_eq!(source(1, 1), Ok(()), "the same flow again");
    assert_eq!(source(2, 1 + conntrack::TIMEOUT_NEW), Ok(()));
}

#[test]
fn without_a_configuration_nothing_is_masqueraded() {
    let fake = Fake::default();
    let from = Tuple::new(
        Addr::v4([10, 0, 0, 1]),
        Port::new(1),
        Addr::v4([192, 0, 2, 9]),
        Port::new(80),
        proto::UDP,
    );
    let mut to = from;
    let refused = nat::source(
        &fake,
        &from,
        &mut to,
        Owner {
            flags: 0,
            backend: 0,
            set: 0,
        },
        1,
    );
    assert_eq!(refused, Err(DropReason::NotConfigured));
    assert!(fake.nat.borrow().is_empty());
}

#[test]
fn a_socket_forgets_a_service_when_it_connects_elsewhere() {
    let fake = Fake::default();
    let frontend = two_backends(&fake);
    let (vip, port) = (Addr::v4([10, 96, 0, 1]), Port::new(53));
    fake.frontends
        .borrow_mut()
        .insert(FrontendKey::new(vip, port, proto::UDP), frontend);
    let socket = Socket {
        cookie: 5,
        netns: 9,
        proto: proto::UDP,
    };
    let Action::Rewrite(backend, target) = socket::connect(&fake, &socket, vip, port) else {
        panic!("not translated")
    };
    assert_eq!(
        socket::peer(&fake, &socket, backend, target),
        Action::Rewrite(vip, port)
    );
    let other = Socket {
        cookie: 6,
        ..socket
    };
    assert_eq!(
        socket::peer(&fake, &other, backend, target),
        Action::Pass,
        "another socket's"
    );
    assert_eq!(
        socket::connect(&fake, &socket, backend, target),
        Action::Pass
    );
    assert_eq!(socket::peer(&fake, &socket, backend, target), Action::Pass);
    let icmp = Socket {
        proto: proto::ICMP,
        ..socket
    };
    assert_eq!(socket::connect(&fake, &icmp, vip, port), Action::Pass);
}

#[test]
fn a_closed_socket_leaves_nothing() {
    let fake = Fake::default();
    let frontend = Frontend {
        flags: Frontend::LEAST_CONNECTIONS,
        ..two_backends(&fake)
    };
    let (vip, port) = (Addr::v4([10, 96, 0, 1]), Port::new(53));
    for proto in [proto::TCP, proto::UDP] {
        let key = FrontendKey::new(vip, port, proto);
        fake.frontends.borrow_mut().insert(key, frontend);
    }
    let left =
        || fake.socks.borrow().len() + fake.given.borrow().len() + fake.counted.borrow().len();
    let nowhere = (Addr::ANY_V4, Port::new(0));
    // What it does, and where it is connected to at its end.
    for (cookie, proto, connects, sends) in [
        (1, proto::TCP, true, false),
        (2, proto::UDP, true, false),
        (3, proto::UDP, false, true),
        (4, proto::UDP, true, true),
    ] {
        let socket = Socket {
            cookie,
            netns: 9,
            proto,
        };
        let mut peer = nowhere;
        if sends {
            socket::send(&fake, &socket, vip, port);
        }
        if connects {
            let Action::Rewrite(addr, port) = socket::connect(&fake, &socket, vip, port) else {
                panic!("not translated")
            };
            peer = (addr, port);
        }
        assert!(left() > 0, "socket {cookie}");
        socket::close(&fake, cookie + 10, proto, peer.0, peer.1);
        assert!(left() > 0, "another socket than {cookie}");
        socket::close(&fake, cookie, proto, peer.0, peer.1);
        assert_eq!(left(), 0, "socket {cookie}");
    }
}

#[test]
fn sockets_of_the_node_are_told_of_where_no_pods_device_sees_them() {
    const NODE: u64 = 1;
    let fake = Fake::default();
    let frontend = two_backends(&fake);
    fake.config.set(Some(Config {
        node_netns_cookie: NODE,
        nat_port_min: 1,
        nat_port_max: 2,
        flags: 0,
    }));
    let (vip, port) = (Addr::v4([10, 96, 0, 1]), Port::new(53));
    for proto in [proto::UDP, proto::TCP] {
        fake.frontends
            .borrow_mut()
            .insert(FrontendKey::new(vip, port, proto), frontend);
    }
    let socket = |cookie, netns, proto| Socket {
        cookie,
        netns,
        proto,
    };
    let told = || std::mem::take(&mut *fake.sent_away.borrow_mut());
    let of_node = socket(5, NODE, proto::UDP);
    let Action::Rewrite(backend, target) = socket::send(&fake, &of_node, vip, port) else {
        panic!("not translated")
    };
    let asked = SockFrontend::new(vip, port, frontend.service);
    assert_eq!(told(), [(asked, backend, target)]);
    socket::send(&fake, &of_node, vip, port);
    assert_eq!(told(), [], "the same flow's next datagram");
    socket::connect(&fake, &socket(6, 9, proto::TCP), vip, port);
    assert_eq!(told(), [], "a pod's device sees what the pod sends");
    socket::connect(&fake, &socket(7, NODE, proto::TCP), vip, port);
    assert_eq!(told().len(), 1);
    for backend in fake.backends.borrow().values() {
        let here = Endpoint {
            id: 1,
            ifindex: 1,
            pod_mac: [0; 6],
            host_mac: [0; 6],
            flags: 0,
            epoch: 1,
            netns: NetnsCookie::UNKNOWN,
        };
        fake.endpoints.borrow_mut().insert(backend.addr, here);
    }
    socket::connect(&fake, &socket(8, NODE, proto::TCP), vip, port);
    assert_eq!(told(), [], "the backend's device does");
}

proptest! {
    /// A socket that connects to a small set gets one of the backends with the fewest sockets.
    #[test]
    fn a_connection_goes_to_a_backend_with_the_fewest(counts in proptest::collection::vec(0u32..4, 1..=8), seed: u32) {
        let fake = Fake::default();
        fake.dice.set(seed);
        let (set, service) = (3, Addr::v4([10, 96, 0, 1]));
        let frontend = Frontend { service: 1, internal: set, external: set, flags: Frontend::LEAST_CONNECTIONS, affinity_timeout: 0 };
        fake.frontends.borrow_mut().insert(FrontendKey::new(service, Port::new(80), proto::TCP), frontend);
        fake.sets.borrow_mut().insert(set, BackendSet { count: counts.len() as u32, flags: 0 });
        let mut cookie = 1000;
        for (slot, count) in (0..).zip(&counts) {
            fake.slots.borrow_mut().insert(SlotKey { set, slot }, slot + 1);
            fake.backends.borrow_mut().insert(slot + 1, Backend::new(peer_addr(slot), Port::new(8080), 0));
            for _ in 0..*count {
                fake.counted.borrow_mut().insert(cookie, slot + 1);
                cookie += 1;
            }
        }
        let socket = Socket { cookie: 1, netns: 1, proto: proto::TCP };
        let Action::Rewrite(to, _) = socket::connect(&fake, &socket, service, Port::new(80)) else {
            return Err(TestCaseError::fail("it is not connected"));
        };
        let chosen = fake.counted.borrow()[&1];
        prop_assert_eq!(to, peer_addr(chosen - 1));
        prop_assert_eq!(counts[chosen as usize - 1], *counts.iter().min().unwrap());
        // A datagram without a connection has no end that would be seen, so it is not counted.
        fake.counted.borrow_mut().remove(&1);
        socket::send(&fake, &Socket { proto: proto::UDP, ..socket }, service, Port::new(80));
        prop_assert!(!fake.counted.borrow().contains_key(&1));
    }
}
