//! The few addresses, ports and numbers that states and packets are made of, so that they meet often.

use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use xebec_ebpf_abi::{Addr, Port};

use super::fake::routes::{NextHop, Routes};
use crate::wire::Space;

/// IPv4 and IPv6 of the same.
pub type Both = (Ipv4Addr, Ipv6Addr);

const fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

const fn far(last: u8) -> Both {
    (Ipv4Addr::new(10, 244, 2, last), v6(0x200 + last as u16))
}

pub const PODS: &[Both] = &[(Ipv4Addr::new(10, 244, 0, 5), v6(5)), (Ipv4Addr::new(10, 244, 0, 6), v6(6))];
pub const REMOTE_POD: Both = (Ipv4Addr::new(10, 244, 1, 7), v6(0x107));
/// Of other nodes too, each with a way of its own: see [`ROADS`].
pub const FAR_PODS: &[Both] = &[far(1), far(2), far(3), far(4), far(5)];
pub const NODE: Both = (Ipv4Addr::new(192, 0, 2, 1), v6(1));
pub const OTHER_NODE: Both = (Ipv4Addr::new(192, 0, 2, 2), v6(2));
pub const CLUSTER_IP: Both = (Ipv4Addr::new(10, 96, 0, 10), v6(0x9610));
pub const BALANCER: Both = (Ipv4Addr::new(192, 0, 2, 50), v6(0x50));
pub const CLIENT: Both = (Ipv4Addr::new(198, 51, 100, 9), v6(0x5109));
pub const STRANGER: Both = (Ipv4Addr::new(203, 0, 113, 77), v6(0x2077));

