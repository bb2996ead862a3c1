//! How pods reach the pods of other nodes: what the node's routes, rules and tunnel shall be, from the Nodes there are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile::identity::host_net;
use crate::compile::input::NodeIn;
use crate::config::Routing;
use crate::device::route::{MAIN, PODS, Route, Rule};
use crate::device::uplink::NodeDevices;
use crate::device::vxlan::{self, Ends, Tunnel};

/// What shall be there. Compared with what the kernel has; the difference is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
    pub ends: Ends,
    /// Nodes whose pods cannot be reached, and why.
    pub problems: Vec<String>,
}

/// The tunnel's device, where the mode asks for one and the node has an address.
pub fn tunnel(routing: &Routing, devices: &NodeDevices, node_ips: &[IpAddr], mtu: u32) -> Option<Tunnel> {
    let (Routing::Vxlan(settings) | Routing::Auto(settings)) = routing else {
        return None;
    };
    let local = *node_ips.first().or_else(|| devices.segments.first().map(|s| &s.address))?;
    Some(Tunnel { vni: settings.vni, port: settings.port, local, mtu: mtu.saturating_sub(vxlan::overhead(&local)) })
}

/// Everything else. `through` is the tunnel with its device's index, if there is one.
pub fn plan(
    routing: &Routing,
    devices: &NodeDevices,
    own_ranges: &[IpNet],
    peers: &BTreeMap<String, NodeIn>,
    through: Option<(Tunnel, u32)>,
) -> Fabric {
    let mut fabric = Fabric::default();
    for (name, peer) in peers.iter().filter(|(_, peer)| !peer.pod_cidrs.is_empty()) {
        let tunnelled = match routing {
            Routing::Native => false,
            Routing::Vxlan(_) => true,
            Routing::Auto(_) => !peer.pod_cidrs.iter().all(|range| direct(devices, peer, range).is_some()),
        };
        if !tunnelled {
            for range in &peer.pod_cidrs {
                match direct(devices, peer, range) {
                    Some(route) => drop(fabric.routes.insert(route)),
                    None => fabric.problems.push(format!(
                        "no route to {range} of node {name}: none of its addresses is on a segment of this node; \
                         start the agents with --routing vxlan or auto, or have the network route the range"
                    )),
                }
            }
            continue;
        }
        let end = through.and_then(|(tunnel, index)| {
            let remote = peer.internal.iter().find(|ip| ip.is_ipv4() == tunnel.local.is_ipv4())?;
            Some((tunnel, index, *remote))
        });
        match end {
            Some((tunnel, index, remote)) => behind(&mut fabric, peer, remote, index, vxlan::mac(&remote, tunnel.vni)),
            None => fabric.problems.push(format!("no tunnel to node {name}: it has no address of this node's family")),
        }
    }
    if !fabric.ends.nodes.is_empty() {
        fabric.rules.extend(own_ranges.iter().map(IpNet::trunc));
    }
    fabric
}

/// The route to a range by the node's own address, if that is on a segment of ours.
fn direct(devices: &NodeDevices, peer: &NodeIn, range: &IpNet) -> Option<Route> {
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == range.addr().is_ipv4();
    peer.internal.iter().filter(same_family).find_map(|via| {
        let segment = devices.segments.iter().find(|s| s.range.contains(via) && s.address != *via)?;
        Some(Route { table: MAIN, to: range.trunc(), via: *via, index: segment.index, onlink: false })
    })
}

