//! Which backend a packet gets from the rings of a set.

mod fake;

use fake::Fake;
use proptest::prelude::*;
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::{
    maglev::{self, Use},
    parse::{ACK, Headers, Kind, SYN},
    service,
};

const SET: u32 = 3;
const NOW: u64 = 1000;

fn ring(fake: &Fake, number: u32, places: &[u32]) -> Ring {
    fake.places.borrow_mut().insert(number, places.to_vec());
    Ring {
        number,
        size: places.len() as u32,
    }
}

fn serving(fake: &Fake, ids: &[u32]) {
    for id in ids {
        let backend = Backend::new(Addr::v4([10, 0, 0, *id as u8]), Port::new(80), 0);
        fake.backends.borrow_mut().insert(*id, backend);
    }
}

#[test]
fn only_what_a_use_asks_for_counts() {
    let fake = Fake::default();
    fake.time.set(NOW);
    serving(&fake, &[1, 2]);
    assert_eq!(maglev::backend(&fake, SET, 0, Use::Current), 0, "no ring");
    let rings = Rings {
        current: ring(&fake, 8, &[1, 2, 2]),
        previous: ring(&fake, 7, &[1, 1, 9]),
        until: NOW + 1,
    };
    fake.rings.borrow_mut().insert(SET, rings);
    let at = |place, uses| maglev::backend(&fake, SET, place, uses);
    assert_eq!([0, 1, 2, 3].map(|p| at(p, Use::None)), [0; 4]);
    assert_eq!([0, 1, 2, 3].map(|p| at(p, Use::Current)), [1, 2, 2, 1]);
    // Backend 9 has stopped serving: what was its is the new one's.
    assert_eq!([0, 1, 2].map(|p| at(p, Use::BothGenerations)), [1, 1, 2]);
    assert_eq!([0, 1, 2].map(|p| at(p, Use::BothForAWhile)), [1, 1, 2]);
    fake.time.set(NOW + 1);
    assert_eq!([0, 1, 2].map(|p| at(p, Use::BothForAWhile)), [1, 2, 2]);
    assert_eq!([0, 1, 2].map(|p| at(p, Use::BothGenerations)), [1, 1, 2]);
}

#[test]
fn a_ring_of_one_place_is_its_backend() {
    let fake = Fake::default();
    serving(&fake, &[5, 6]);
    let previous = Ring { number: 6, size: 1 };
    let current = Ring { number: 5, size: 1 };
    fake.rings.borrow_mut().insert(
        SET,
        Rings {
            current,
            previous,
            until: 0,
        },
    );
    assert_eq!(maglev::backend(&fake, SET, 77, Use::Current), 5);
    assert_eq!(maglev::backend(&fake, SET, 77, Use::BothGenerations), 6);
    assert_eq!(maglev::backend(&fake, SET, 77, Use::BothForAWhile), 5);
}

fn packet(proto: u8, sport: u16, tcp_flags: u8) -> Headers {
    Headers {
        tuple: Tuple::new(
            Addr::v4([198, 51, 100, 1]),
            Port::new(sport),
            Addr::v4([192, 0, 2, 1]),
            Port::new(80),
            proto,
        ),
        kind: if proto == proto::TCP {
            Kind::Tcp
        } else {
            Kind::Ports
        },
        tcp_flags,
        ..Headers::EMPTY
    }
}

fn frontend(flags: u32) -> Frontend {
    Frontend {
        service: 1,
        internal: SET,
        external: SET,
        flags,
        affinity_timeout: 60,
    }
}

proptest! {
    /// A node that has never seen a flow sends its packets where the node before did, as long as that backend
    /// serves, whatever has become of the set meanwhile; a new connection goes by the new ring.
    #[test]
    fn an_unknown_flow_goes_where_it_went_before_the_change(
        old in proptest::collection::vec(1u32..6, 13),
        new in proptest::collection::vec(1u32..6, 13),
        gone in 1u32..6,
        sport in any::<u16>(),
    ) {
        let fake = Fake::default();
        fake.time.set(NOW);
        let alive: Vec<u32> = (1..6).filter(|id| *id != gone || new.contains(id)).collect();
        serving(&fake, &alive);
        fake.sets.borrow_mut().insert(SET, BackendSet { count: 5, flags: 0 });
        let rings = Rings { current: ring(&fake, 2, &new), previous: ring(&fake, 1, &old), until: NOW + 1 };
        fake.rings.borrow_mut().insert(SET, rings);
        for (proto, flags, opens) in [(proto::TCP, ACK, false), (proto::TCP, SYN, true), (proto::UDP, 0, false)] {
            let headers = packet(proto, sport, flags);
            let place = service::spread(&headers.tuple) as usize % 13;
            let chosen = service::choose_outside(&fake, &frontend(Frontend::RING), SET, &headers).unwrap();
            let survives = alive.contains(&old[place]);
            prop_assert_eq!(chosen.id, if survives && !opens { old[place] } else { new[place] });
        }
    }
}

#[test]
fn affinity_goes_before_the_ring_and_the_slots_stand_in_for_it() {
    let fake = Fake::default();
    serving(&fake, &[1, 2]);
    fake.sets
        .borrow_mut()
        .insert(SET, BackendSet { count: 1, flags: 0 });
    fake.slots
        .borrow_mut()
        .insert(SlotKey { set: SET, slot: 0 }, 2);
    let headers = packet(proto::TCP, 5, SYN);
    let choose = |flags| {
        service::choose_outside(&fake, &frontend(flags), SET, &headers)
            .unwrap()
            .id
    };
    assert_eq!(choose(Frontend::RING), 2, "there is no ring yet");
    let current = ring(&fake, 2, &[1, 1]);
    fake.rings.borrow_mut().insert(
        SET,
        Rings {
            current,
            ..Rings::default()
        },
    );
    assert_eq!(choose(Frontend::RING), 1);
    assert_eq!(choose(0), 2, "another algorithm");
    fake.backends.borrow_mut().remove(&1);
    assert_eq!(
        choose(Frontend::RING),
        2,
        "a ring that lags behind costs no connection"
    );
    fake.members.borrow_mut().insert(
        MemberKey {
            set: SET,
            backend: 2,
        },
        0,
    );
    assert_eq!(choose(Frontend::RING | Frontend::AFFINITY), 2);
    serving(&fake, &[1]);
    assert_eq!(
        choose(Frontend::RING | Frontend::AFFINITY),
        2,
        "the client stays"
    );
    let client = AffinityKey::address(headers.tuple.src, SET);
    let inside = |flags| {
        service::choose(&fake, &frontend(flags), SET, client, 9)
            .unwrap()
            .id
    };
    assert_eq!(
        (inside(Frontend::RING), inside(Frontend::RING_INSIDE)),
        (2, 1)
    );
}
