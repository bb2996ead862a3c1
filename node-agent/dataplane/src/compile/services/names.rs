//! From numbers in maps back to the objects they stand for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use xebec_ebpf_abi::{Addr, FrontendKey, Port};

use super::{Owner, Services};
use crate::compile::expand;
use crate::compile::input::{Key, ServiceIn};

/// What a number in `Frontend::service` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A port of a Service: the Service, the port's name (empty: it has none) and number.
    Service(Key, String, u16),
    /// A host port of the sandbox with this endpoint number.
    HostPort(u32),
}

impl Services {
    /// Whose the number is.
    pub fn named(&self, service: u32) -> Option<Named> {
        self.installed.iter().find_map(|(owner, ports)| {
            let (name, _, port, _) = &ports.iter().find(|(_, installed)| installed.ids.service == service)?.0;
            Some(match owner {
                Owner::Service(key) => Named::Service(Key::clone(key), name.clone(), *port),
                Owner::Sandbox(Reverse(endpoint)) => Named::HostPort(*endpoint),
            })
        })
    }

    /// Whose the numbers are that somebody wants.
    pub fn names(&self, wanted: impl Fn(u32) -> bool) -> BTreeMap<u32, Named> {
        let ports = self.installed.iter().flat_map(|(owner, ports)| ports.iter().map(move |(id, installed)| (owner, id, installed)));
        let named = ports.filter(|(_, _, installed)| wanted(installed.ids.service)).map(|(owner, (name, _, port, _), installed)| {
            let named = match owner {
                Owner::Service(key) => Named::Service(Key::clone(key), name.clone(), *port),
                Owner::Sandbox(Reverse(endpoint)) => Named::HostPort(*endpoint),
            };
            (installed.ids.service, named)
        });
        named.collect()
    }

    /// Whether it is some port's number.
    pub fn is_number(&self, service: u32) -> bool {
        self.numbers.services.contains(&service)
    }

    /// The number of what is served at an address.
    pub fn number_at(&self, address: Addr, port: Port, proto: u8) -> Option<u32> {
        let serves = |key: FrontendKey| self.tables.frontends.have().get(&key).map(|f| f.service).filter(|number| *number != 0);
        let own = || address.is_loopback() || self.node.addresses.contains(&address.to_ip());
        let node_port = || own().then(|| serves(FrontendKey::node_port(address.is_v4(), port, proto))).flatten();
        serves(FrontendKey::new(address, port, proto)).or_else(node_port)
    }

    /// The EndpointSlice that names this endpoint of a Service.
    pub fn slice_of(&self, service: &Key, address: IpAddr, port: u16) -> Option<&Key> {
        let address = expand::addr(address);
        self.slices_of.get(service)?.iter().map(|key| &**key).find(|key| {
            self.slices.get(*key).is_some_and(|slice| {
                slice.ports.iter().any(|(_, _, number)| *number == port)
                    && slice.endpoints.iter().any(|e| expand::addr(e.address) == address)
            })
        })
    }

    /// A Service as watched.
    pub fn service(&self, key: &Key) -> Option<&ServiceIn> {
        self.services.get(key)
    }
}
