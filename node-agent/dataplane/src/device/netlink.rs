//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;

/// A netlink connection; it lives in the namespace it was opened in, whichever thread uses it.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
    /// The kernel answers one dump a socket at a time (EBUSY otherwise).
    dump: Arc<Mutex<()>>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kernel's number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Carries packets: up, with carrier, its queues at work.
    pub running: bool,
    /// It is the loopback device.
    pub loopback: bool,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits all addresses of the link have.
    pub prefix: u8,
}

pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        other => io::Error::other(other),
    }
}

pub(super) fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}

impl Netlink {
    /// In the namespace of the calling thread. Needs a tokio runtime.
    pub fn here() -> io::Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Netlink { handle, dump: Arc::default() })
    }

    /// In the namespace at `path`. Blocks for as long as it takes to start a thread.
    pub fn at(path: &Path) -> io::Result<Netlink> {
        let runtime = tokio::runtime::Handle::current();
        super::netns::within(path, move || {
            let _guard = runtime.enter();
            Netlink::here()
        })
    }

    /// For the files beside this one.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Held while a dump runs.
    pub(super) async fn one_dump(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.dump.lock().await
    }

    /// Every device.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let _one_dump = self.dump.lock().await;
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(io_error)?;
        Ok(messages.iter().map(link).collect())
    }

    /// A device by its name.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = Box::pin(self.handle.link().get().match_name(name).execute());
        match found.try_next().await.map_err(io_error) {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(e) if is(&e, libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every address of every device.
    pub async fn addresses(&self) -> io::Result<Vec<Address>> {
        let _one_dump = self.dump.lock().await;
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(io_error)?;
        let address = |m: &netlink_packet_route::address::AddressMessage| {
            let of = |local: bool| {
                m.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            // On a point-to-point link ADDRESS is the peer's.
            Some(Address { index: m.header.index, ip: of(true).or_else(|| of(false))?, prefix: m.header.prefix_len })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Brings a device up.
    pub async fn up(&self, index: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).up().build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Sets the largest packet.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).mtu(mtu).build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Removes a device; one that is gone is no error.
    pub async fn delete(&self, index: u32) -> io::Result<()> {
        match self.handle.link().del(index).execute().await.map_err(io_error) {
            Err(e) if !is(&e, libc::ENODEV) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Adds an address that only this machine knows: it is no source for packets to others.
    pub async fn add_own_address(&self, index: u32, ip: IpAddr) -> io::Result<()> {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, ip, bits).replace();
        let message = request.message_mut();
        message.header.scope = AddressScope::Host;
        if ip.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
            // An address of IPv6 has the scope that its prefix says. One that is deprecated is a source only if asked for
            // (RFC 6724, rule 3): else it would be that of packets to pods, which have more of it in common than the node's own.
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        request.execute().await.map_err(io_error)
    }

    /// Removes an address; one that is not there is no error.
    pub async fn remove_address(&self, index: u32, ip: IpAddr) -> io::Result<()> {
        let found: Vec<_> = {
            let _one_dump = self.dump.lock().await;
            let query = self.handle.address().get().set_link_index_filter(index).set_address_filter(ip);
            query.execute().try_collect().await.map_err(io_error)?
        };
        for message in found {
            match self.handle.address().del(message).execute().await.map_err(io_error) {
                Err(e) if !is(&e, libc::EADDRNOTAVAIL) => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// A neighbour that is never asked for.
    pub async fn add_neighbour(&self, index: u32, ip: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        self.handle.neighbours().add(index, ip).link_layer_address(&mac).replace().execute().await.map_err(io_error)
    }

    /// Addresses that have a route of their own by a device.
    pub async fn host_routes(&self, index: u32) -> io::Result<Vec<IpAddr>> {
        let _one_dump = self.dump.lock().await;
        let mut found = Vec::new();
        let queries = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for query in queries {
            let mut routes = Box::pin(self.handle.route().get(query).execute());
            while let Some(route) = routes.try_next().await.map_err(io_error)? {
                let by = route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(i) if *i == index));
                let to = route.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) if route.header.destination_prefix_length == 32 => {
                        Some(IpAddr::V4(*ip))
                    }
                    RouteAttribute::Destination(RouteAddress::Inet6(ip)) if route.header.destination_prefix_length == 128 => {
                        Some(IpAddr::V6(*ip))
                    }
                    _ => None,
                });
                if by && route.header.table == 254 {
                    found.extend(to);
                }
            }
        }
        Ok(found)
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 1500,
        up: message.header.flags.contains(LinkFlags::Up),
        running: false,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.running = *state == State::Up,
            _ => {}
        }
    }
    link
}