const COMMON: &[Both] = &[PODS[0], PODS[1], REMOTE_POD, NODE, OTHER_NODE, CLUSTER_IP, BALANCER, CLIENT, STRANGER];
const ODD: &[Both] = &[
    (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    (Ipv4Addr::new(224, 0, 0, 1), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
    // Of a family that must not be on a wire.
    (Ipv4Addr::BROADCAST, Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201)),
];

/// Ports that Services, backends and clients have; the last one is what sources are translated to.
pub const PORTS: &[u16] = &[80, 80, 30080, 41000, 61000];
/// Of protocols with packets of their own kind.
pub const PROTOS: &[u8] = &[6, 17, 132];

pub fn of(both: Both, v4: bool) -> IpAddr {
    if v4 { both.0.into() } else { both.1.into() }
}

pub fn address(rng: &mut SmallRng, v4: bool) -> IpAddr {
    let from = if rng.random_ratio(1, 20) { ODD } else { COMMON };
    of(*from.choose(rng).expect("there are some"), v4)
}

pub fn addr(rng: &mut SmallRng, v4: bool) -> Addr {
    address(rng, v4).into()
}

pub fn port_number(rng: &mut SmallRng) -> u16 {
    match rng.random_range(0..20) {
        0 => 0,
        1 => rng.random(),
        _ => *PORTS.choose(rng).expect("there are some"),
    }
}

pub fn port(rng: &mut SmallRng) -> Port {
    Port::new(port_number(rng))
}

pub fn proto(rng: &mut SmallRng) -> u8 {
    match rng.random_range(0..12) {
        0 => 1,
        1 => 58,
        2 => 0,
        _ => *PROTOS.choose(rng).expect("there are some"),
    }
}

/// Some bits of these.
pub fn bits(rng: &mut SmallRng, all: u32) -> u32 {
    rng.random::<u32>() & all
}

/// The devices that routes lead to, and their largest packets.
pub const UPLINK: u32 = 7;
pub const SECOND: u32 = 8;
const DEVICES: &[(u32, u16)] = &[(UPLINK, 1500), (SECOND, 1400)];
/// The least that a route takes.
pub const NARROW: u16 = 1300;
/// The address that packets on wires are for.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The hardware address of a device.
const fn own(device: u32) -> [u8; 6] {
    if device == UPLINK { OWN } else { [2, 0, 0, 0, 0, device as u8] }
}

/// What a route says.
enum Road {
    /// To a neighbour, whose hardware address is known or not.
    Neighbor { device: u32, is_known: bool },
    /// By the device's router; the largest packet, where it is not the device's.
    Router { device: u32, mtu: Option<u16> },
    /// A kind of route that leads nowhere.
    Nowhere(&'static str),
}

/// All that is not here is a neighbour at the first device, whom nobody has asked yet.
const ROADS: &[(Both, Road)] = &[
    (CLIENT, Road::Router { device: UPLINK, mtu: None }),
    (STRANGER, Road::Neighbor { device: SECOND, is_known: true }),
    (REMOTE_POD, Road::Router { device: UPLINK, mtu: None }),
    (OTHER_NODE, Road::Router { device: SECOND, mtu: None }),
    (FAR_PODS[0], Road::Router { device: SECOND, mtu: Some(NARROW) }),
    (FAR_PODS[1], Road::Neighbor { device: SECOND, is_known: false }),
    (FAR_PODS[2], Road::Nowhere("blackhole")),
    (FAR_PODS[3], Road::Nowhere("unreachable")),
    (FAR_PODS[4], Road::Nowhere("prohibit")),
];

const fn router(device: u32) -> Both {
    (Ipv4Addr::new(192, 0, 2, 200 + device as u8), v6(0x7000 + device as u16))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The hardware address of whoever is behind a device.
const fn next(device: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, device as u8]
}

fn name(device: u32) -> String {
    format!("up{device}")
}

/// A network namespace with these routes.
pub fn space() -> Space {
    let space = Space::new();
    for family in ["ipv4", "ipv6"] {
        space.sysctl(&format!("{family}/conf/all/forwarding"), "1");
    }
    for (device, mtu) in DEVICES {
        let (name, mac) = (name(*device), text(own(*device)));
        space.ip(&format!("link add {name} index {device} address {mac} mtu {mtu} type veth peer name wire{device}"));
        space.ip(&format!("link set {name} up"));
        space.ip(&format!("link set wire{device} up"));
    }
    for (v4, family, fresh) in [(true, "-4", ""), (false, "-6", "nodad")] {
        let up = name(UPLINK);
        let knows = |device: u32, ip: IpAddr| {
            space.ip(&format!("neigh add {ip} lladdr {} dev {} nud permanent", text(next(device)), name(device)));
        };
        space.ip(&format!("{family} addr add dev {up} {}/{} {fresh}", of(NODE, v4), full(v4)));
        space.ip(&format!("{family} route add default dev {up}"));
        for (device, _) in DEVICES {
            space.ip(&format!("{family} route add {} dev {}", of(router(*device), v4), name(*device)));
            knows(*device, of(router(*device), v4));
        }
        for (to, road) in ROADS {
            let ip = of(*to, v4);
            match road {
                Road::Neighbor { device, is_known } => {
                    space.ip(&format!("{family} route add {ip} dev {}", name(*device)));
                    if *is_known {
                        knows(*device, ip);
                    }
                }
                Road::Router { device, mtu } => {
                    // Of one that is not locked the routing helper knows nothing.
                    let mtu = mtu.map_or(String::new(), |mtu| format!("mtu lock {mtu}"));
                    space.ip(&format!("{family} route add {ip} via {} {mtu}", of(router(*device), v4)));
                }
                Road::Nowhere(kind) => {
                    space.ip(&format!("{family} route add {kind} {ip}"));
                }
            }
        }
    }
    space
}

fn full(v4: bool) -> u32 {
    if v4 { 32 } else { 128 }
}

/// The same as the host has it.
pub fn routes() -> Routes {
    let way = |device: u32, mtu: Option<u16>, is_known: bool| {
        let (_, largest) = DEVICES.iter().find(|(number, _)| *number == device).expect("it is one");
        NextHop { device, mtu: mtu.unwrap_or(*largest), link: is_known.then_some([next(device), own(device)]) }
    };
    let mut routes = Routes { way: Some(way(UPLINK, None, false)), ..Routes::default() };
    for v4 in [true, false] {
        routes.ways.insert(of(NODE, v4).into(), None);
        for (device, _) in DEVICES {
            routes.ways.insert(of(router(*device), v4).into(), Some(way(*device, None, true)));
        }
        for (to, road) in ROADS {
            let way = match road {
                Road::Neighbor { device, is_known } => Some(way(*device, None, *is_known)),
                Road::Router { device, mtu } => Some(way(*device, *mtu, true)),
                Road::Nowhere(_) => None,
            };
            routes.ways.insert(of(*to, v4).into(), way);
        }
    }
    routes
}
