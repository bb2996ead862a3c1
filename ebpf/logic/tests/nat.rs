//! Translations: both entries of a flow say the same, nothing alive is lost, whoever else writes.

mod fake;

use fake::Fake;
use proptest::prelude::*;
use std::collections::HashMap;
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::{
    nat::{self, Owner},
    parse::{ACK, FIN, Headers, Kind, RST, SYN},
};

const SET: u32 = 5;
const SECOND: u64 = 1_000_000_000;

fn server(n: u8) -> Addr {
    Addr::v4([192, 0, 2, n])
}

fn client(n: u8) -> Tuple {
    Tuple::new(
        Addr::v4([10, 0, 0, n]),
        Port::new(4000),
        server(n % 3),
        Port::new(80),
        if n.is_multiple_of(2) {
            proto::TCP
        } else {
            proto::UDP
        },
    )
}

fn headers(tuple: Tuple, tcp_flags: u8) -> Headers {
    Headers {
        tuple,
        kind: if tuple.proto() == proto::TCP {
            Kind::Tcp
        } else {
            Kind::Ports
        },
        tcp_flags,
        ..Headers::EMPTY
    }
}

fn fake(ports: u16, places: usize) -> Fake {
    let fake = Fake::default();
    fake.time.set(1);
    fake.nat_places.set(places);
    fake.config.set(Some(Config {
        node_netns_cookie: 1,
        nat_port_min: 61000,
        nat_port_max: 61000 + ports - 1,
        flags: 0,
    }));
    fake
}

fn member(fake: &Fake, backend: u32, is: bool) {
    let key = MemberKey { set: SET, backend };
    if is {
        fake.members.borrow_mut().insert(key, 0);
    } else {
        fake.members.borrow_mut().remove(&key);
    }
}

/// What a program does with a packet of a client: the tuple it leaves with.
fn send(fake: &Fake, from: Tuple, flags: u8, backend: u32) -> Result<Tuple, DropReason> {
    let now = fake.time.get();
    let mut headers = headers(from, flags);
    if nat::lookup(fake, &mut headers, now).is_some() {
        return Ok(headers.to);
    }
    let mut to = from;
    to.src = Addr::v4([192, 0, 2, 100]);
    let owner = Owner {
        flags: 0,
        backend,
        set: SET,
    };
    nat::source(fake, &from, &mut to, owner, now)?;
    Ok(to)
}

