//! Devices towards other machines, the node's addresses, and news of their change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use xebec_ebpf_abi::{Addr, Uplink};

use super::netlink::{Link, Netlink};
use super::pod;
use crate::compile::expand::addr;

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDevices {
    /// Devices towards other machines: index to name, MTU and entry of `UPLINKS`.
    pub uplinks: BTreeMap<u32, UplinkDevice>,
    /// Addresses of the node on any device but loopback and pods'.
    pub addresses: BTreeSet<IpAddr>,
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
}

/// Reads devices and addresses and decides which are uplinks: those named, else those that carry a given
/// node address, else those of default routes.
pub async fn detect(netlink: &Netlink, named: &[String], node_ips: &[IpAddr]) -> io::Result<NodeDevices> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let defaults = netlink.default_route_devices().await?;
    let addresses: Vec<(u32, IpAddr)> = addresses.iter().map(|a| (a.index, a.ip)).collect();
    Ok(decide(&links, &addresses, &defaults, named, node_ips))
}

fn decide(links: &[Link], addresses: &[(u32, IpAddr)], defaults: &[u32], named: &[String], node_ips: &[IpAddr]) -> NodeDevices {
    let ours = |link: &&Link| !link.loopback && !link.name.starts_with(pod::PREFIX);
    let candidates: Vec<&Link> = links.iter().filter(ours).collect();
    let carries = |link: &Link| addresses.iter().any(|(i, ip)| *i == link.index && node_ips.contains(ip));
    let mut chosen: Vec<&Link> = Vec::new();
    if !named.is_empty() {
        chosen.extend(candidates.iter().filter(|l| named.contains(&l.name)));
    } else {
        chosen.extend(candidates.iter().filter(|l| carries(l)));
        if chosen.is_empty() {
            chosen.extend(candidates.iter().filter(|l| defaults.contains(&l.index)));
        }
    }
    let uplink = |link: &Link| UplinkDevice {
        name: link.name.clone(),
        mtu: link.mtu,
        entry: Uplink { v4: source(link.index, addresses, node_ips, true), v6: source(link.index, addresses, node_ips, false), flags: 0 },
    };
    NodeDevices {
        uplinks: chosen.iter().map(|l| (l.index, uplink(l))).collect(),
        addresses: addresses.iter().filter(|(i, _)| candidates.iter().any(|l| l.index == *i)).map(|(_, ip)| *ip).collect(),
    }
}

/// The node's own given address on the device, else its first one that is not link-local.
fn source(index: u32, addresses: &[(u32, IpAddr)], node_ips: &[IpAddr], v4: bool) -> Addr {
    let usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => v4 && !ip.is_link_local(),
        IpAddr::V6(ip) => !v4 && !ip.is_unicast_link_local(),
    };
    let on: Vec<&IpAddr> = addresses.iter().filter(|(i, _)| *i == index).map(|(_, ip)| ip).filter(usable).collect();
    let given = on.iter().find(|ip| node_ips.contains(ip));
    given.or(on.first()).map_or(Addr::ANY, |ip| addr(**ip))
}

/// Calls `changed` whenever links, addresses or routes of the calling namespace change; ends with the socket.
pub async fn watch(changed: impl Fn()) -> io::Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    while messages.next().await.is_some() {
        changed();
    }
    connection.abort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), mac: None, mtu: 1400 + index, up: true, running: true, loopback: name == "lo" }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn uplinks_are_named_or_carry_the_address_or_have_the_default_route() {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "xbc00000000001")];
        let addresses = [
            (1, ip("127.0.0.1")),
            (2, ip("169.254.7.7")),
            (2, ip("192.0.2.5")),
            (2, ip("192.0.2.6")),
            (2, ip("fe80::5")),
            (3, ip("198.51.100.5")),
            (3, ip("2001:db8::5")),
            (4, ip("10.0.0.9")),
        ];
        let names = |d: &NodeDevices| d.uplinks.values().map(|u| u.name.clone()).collect::<Vec<_>>();
        let by_default = decide(&links, &addresses, &[3], &[], &[]);
        assert_eq!(names(&by_default), ["eth1"]);
        assert_eq!(by_default.uplinks[&3].entry.v6, addr(ip("2001:db8::5")));
        let by_address = decide(&links, &addresses, &[3], &[], &[ip("192.0.2.6")]);
        assert_eq!(names(&by_address), ["eth0"]);
        assert_eq!(by_address.uplinks[&2].entry.v4, addr(ip("192.0.2.6")));
        assert_eq!(by_address.uplinks[&2].entry.v6, Addr::ANY);
        let by_name = decide(&links, &addresses, &[3], &["eth0".into(), "eth1".into()], &[]);
        assert_eq!(names(&by_name), ["eth0", "eth1"]);
        assert_eq!(by_name.uplinks[&2].entry.v4, addr(ip("192.0.2.5")));
        assert!(by_name.addresses.contains(&ip("198.51.100.5")));
        assert!(!by_name.addresses.contains(&ip("127.0.0.1")) && !by_name.addresses.contains(&ip("10.0.0.9")));
    }
}
