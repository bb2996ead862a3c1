//! Which packets of connected UDP sockets are sent elsewhere once a backend has left its Service.

mod fake;

use fake::Fake;
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::{
    parse::{Headers, Kind},
    socket::{self, Action, Socket},
    steer,
};

const VIP: Addr = Addr::v4([10, 96, 0, 10]);
const POD: Addr = Addr::v4([10, 244, 0, 5]);
const BACKEND: (Addr, Port) = (Addr::v4([10, 244, 0, 6]), Port::new(5353));
const DNS: Port = Port::new(53);

fn service() -> Fake {
    let fake = Fake::default();
    let member = MemberKey { set: 1, backend: 9 };
    fake.slots
        .borrow_mut()
        .insert(SlotKey { set: 1, slot: 0 }, 9);
    fake.backends
        .borrow_mut()
        .insert(9, Backend::new(BACKEND.0, BACKEND.1, 0));
    fake.members.borrow_mut().insert(member, 0);
    fake.sets
        .borrow_mut()
        .insert(1, BackendSet { count: 1, flags: 0 });
    let frontend = Frontend {
        service: 1,
        internal: 1,
        external: 1,
        flags: 0,
        affinity_timeout: 0,
    };
    fake.frontends
        .borrow_mut()
        .insert(FrontendKey::new(VIP, DNS, proto::UDP), frontend);
    fake
}

fn socket(cookie: u64) -> Socket {
    Socket {
        cookie,
        netns: 3,
        proto: proto::UDP,
    }
}

/// What is said of a packet to the backend, and the Service it is then for.
fn check(fake: &Fake, socket: u64) -> (u32, (Addr, Port)) {
    let mut headers = Headers::EMPTY;
    headers.kind = Kind::Ports;
    headers.tuple = Tuple::new(POD, Port::new(40000), BACKEND.0, BACKEND.1, proto::UDP);
    headers.asked = BACKEND;
    let said = steer::check(fake, socket, &mut headers);
    (said, headers.asked)
}

#[test]
fn only_packets_of_the_socket_that_was_given_the_backend_go_elsewhere() {
    let fake = service();
    let (ours, direct) = (socket(5), socket(6));
    assert_eq!(
        socket::connect(&fake, &ours, VIP, DNS),
        Action::Rewrite(BACKEND.0, BACKEND.1)
    );
    assert_eq!(
        socket::connect(&fake, &direct, BACKEND.0, BACKEND.1),
        Action::Pass
    );
    for cookie in [5, 6, 0] {
        assert_eq!(check(&fake, cookie), (steer::STAYS, BACKEND), "it serves");
    }
    fake.members.borrow_mut().clear();
    assert_eq!(check(&fake, 5), (steer::ELSEWHERE, (VIP, DNS)));
    for cookie in [6, 0] {
        assert_eq!(check(&fake, cookie), (steer::STAYS, BACKEND), "{cookie}");
    }
    // The socket itself, once it has connected to the backend by its own address.
    assert_eq!(
        socket::connect(&fake, &ours, BACKEND.0, BACKEND.1),
        Action::Pass
    );
    assert_eq!(check(&fake, 5), (steer::STAYS, BACKEND));
}

#[test]
fn a_service_that_is_gone_takes_its_backend_along_unless_that_serves_another() {
    let fake = service();
    socket::connect(&fake, &socket(5), VIP, DNS);
    fake.frontends.borrow_mut().clear();
    assert_eq!(check(&fake, 5).0, steer::STAYS, "somebody else's backend");
    fake.backends.borrow_mut().clear();
    assert_eq!(check(&fake, 5).0, steer::GONE);
}
