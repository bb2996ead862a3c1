//! What is asked of rtnetlink to set up a pod's device. Pure: see [`super::rtnl`] for who asks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netlink::{self, Link};
use super::rtnl::{Answer, Request};

const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// One side of a veth pair to be made.
pub struct VethSide<'a> {
    /// Name of the device.
    pub name: &'a str,
    /// Hardware address.
    pub mac: [u8; 6],
}

/// Makes a veth pair, one side here, the other in another namespace, both down. Each side has one queue: without a queueing
/// discipline nothing waits in one, and choosing among several is work for each packet.
pub fn veth(host: VethSide<'_>, peer: VethSide<'_>, peer_netns: BorrowedFd<'_>, mtu: u32) -> Request {
    let [tx, rx] = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .append_extra_attribute(tx.clone())
        .append_extra_attribute(rx.clone())
        .name(peer.name)
        .address(peer.mac.to_vec())
        .mtu(mtu)
        .setns_by_fd(peer_netns.as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .append_extra_attribute(tx)
        .append_extra_attribute(rx)
        .name(host.name)
        .address(host.mac.to_vec())
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Reads a device by its name.
pub fn link(name: &str) -> Request {
    let mut message = LinkMessageBuilder::<LinkUnspec>::default().build();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// What [`link`] is answered.
pub fn found(answer: Answer) -> io::Result<Link> {
    match answer? {
        Some(RouteNetlinkMessage::NewLink(message)) => Ok(netlink::link(&message)),
        _ => Err(io::Error::other("the kernel told nothing of a device that was asked for")),
    }
}

/// Brings a device up.
pub fn up(index: u32) -> Request {
    (RouteNetlinkMessage::NewLink(LinkMessageBuilder::<LinkUnspec>::default().index(index).up().build()), 0)
}

/// An address that needs no duplicate detection: we lease it.
pub fn address(index: u32, ip: IpAddr) -> Request {
    let mut message: AddressMessage = match ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(ip, 32).build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(ip, 128).build(),
    };
    if ip.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    (RouteNetlinkMessage::NewAddress(message), PUT)
}

/// A neighbour that is never asked for.
pub fn neighbour(index: u32, ip: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    let (family, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(address), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    (RouteNetlinkMessage::NewNeighbour(message), PUT)
}

/// A route to one address by a device; the pod's side of `via` is on that link although no prefix says so.
pub fn host_route(index: u32, to: IpAddr) -> Request {
    let message: RouteMessage = match to {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Kernel)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .output_interface(index)
            .protocol(RouteProtocol::Kernel)
            .build(),
    };
    (RouteNetlinkMessage::NewRoute(message), PUT)
}

/// The default route by a gateway that is on the link although no prefix says so.
pub fn default_route(index: u32, gateway: IpAddr) -> Request {
    let message = match gateway {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(ip).onlink().build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(ip).onlink().build(),
    };
    (RouteNetlinkMessage::NewRoute(message), PUT)
}