/// Each entry that counts has another that leads back.
fn check_pairs(fake: &Fake) -> Result<(), TestCaseError> {
    let table = fake.nat.borrow();
    let now = fake.time.get();
    for (key, entry) in table.iter().filter(|(_, entry)| entry.expires > now) {
        let other = table.get(&entry.to.reversed());
        prop_assert!(other.is_some(), "{key:?} has no other side");
        let other = other.expect("checked");
        prop_assert_eq!(other.to, key.reversed());
        prop_assert_eq!(other.flags ^ entry.flags, Nat::REPLY);
        prop_assert_eq!((other.backend, other.set), (entry.backend, entry.set));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8, u8),
    Answer(u8, u8),
    Wait(u64),
    Sweep,
    Backend(u32, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![Just(SYN), Just(ACK), Just(FIN | ACK), Just(RST)];
    prop_oneof![
        6 => (0u8..40, flags.clone()).prop_map(|(n, f)| Step::Send(n, f)),
        4 => (0u8..40, flags).prop_map(|(n, f)| Step::Answer(n, f)),
        2 => (1u64..100).prop_map(|s| Step::Wait(s * SECOND)),
        1 => Just(Step::Sweep),
        2 => (1u32..3, any::<bool>()).prop_map(|(b, is)| Step::Backend(b, is)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn pairs_stay_whole_and_flows_that_live_are_never_moved(
        steps in proptest::collection::vec(step(), 1..200),
        ports in 2u16..30,
        places in prop_oneof![Just(0usize), 4usize..40],
    ) {
        let fake = fake(ports, places);
        member(&fake, 1, true);
        member(&fake, 2, true);
        let mut known: HashMap<Tuple, Tuple> = HashMap::new();
        for step in steps {
            let now = fake.time.get();
            match step {
                Step::Send(n, flags) => {
                    let from = client(n);
                    let flags = if from.proto() == proto::TCP { flags } else { 0 };
                    let before = fake.nat.borrow().get(&from).copied();
                    let alive = before.is_some_and(|b| {
                        let gone = !fake.members.borrow().contains_key(&MemberKey { set: SET, backend: b.backend });
                        let over = b.state & u16::from(Flow::RESET | Flow::FIN_ORIGINAL | Flow::FIN_REPLY) != 0;
                        b.expires > now && !(from.proto() == proto::UDP && gone) && !(flags == SYN && over)
                    });
                    match send(&fake, from, flags, 1 + u32::from(n) % 2) {
                        Ok(to) => {
                            prop_assert_eq!((to.dst, to.dport), (from.dst, from.dport));
                            if alive {
                                prop_assert_eq!(before.map(|b| b.to), Some(to), "a flow that lives stays what it is");
                            }
                            known.insert(from, to);
                            prop_assert_eq!(fake.nat.borrow()[&to.reversed()].to, from.reversed(), "answers find their way");
                        }
                        Err(reason) => {
                            prop_assert!(!alive, "a flow that lives is never refused: {:?}", reason);
                            prop_assert!(matches!(reason, DropReason::NatPortExhausted | DropReason::NatTableFull));
                        }
                    }
                }
                Step::Answer(n, flags) => {
                    let from = client(n);
                    let Some(to) = known.get(&from).copied() else { continue };
                    let live = fake.nat.borrow().get(&from).is_some_and(|e| e.expires > now && e.to == to);
                    let flags = if from.proto() == proto::TCP { flags } else { 0 };
                    let mut answer = headers(to.reversed(), flags);
                    let found = nat::lookup(&fake, &mut answer, now);
                    if live {
                        prop_assert_eq!(found, Some(Nat::REPLY));
                        prop_assert_eq!(answer.to, from.reversed());
                    }
                }
                Step::Wait(time) => fake.time.set(now + time),
                Step::Sweep => fake.nat.borrow_mut().retain(|_, e| e.expires > now),
                Step::Backend(backend, is) => member(&fake, backend, is),
            }
            check_pairs(&fake)?;
            prop_assert!(places == 0 || fake.nat.borrow().len() <= places);
        }
    }
}

#[test]
fn of_two_cpus_with_the_same_new_flow_one_wins_and_both_follow() {
    let fake = fake(1000, 0);
    let from = client(1);
    member(&fake, 1, true);
    // The other CPU's packet comes between the two entries of this one's.
    let other = std::rc::Rc::new(std::cell::Cell::new(None));
    let result = other.clone();
    *fake.between.borrow_mut() = Some(Box::new(move |fake: &Fake| {
        result.set(Some(send(fake, from, 0, 1)));
    }));
    let to = send(&fake, from, 0, 1).expect("a port");
    assert_eq!(other.get(), Some(Ok(to)));
    assert_eq!(
        fake.nat.borrow().len(),
        2,
        "nothing is left of the one that lost"
    );
    assert_eq!(send(&fake, from, 0, 1), Ok(to));
    check_pairs(&fake).expect("a pair");
}

#[test]
fn a_full_map_refuses_new_flows_and_keeps_the_others() {
    let fake = fake(1000, 4);
    member(&fake, 1, true);
    let first = send(&fake, client(0), SYN, 1).expect("a place");
    let second = send(&fake, client(2), SYN, 1).expect("a place");
    assert_eq!(
        send(&fake, client(4), SYN, 1),
        Err(DropReason::NatTableFull)
    );
    assert_eq!(fake.nat.borrow().len(), 4, "no half of a pair is left");
    assert_eq!(send(&fake, client(0), ACK, 1), Ok(first));
    assert_eq!(send(&fake, client(2), ACK, 1), Ok(second));
}

#[test]
fn an_entry_that_was_lost_is_put_back_with_the_next_packet_that_renews_the_flow() {
    let fake = fake(1000, 0);
    let to = send(&fake, client(0), SYN, 1).expect("a port");
    fake.nat.borrow_mut().remove(&to.reversed());
    fake.time.set(10 * SECOND);
    assert_eq!(send(&fake, client(0), ACK, 1), Ok(to));
    check_pairs(&fake).expect("a pair again");
}

#[test]
fn one_port_serves_flows_to_many_destinations() {
    let fake = fake(1, 0);
    let of = |n| {
        Tuple::new(
            Addr::v4([10, 0, 0, 1]),
            Port::new(4000 + u16::from(n)),
            server(n),
            Port::new(80),
            proto::TCP,
        )
    };
    for n in 0..20 {
        assert_eq!(
            send(&fake, of(n), SYN, 1).map(|to| to.sport.get()),
            Ok(61000)
        );
    }
    let again = Tuple::new(
        Addr::v4([10, 0, 0, 2]),
        Port::new(1),
        server(3),
        Port::new(80),
        proto::TCP,
    );
    assert_eq!(
        send(&fake, again, SYN, 1),
        Err(DropReason::NatPortExhausted)
    );
}
