//! Devices towards other machines, and the node's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use xebec_ebpf_abi::{Addr, Uplink};

use super::netlink::{Address, Link, Netlink};
use super::ways::Ways;
use super::{pod, vxlan};
use crate::compile::expand::addr;

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDevices {
    /// Devices towards other machines: index to name, MTU and entry of `UPLINKS`.
    pub uplinks: BTreeMap<u32, UplinkDevice>,
    /// Addresses of the node on any device but loopback and pods'.
    pub addresses: BTreeSet<IpAddr>,
    /// Links the node shares with others, by its addresses on uplinks.
    pub segments: Vec<Segment>,
}

/// An address of an uplink and the range that is on the same link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The device.
    pub index: u32,
    /// The node's own address there.
    pub address: IpAddr,
    /// What is reached without a gateway.
    pub range: IpNet,
}

impl NodeDevices {
    /// The smallest largest packet of the devices towards other machines; the tunnel is none.
    pub fn mtu(&self) -> Option<u32> {
        self.uplinks.values().filter(|u| !u.tunnel).map(|u| u.mtu).min()
    }

    /// The tunnel's device.
    pub fn tunnel(&self) -> Option<u32> {
        self.uplinks.iter().find(|(_, u)| u.tunnel).map(|(index, _)| *index)
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkDevice {
    /// Its name.
    pub name: String,
    /// Its largest packet.
    pub mtu: u32,
    /// What packets of pods leaving there get as source.
    pub entry: Uplink,
    /// It is the tunnel between nodes, whose packets leave by another one.
    pub tunnel: bool,
    /// Who answers there for load-balancer addresses; none for the tunnel and devices without hardware addresses.
    pub mac: Option<[u8; 6]>,
}

/// Reads devices and addresses and decides which are uplinks: those named, else those that carry a given
/// node address, else those of default routes.
pub async fn detect(netlink: &Netlink, named: &[String], node_ips: &[IpAddr]) -> io::Result<NodeDevices> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let ways = netlink.ways().await?;
    Ok(decide(&links, &addresses, &ways, named, node_ips))
}

fn decide(links: &[Link], addresses: &[Address], ways: &Ways, named: &[String], node_ips: &[IpAddr]) -> NodeDevices {
    let ours = |link: &&Link| !link.loopback && !link.name.starts_with(pod::PREFIX) && link.name != vxlan::NAME;
    let candidates: Vec<&Link> = links.iter().filter(ours).collect();
    let carries = |link: &Link| addresses.iter().any(|a| a.index == link.index && node_ips.contains(&a.ip));
    let mut chosen: Vec<&Link> = Vec::new();
    if !named.is_empty() {
        chosen.extend(candidates.iter().filter(|l| named.contains(&l.name)));
    } else {
        chosen.extend(candidates.iter().filter(|l| carries(l)));
        if chosen.is_empty() {
            chosen.extend(candidates.iter().filter(|l| ways.defaults.contains(&l.index)));
        }
    }
    let device = |link: &Link, sources: &Link, tunnel: bool| UplinkDevice {
        name: link.name.clone(),
        mtu: link.mtu,
        entry: Uplink {
            v4: source(sources.index, addresses, node_ips, true),
            v6: source(sources.index, addresses, node_ips, false),
            mtu: ways.size(link.index).map_or(link.mtu, |size| size.min(link.mtu)),
        },
        tunnel,
        mac: link.mac.filter(|_| !tunnel),
    };
    let mut uplinks: BTreeMap<u32, UplinkDevice> = chosen.iter().map(|l| (l.index, device(l, l, false))).collect();
    // What leaves through the tunnel with the node's address has that of the device the tunnel's packets leave by.
    if let (Some(first), Some(tunnel)) = (chosen.first(), links.iter().find(|l| l.name == vxlan::NAME)) {
        uplinks.insert(tunnel.index, device(tunnel, first, true));
    }
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let of_uplinks = addresses.iter().filter(|a| chosen.iter().any(|l| l.index == a.index) && usable(&a.ip));
    let segment = |a: &Address| Some(Segment { index: a.index, address: a.ip, range: IpNet::new(a.ip, a.prefix).ok()?.trunc() });
    NodeDevices {
        segments: of_uplinks.filter_map(segment).collect(),
        uplinks,
        addresses: addresses.iter().filter(|a| candidates.iter().any(|l| l.index == a.index)).map(|a| a.ip).collect(),
    }
}

/// The node's own given address on the device, else its first one that is not link-local.
fn source(index: u32, addresses: &[Address], node_ips: &[IpAddr], v4: bool) -> Addr {
    let usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => v4 && !ip.is_link_local(),
        IpAddr::V6(ip) => !v4 && !ip.is_unicast_link_local(),
    };
    let on: Vec<&IpAddr> = addresses.iter().filter(|a| a.index == index).map(|a| &a.ip).filter(usable).collect();
    let given = on.iter().find(|ip| node_ips.contains(ip));
    given.or(on.first()).map_or(Addr::ANY, |ip| addr(**ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), mac: None, mtu: 1400 + index, up: true, running: true, loopback: name == "lo" }
    }

    /// A default route.
    fn by(device: u32) -> Ways {
        Ways { defaults: vec![device], ..Ways::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn uplinks_are_named_or_carry_the_address_or_have_the_default_route() {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "xbc00000000001")];
        let address = |(index, text): (u32, &str)| Address { index, ip: ip(text), prefix: 24 };
        let addresses = [
            (1, "127.0.0.1"),
            (2, "169.254.7.7"),
            (2, "192.0.2.5"),
            (2, "192.0.2.6"),
            (2, "fe80::5"),
            (3, "198.51.100.5"),
            (3, "2001:db8::5"),
            (4, "10.0.0.9"),
        ]
        .map(address);
        let names = |d: &NodeDevices| d.uplinks.values().map(|u| u.name.clone()).collect::<Vec<_>>();
        let by_default = decide(&links, &addresses, &by(3), &[], &[]);
        assert_eq!(names(&by_default), ["eth1"]);
        assert_eq!(by_default.uplinks[&3].entry.v6, addr(ip("2001:db8::5")));
        let by_address = decide(&links, &addresses, &by(3), &[], &[ip("192.0.2.6")]);
        assert_eq!(names(&by_address), ["eth0"]);
        assert_eq!(by_address.uplinks[&2].entry.v4, addr(ip("192.0.2.6")));
        assert_eq!(by_address.uplinks[&2].entry.v6, Addr::ANY);
        let by_name = decide(&links, &addresses, &by(3), &["eth0".into(), "eth1".into()], &[]);
        assert_eq!(names(&by_name), ["eth0", "eth1"]);
        assert_eq!(by_name.uplinks[&2].entry.v4, addr(ip("192.0.2.5")));
        assert!(by_name.addresses.contains(&ip("198.51.100.5")));
        assert!(!by_name.addresses.contains(&ip("127.0.0.1")) && !by_name.addresses.contains(&ip("10.0.0.9")));
        let ranges: Vec<String> = by_address.segments.iter().map(|s| format!("{} {}", s.index, s.range)).collect();
        assert_eq!(ranges, ["2 192.0.2.0/24", "2 192.0.2.0/24"]);
    }

    #[test]
    fn the_tunnel_is_an_uplink_that_sets_no_limit() {
        let links = [link(2, "eth0"), link(9, vxlan::NAME)];
        let addresses = [Address { index: 2, ip: ip("192.0.2.5"), prefix: 24 }];
        let devices = decide(&links, &addresses, &by(2), &[], &[]);
        assert_eq!((devices.tunnel(), devices.mtu()), (Some(9), Some(1402)));
        let (tunnel, uplink) = (devices.uplinks[&9].entry, devices.uplinks[&2].entry);
        assert_eq!((tunnel.v4, tunnel.v6), (uplink.v4, uplink.v6));
        assert_eq!((tunnel.mtu, uplink.mtu), (1409, 1402), "each its own size");
    }

    #[test]
    fn a_route_may_take_less_than_its_device() {
        let links = [link(2, "eth0"), link(3, "eth1")];
        let mut ways = by(2);
        ways.sizes = vec![(2, 1300), (2, 1350), (3, 9000)];
        let devices = decide(&links, &[], &ways, &["eth0".into(), "eth1".into()], &[]);
        let sizes: Vec<(u32, u32)> = devices.uplinks.values().map(|u| (u.mtu, u.entry.mtu)).collect();
        assert_eq!(sizes, [(1402, 1300), (1403, 1403)]);
    }
}
