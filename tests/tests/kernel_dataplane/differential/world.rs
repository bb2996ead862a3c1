//! The few addresses, ports and numbers that states and packets are made of, so that they meet often.

use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use xebec_ebpf_abi::{Addr, Port};

use crate::wire::Space;

/// IPv4 and IPv6 of the same.
pub type Both = (Ipv4Addr, Ipv6Addr);

const fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

pub const PODS: &[Both] = &[(Ipv4Addr::new(10, 244, 0, 5), v6(5)), (Ipv4Addr::new(10, 244, 0, 6), v6(6))];
pub const REMOTE_POD: Both = (Ipv4Addr::new(10, 244, 1, 7), v6(0x107));
pub const NODE: Both = (Ipv4Addr::new(192, 0, 2, 1), v6(1));
pub const OTHER_NODE: Both = (Ipv4Addr::new(192, 0, 2, 2), v6(2));
pub const CLUSTER_IP: Both = (Ipv4Addr::new(10, 96, 0, 10), v6(0x9610));
pub const BALANCER: Both = (Ipv4Addr::new(192, 0, 2, 50), v6(0x50));
pub const CLIENT: Both = (Ipv4Addr::new(198, 51, 100, 9), v6(0x5109));
const STRANGER: Both = (Ipv4Addr::new(203, 0, 113, 77), v6(0x2077));

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

/// The device that all routes lead to, and its largest packet.
pub const UPLINK: u32 = 7;
pub const UPLINK_MTU: u16 = 1500;

/// A network namespace in which the kernel finds the same ways as the host: everything but the node's own addresses goes out of
/// one device.
pub fn space() -> Space {
    let space = Space::new();
    for family in ["ipv4", "ipv6"] {
        space.sysctl(&format!("{family}/conf/all/forwarding"), "1");
    }
    space.ip(&format!("link add up0 index {UPLINK} mtu {UPLINK_MTU} type veth peer name wire0"));
    space.ip("link set up0 up");
    space.ip("link set wire0 up");
    for (family, address) in [("-4", format!("{}/32", NODE.0)), ("-6", format!("{}/128 nodad", NODE.1))] {
        space.ip(&format!("{family} addr add dev up0 {address}"));
        space.ip(&format!("{family} route add default dev up0"));
    }
    space
}
