//! Whether the socket hooks see this node's sockets: hooks that sit in the wrong cgroup report no error, Services just do
//! not answer.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use xebec_ebpf_abi::{Addr, Backend, BackendSet, Frontend, FrontendKey, Port, SlotKey, proto};

use crate::Error;
use crate::bpf::maps::Maps;
use crate::compile::state::Op;

/// A dummy address (RFC 7600): nobody is there, and nothing is sent.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const PORT: u16 = 9;
/// A number that is not given out for ages.
const NUMBER: u32 = u32::MAX;

/// Makes a Service of its own, whose backend is loopback, for as long as one datagram socket connects to it. The kernel
/// then chooses loopback as the socket's own address, but only if a hook has put the backend in the Service's place.
pub fn run(maps: &mut Maps, cgroup: &Path) -> Result<(), Error> {
    let entries = entries();
    let written = entries.iter().try_for_each(|op| maps.apply(op));
    let seen = written.and_then(|()| own_address().map_err(Error::netlink("connect a socket for the self-test")));
    for op in entries.iter().rev() {
        maps.apply(&without_value(op))?;
    }
    match seen? {
        Some(IpAddr::V4(ip)) if ip.is_loopback() => Ok(()),
        _ => Err(Error::Hooks { cgroup: cgroup.to_owned() }),
    }
}

/// In the order in which readers need them.
fn entries() -> [Op; 4] {
    let slot = SlotKey { set: NUMBER, slot: 0 };
    let key = FrontendKey::new(Addr::v4(ADDRESS.octets()), Port::new(PORT), proto::UDP);
    let backend = Backend::new(Addr::v4(Ipv4Addr::LOCALHOST.octets()), Port::new(PORT), Backend::LOCAL);
    let frontend = Frontend { service: NUMBER, internal: NUMBER, external: NUMBER, flags: 0, affinity_timeout: 0 };
    [
        Op::Backend(NUMBER, Some(backend)),
        Op::Slot(slot, Some(NUMBER)),
        Op::Set(NUMBER, Some(BackendSet { count: 1, flags: 0 })),
        Op::Frontend(key, Some(frontend)),
    ]
}

fn without_value(op: &Op) -> Op {
    match op {
        Op::Backend(key, _) => Op::Backend(*key, None),
        Op::Slot(key, _) => Op::Slot(*key, None),
        Op::Set(key, _) => Op::Set(*key, None),
        Op::Frontend(key, _) => Op::Frontend(*key, None),
        other => other.clone(),
    }
}

/// The address a socket gets that connects to the test's Service; none if there is no way there.
fn own_address() -> std::io::Result<Option<IpAddr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    match socket.connect((ADDRESS, PORT)) {
        Ok(()) => Ok(Some(socket.local_addr()?.ip())),
        // No route: the hook did not see it.
        Err(_) => Ok(None),
    }
}
