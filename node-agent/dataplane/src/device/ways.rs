//! What all routes together say of devices, whoever made them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric};
use rtnetlink::RouteMessageBuilder;

use super::netlink::{Netlink, io_error};
use super::route::MAIN;

/// What is read of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Devices of default routes of the main table, IPv4 before IPv6.
    pub defaults: Vec<u32>,
    /// Largest packets of routes that have one of their own (`mtu`), by device.
    pub sizes: Vec<(u32, u32)>,
}

impl Ways {
    /// The largest packet that every route of a device takes, where routes say so.
    pub fn size(&self, device: u32) -> Option<u32> {
        self.sizes.iter().filter(|(index, _)| *index == device).map(|(_, size)| *size).min()
    }

    fn add(&mut self, route: &RouteMessage) {
        // What the kernel has learnt of single addresses is no route.
        if route.header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        let is_default = route.header.destination_prefix_length == 0 && u32::from(route.header.table) == MAIN;
        let size = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|m| match m {
                RouteMetric::Mtu(size) => Some(*size),
                _ => None,
            }),
            _ => None,
        });
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => {
                    self.defaults.extend(is_default.then_some(*index));
                    self.sizes.extend(size.map(|size| (*index, size)));
                }
                RouteAttribute::MultiPath(hops) => self.sizes.extend(hops.iter().filter_map(|hop| Some((hop.interface_index, size?)))),
                _ => {}
            }
        }
    }
}

impl Netlink {
    /// Reads every route.
    pub async fn ways(&self) -> io::Result<Ways> {
        let _one_dump = self.one_dump().await;
        let mut ways = Ways::default();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for query in [v4, v6] {
            let mut routes = Box::pin(self.handle().route().get(query).execute());
            while let Some(route) = routes.try_next().await.map_err(io_error)? {
                ways.add(&route);
            }
        }
        ways.defaults.dedup();
        Ok(ways)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn route(bits: u8, flags: RouteFlags, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.table = MAIN as u8;
        route.header.destination_prefix_length = bits;
        route.header.flags = flags;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_routes_own_size_counts_for_its_devices_and_what_was_learnt_does_not() {
        let size = |mtu: u32| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        let hop = |index: u32| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        let none = RouteFlags::empty();
        let mut ways = Ways::default();
        for route in [
            route(0, none, vec![RouteAttribute::Oif(2)]),
            route(24, none, vec![RouteAttribute::Oif(3), size(1400)]),
            route(16, none, vec![RouteAttribute::Oif(3), size(1300)]),
            route(8, none, vec![size(1200), RouteAttribute::MultiPath(vec![hop(4), hop(5)])]),
            route(32, RouteFlags::Cloned, vec![RouteAttribute::Oif(2), size(1280)]),
        ] {
            ways.add(&route);
        }
        assert_eq!(ways.defaults, [2]);
        assert_eq!([2, 3, 4, 5].map(|device| ways.size(device)), [None, Some(1300), Some(1200), Some(1200)]);
    }
}
