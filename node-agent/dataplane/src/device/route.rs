//! Routes and rules of the agent's own: marked with a protocol number, compared, and only the difference written.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::netlink::{Netlink, io_error, is};

/// Marks routes and rules as the agent's (no daemon that is known to `ip route` has it).
pub const PROTOCOL: u8 = 120;
/// Of our routes: behind what an administrator adds without one.
pub const METRIC: u32 = 200;
/// The main table.
pub const MAIN: u32 = 254;
/// Ways that only pods' packets take.
pub const PODS: u32 = 120;

/// A way to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Table.
    pub table: u32,
    /// Range.
    pub to: IpNet,
    /// Next hop.
    pub via: IpAddr,
    /// Device.
    pub index: u32,
    /// The next hop is on the device's link although no address says so.
    pub onlink: bool,
}

/// Packets from a range look in [`PODS`] first.
pub type Rule = IpNet;

impl Netlink {
    /// Makes the agent's routes these. Returns what failed.
    pub async fn put_routes(&self, wanted: &BTreeSet<Route>) -> io::Result<Vec<(Route, io::Error)>> {
        let found = self.own_routes().await?;
        let mut failed = Vec::new();
        for (route, message) in &found {
            if !wanted.contains(route)
                && let Err(error) = self.handle().route().del(message.clone()).execute().await.map_err(io_error)
                && !is(&error, libc::ESRCH)
            {
                failed.push((*route, error));
            }
        }
        for route in wanted.iter().filter(|r| !found.iter().any(|(f, _)| f == *r)) {
            if let Err(error) = self.handle().route().add(message(route)).replace().execute().await.map_err(io_error) {
                failed.push((*route, error));
            }
        }
        Ok(failed)
    }

    async fn own_routes(&self) -> io::Result<Vec<(Route, RouteMessage)>> {
        let _one_dump = self.one_dump().await;
        let mut found = Vec::new();
        for query in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let mut routes = Box::pin(self.handle().route().get(query).execute());
            while let Some(message) = routes.try_next().await.map_err(io_error)? {
                if u8::from(message.header.protocol) == PROTOCOL
                    && let Some(route) = route(&message)
                {
                    found.push((route, message));
                }
            }
        }
        Ok(found)
    }

    /// Makes the agent's rules these.
    pub async fn put_rules(&self, wanted: &BTreeSet<Rule>) -> io::Result<()> {
        let mut found = BTreeSet::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let messages: Vec<RuleMessage> = {
                let _one_dump = self.one_dump().await;
                self.handle().rule().get(version).execute().try_collect().await.map_err(io_error)?
            };
            for message in messages {
                let Some(rule) = rule(&message) else { continue };
                // A second one of the same kind is of no use either.
                if !wanted.contains(&rule) || !found.insert(rule) {
                    match self.handle().rule().del(message).execute().await.map_err(io_error) {
                        Err(e) if !is(&e, libc::ENOENT) => return Err(e),
                        Ok(()) | Err(_) => {}
                    }
                }
            }
        }
        for rule in wanted.difference(&found) {
            let request = self.handle().rule().add().table_id(PODS).priority(PODS).action(RuleAction::ToTable);
            let mut message = match rule {
                IpNet::V4(net) => request.v4().source_prefix(net.network(), net.prefix_len()).message_mut().clone(),
                IpNet::V6(net) => request.v6().source_prefix(net.network(), net.prefix_len()).message_mut().clone(),
            };
            message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
            let mut add = self.handle().rule().add();
            *add.message_mut() = message;
            match add.execute().await.map_err(io_error) {
                Err(e) if !is(&e, libc::EEXIST) => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn message(route: &Route) -> RouteMessage {
    let protocol = RouteProtocol::from(PROTOCOL);
    macro_rules! build {
        ($family:ty, $to:expr, $via:expr) => {{
            let mut builder = RouteMessageBuilder::<$family>::new()
                .destination_prefix($to.network(), $to.prefix_len())
                .gateway($via)
                .output_interface(route.index)
                .priority(METRIC)
                .table_id(route.table)
                .protocol(protocol);
            if route.onlink {
                builder = builder.onlink();
            }
            builder.build()
        }};
    }
    match (route.to, route.via) {
        (IpNet::V4(to), IpAddr::V4(via)) => build!(Ipv4Addr, to, via),
        (IpNet::V6(to), IpAddr::V6(via)) => build!(Ipv6Addr, to, via),
        // Nobody makes one; the kernel refuses a route without a destination's family.
        (IpNet::V4(_) | IpNet::V6(_), _) => RouteMessage::default(),
    }
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let (mut to, mut via, mut index) = (None, None, 0);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(oif) => index = *oif,
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    use netlink_packet_route::route::RouteFlags;
    let to = IpNet::new(to?, message.header.destination_prefix_length).ok()?;
    Some(Route { table, to, via: via?, index, onlink: message.header.flags.contains(RouteFlags::Onlink) })
}

/// The range of a rule of ours.
fn rule(message: &RuleMessage) -> Option<Rule> {
    let mut source = None;
    let (mut table, mut ours) = (u32::from(message.header.table), false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => source = Some(*ip),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    (ours && table == PODS).then(|| IpNet::new(source?, message.header.src_len).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_was_written() {
        for (to, via) in [("10.244.3.0/24", "192.0.2.3"), ("fd00:3::/64", "2001:db8::3")] {
            let (to, via) = (to.parse().unwrap(), via.parse().unwrap());
            for (table, onlink) in [(MAIN, false), (PODS, true)] {
                let wanted = Route { table, to, via, index: 7, onlink };
                let message = message(&wanted);
                assert_eq!(route(&message), Some(wanted));
                assert_eq!(u8::from(message.header.protocol), PROTOCOL);
            }
        }
    }
}
