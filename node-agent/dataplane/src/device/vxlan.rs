//! The tunnel to nodes on other segments: one VXLAN device that learns nothing; every next hop behind it is a permanent
//! neighbour, and every neighbour's hardware address leads to its node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::LinkVxlan;

use super::netlink::{Netlink, io_error, is};

/// Its name.
pub const NAME: &str = "xebec-vxlan";

/// What the device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, on every node the same.
    pub port: u16,
    /// The node's address that packets leave with.
    pub local: IpAddr,
    /// Largest packet inside.
    pub mtu: u32,
}

/// Bytes that the encapsulation adds: outer IP, UDP, VXLAN and inner Ethernet headers.
pub fn overhead(local: &IpAddr) -> u32 {
    let ip = if local.is_ipv4() { 20 } else { 40 };
    ip + 8 + 8 + 14
}

/// The hardware address of the tunnel's end at a node: derived, so that no node has to publish it.
pub fn mac(node: &IpAddr, vni: u32) -> [u8; 6] {
    let bytes = match node {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    // FNV-1a; locally administered, unicast.
    let bytes = vni.to_be_bytes().into_iter().chain(bytes);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)).to_be_bytes();
    [(hash[0] & 0xfe) | 2, hash[1], hash[2], hash[3], hash[4], hash[5]]
}

/// What is behind the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Next hops and the hardware addresses they have.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Hardware addresses and the nodes they are at.
    pub nodes: BTreeMap<[u8; 6], IpAddr>,
}

impl Netlink {
    /// Makes the device, again if it is there with other properties, and brings it up. Its index.
    pub async fn put_tunnel(&self, tunnel: &Tunnel) -> io::Result<u32> {
        let mac = mac(&tunnel.local, tunnel.vni);
        if let Some(message) = self.tunnel().await? {
            let link = super::netlink::link(&message);
            if is_same(&message, tunnel) && link.mac == Some(mac) {
                if link.mtu != tunnel.mtu {
                    self.set_mtu(link.index, tunnel.mtu).await?;
                }
                if !link.up {
                    self.up(link.index).await?;
                }
                return Ok(link.index);
            }
            self.delete(link.index).await?;
        }
        let device = LinkVxlan::new(NAME, tunnel.vni).port(tunnel.port).learning(false).address(mac.to_vec()).mtu(tunnel.mtu).up();
        let device = match tunnel.local {
            IpAddr::V4(ip) => device.local(ip),
            IpAddr::V6(ip) => device.local6(ip).udp_zero_csum6_rx(true),
        };
        self.handle().link().add(device.build()).execute().await.map_err(io_error)?;
        let made = self.tunnel().await?.ok_or_else(|| io::Error::other("the tunnel's device went away while it was made"))?;
        Ok(made.header.index)
    }

    /// Removes the device; none is no error.
    pub async fn remove_tunnel(&self) -> io::Result<()> {
        match self.link(NAME).await? {
            Some(link) => self.delete(link.index).await,
            None => Ok(()),
        }
    }

    async fn tunnel(&self) -> io::Result<Option<LinkMessage>> {
        let mut found = Box::pin(self.handle().link().get().match_name(NAME).execute());
        match found.try_next().await.map_err(io_error) {
            Ok(message) => Ok(message),
            Err(e) if is(&e, libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the device's neighbours and forwarding entries these.
    pub async fn put_ends(&self, index: u32, wanted: &Ends) -> io::Result<()> {
        let mut neighbours: BTreeMap<IpAddr, [u8; 6]> = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in self.neighbours(index, family).await? {
                // What the kernel found by itself (multicast) is not ours.
                if message.header.state != NeighbourState::Permanent {
                    continue;
                }
                match (destination(&message), hardware(&message)) {
                    (Some(ip), Some(mac)) if wanted.neighbours.get(&ip) == Some(&mac) => drop(neighbours.insert(ip, mac)),
                    (Some(_), _) => self.forget(message).await?,
                    _ => {}
                }
            }
        }
        for (ip, mac) in wanted.neighbours.iter().filter(|(ip, _)| !neighbours.contains_key(ip)) {
            self.add_neighbour(index, *ip, *mac).await?;
        }
        let mut nodes: BTreeSet<[u8; 6]> = BTreeSet::new();
        for message in self.neighbours(index, AddressFamily::Bridge).await? {
            let (Some(mac), Some(node)) = (hardware(&message), destination(&message)) else { continue };
            match wanted.nodes.get(&mac) == Some(&node) {
                true => drop(nodes.insert(mac)),
                false => self.forget(message).await?,
            }
        }
        for (mac, node) in wanted.nodes.iter().filter(|(mac, _)| !nodes.contains(*mac)) {
            use netlink_packet_route::neighbour::NeighbourFlags;
            let entry = self.handle().neighbours().add_bridge(index, mac).destination(*node).flags(NeighbourFlags::Own).replace();
            entry.execute().await.map_err(io_error)?;
        }
        Ok(())
    }

    async fn neighbours(&self, index: u32, family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
        let _one_dump = self.one_dump().await;
        let all = self.handle().neighbours().get().set_address_family(family).execute();
        let all: Vec<NeighbourMessage> = all.try_collect().await.map_err(io_error)?;
        Ok(all.into_iter().filter(|message| message.header.ifindex == index).collect())
    }

    async fn forget(&self, message: NeighbourMessage) -> io::Result<()> {
        match self.handle().neighbours().del(message).execute().await.map_err(io_error) {
            Err(e) if !is(&e, libc::ENOENT) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn is_same(message: &LinkMessage, tunnel: &Tunnel) -> bool {
    let infos = message.attributes.iter().filter_map(|a| if let LinkAttribute::LinkInfo(infos) = a { Some(infos) } else { None });
    let data = infos.flatten().filter_map(|info| if let LinkInfo::Data(InfoData::Vxlan(data)) = info { Some(data) } else { None });
    let data: Vec<&InfoVxlan> = data.flatten().collect();
    let local = match tunnel.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    [InfoVxlan::Id(tunnel.vni), InfoVxlan::Port(tunnel.port), InfoVxlan::Learning(false), local].iter().all(|wanted| data.contains(&wanted))
}

fn hardware(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // Of a forwarding entry only the length tells the family.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_derived_and_differ() {
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!(mac(&a, 1), mac(&a, 1));
        assert_ne!(mac(&a, 1), mac(&b, 1));
        assert_ne!(mac(&a, 1), mac(&a, 2));
        assert_eq!(mac(&a, 1)[0] & 3, 2);
    }

    #[test]
    fn the_overhead_follows_the_outer_family() {
        assert_eq!(overhead(&"192.0.2.1".parse().unwrap()), 50);
        assert_eq!(overhead(&"2001:db8::1".parse().unwrap()), 70);
    }
}