/// A node behind the tunnel. Its pods' ranges are for everyone, the node's own addresses only for packets of pods: what the
/// network between the nodes would not carry, because it does not know pods. Else the tunnel's own packets would go into it.
fn behind(fabric: &mut Fabric, peer: &NodeIn, remote: IpAddr, index: u32, mac: [u8; 6]) {
    fabric.ends.nodes.insert(mac, remote);
    for range in &peer.pod_cidrs {
        // The range's first address is nobody's: it stands for the node's end of the tunnel.
        let via = range.network();
        fabric.ends.neighbours.insert(via, mac);
        fabric.routes.insert(Route { table: MAIN, to: range.trunc(), via, index, onlink: true });
        for address in peer.addresses.iter().filter(|ip| ip.is_ipv4() == via.is_ipv4()) {
            fabric.routes.insert(Route { table: PODS, to: host_net(*address), via, index, onlink: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Vxlan;
    use crate::device::uplink::Segment;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn devices() -> NodeDevices {
        let segment = |address: &str, range: &str| Segment { index: 2, address: ip(address), range: net(range) };
        NodeDevices {
            segments: vec![segment("192.0.2.1", "192.0.2.0/24"), segment("2001:db8::1", "2001:db8::/64")],
            ..NodeDevices::default()
        }
    }

    fn peer(addresses: &[&str], ranges: &[&str]) -> NodeIn {
        let internal: Vec<IpAddr> = addresses.iter().map(|a| ip(a)).collect();
        NodeIn {
            pod_cidrs: ranges.iter().map(|r| net(r)).collect(),
            addresses: internal.iter().copied().collect(),
            internal,
            ..NodeIn::default()
        }
    }

    fn peers() -> BTreeMap<String, NodeIn> {
        BTreeMap::from([
            ("near".into(), peer(&["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24", "fd00:2::/64"])),
            ("far".into(), peer(&["198.51.100.3"], &["10.244.3.0/24"])),
            ("new".into(), peer(&["192.0.2.4"], &[])),
        ])
    }

    const OWN: [&str; 1] = ["10.244.1.0/24"];

    fn planned(routing: Routing) -> Fabric {
        let devices = devices();
        let through = tunnel(&routing, &devices, &[ip("192.0.2.1")], 1500).map(|t| (t, 9));
        plan(&routing, &devices, &OWN.map(net), &peers(), through)
    }

    #[test]
    fn neighbours_are_routed_to_and_others_told_of() {
        let fabric = planned(Routing::Native);
        let to = |to: &str, via: &str| Route { table: MAIN, to: net(to), via: ip(via), index: 2, onlink: false };
        assert_eq!(fabric.routes, BTreeSet::from([to("10.244.2.0/24", "192.0.2.2"), to("fd00:2::/64", "2001:db8::2")]));
        assert_eq!((fabric.problems.len(), fabric.rules.len()), (1, 0));
        assert!(fabric.problems[0].contains("10.244.3.0/24 of node far"), "{:?}", fabric.problems);
    }

    #[test]
    fn a_tunnel_leads_to_all_and_takes_no_packets_of_nodes() {
        let settings = Vxlan { vni: 7, port: 4789 };
        let fabric = planned(Routing::Vxlan(settings));
        assert!(fabric.problems.is_empty());
        assert_eq!(fabric.ends.nodes.values().copied().collect::<BTreeSet<_>>(), BTreeSet::from([ip("192.0.2.2"), ip("198.51.100.3")]));
        assert_eq!(fabric.ends.neighbours.len(), 3, "one a range");
        assert!(fabric.routes.iter().all(|r| r.index == 9 && r.onlink));
        let of_nodes: Vec<u32> = fabric.routes.iter().filter(|r| r.to.prefix_len() == r.to.max_prefix_len()).map(|r| r.table).collect();
        assert_eq!(of_nodes, [PODS, PODS, PODS], "addresses of nodes are for packets of pods alone");
        assert_eq!(fabric.rules, BTreeSet::from(OWN.map(net)));
    }

    #[test]
    fn where_both_are_possible_only_far_nodes_are_behind_the_tunnel() {
        let fabric = planned(Routing::Auto(Vxlan { vni: 7, port: 4789 }));
        assert!(fabric.problems.is_empty());
        assert_eq!(fabric.ends.nodes.values().copied().collect::<Vec<_>>(), [ip("198.51.100.3")]);
        assert_eq!(fabric.routes.iter().filter(|r| r.index == 2).count(), 2);
    }

    #[test]
    fn the_tunnel_takes_its_overhead_from_the_mtu() {
        let settings = Vxlan { vni: 7, port: 4789 };
        assert_eq!(tunnel(&Routing::Native, &devices(), &[], 1500), None);
        let v4 = tunnel(&Routing::Vxlan(settings), &devices(), &[], 1500).unwrap();
        assert_eq!((v4.local, v4.mtu), (ip("192.0.2.1"), 1450));
        assert_eq!(tunnel(&Routing::Auto(settings), &devices(), &[ip("2001:db8::1")], 1500).unwrap().mtu, 1430);
    }
}
