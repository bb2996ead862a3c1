//! What is known of the cluster, indexed by what is asked for. Objects come and go one by one; a change costs what that
//! object holds, never what the cluster does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::Name;

/// Namespace and name of an object, in lower case as the API keeps them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl Key {
    /// Of a namespaced object.
    pub fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty for the only port of a Service.
    pub name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Its number.
    pub number: u16,
}

/// A Service, cut down to what names need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Where its name leads.
    pub target: Target,
    /// Its ports.
    pub ports: Vec<Port>,
    /// It stands for the nodes' own name servers: nobody else answers at its address.
    pub is_node_dns: bool,
}

/// Where the name of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To its own addresses, the primary family first.
    Addresses(Vec<IpAddr>),
    /// To its endpoints.
    Endpoints,
    /// To another name.
    Alias(Name),
    /// Nowhere: an external name that is none.
    Nothing,
}

/// Ready endpoints of a Service that share their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service.
    pub service: Key,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its own name below the Service's, if it was given one.
    pub hostname: Option<Box<str>>,
}

impl Endpoint {
    /// Its label below the Service's name: the given one, else one made of its address.
    pub fn label(&self) -> String {
        match (&self.hostname, self.address) {
            (Some(name), _) => name.to_string(),
            (None, IpAddr::V4(address)) => address.to_string().replace('.', "-"),
            (None, IpAddr::V6(address)) => dashed(&address.to_string()),
        }
    }

    fn has_label(&self, label: &str) -> bool {
        match &self.hostname {
            Some(name) => name.eq_ignore_ascii_case(label),
            None => self.label() == label,
        }
    }
}

/// An IPv6 address as a label: labels neither begin nor end with a dash.
fn dashed(address: &str) -> String {
    let label = address.replace(':', "-");
    let start = if label.starts_with('-') { "0" } else { "" };
    let end = if label.ends_with('-') { "0" } else { "" };
    format!("{start}{label}{end}")
}

/// Everything names are answered from.
#[derive(Debug, Default)]
pub struct Records {
    namespaces: HashSet<Box<str>>,
    services: HashMap<Key, Service>,
    slices: HashMap<Key, Slice>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
    /// Services by their own addresses.
    owners: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// Endpoints with a name of their own, by address: Service and name.
    named: BTreeMap<IpAddr, BTreeMap<(Key, Box<str>), usize>>,
    serial: u32,
}

impl Records {
    /// A namespace came or went.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        let changed = if exists { self.namespaces.insert(name.into()) } else { self.namespaces.remove(name) };
        self.serial = self.serial.wrapping_add(u32::from(changed));
    }

    /// A Service as it is now; `None` when it is gone.
    pub fn set_service(&mut self, key: Key, service: Option<Service>) {
        let old = self.services.remove(&key);
        if old == service {
            if let Some(same) = old {
                self.services.insert(key, same);
            }
            return;
        }
        for address in addresses(old.as_ref()) {
            if let Some(owners) = self.owners.get_mut(address) {
                owners.remove(&key);
                if owners.is_empty() {
                    self.owners.remove(address);
                }
            }
        }
        for address in addresses(service.as_ref()) {
            self.owners.entry(*address).or_default().insert(key.clone());
        }
        if let Some(service) = service {
            self.services.insert(key, service);
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// An EndpointSlice as it is now; `None` when it is gone.
    pub fn set_slice(&mut self, key: Key, slice: Option<Slice>) {
        let old = self.slices.remove(&key);
        if old == slice {
            if let Some(same) = old {
                self.slices.insert(key, same);
            }
            return;
        }
        if let Some(old) = old {
            if let Some(slices) = self.slices_of.get_mut(&old.service) {
                slices.remove(&key);
                if slices.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            for (address, name) in old.endpoints.iter().filter_map(|e| Some((e.address, e.hostname.clone()?))) {
                self.unname(address, &(old.service.clone(), name));
            }
        }
        if let Some(slice) = slice {
            self.slices_of.entry(slice.service.clone()).or_default().insert(key.clone());
            for (address, name) in slice.endpoints.iter().filter_map(|e| Some((e.address, e.hostname.clone()?))) {
                *self.named.entry(address).or_default().entry((slice.service.clone(), name)).or_default() += 1;
            }
            self.slices.insert(key, slice);
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// The same name may stand in several slices.
    fn unname(&mut self, address: IpAddr, name: &(Key, Box<str>)) {
        let Some(names) = self.named.get_mut(&address) else { return };
        match names.get_mut(name) {
            Some(times) if *times > 1 => *times -= 1,
            _ => {
                names.remove(name);
            }
        }
        if names.is_empty() {
            self.named.remove(&address);
        }
    }

    /// Names of the Services, for a full replacement.
    pub fn service_keys(&self) -> Vec<Key> {
        self.services.keys().cloned().collect()
    }

    /// Names of the slices, for a full replacement.
    pub fn slice_keys(&self) -> Vec<Key> {
        self.slices.keys().cloned().collect()
    }

    /// Names of the namespaces, for a full replacement.
    pub fn namespaces(&self) -> Vec<Box<str>> {
        self.namespaces.iter().cloned().collect()
    }

    /// Counts changes: the serial number of the zone.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether there is such a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// A Service by its name.
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.get(key)
    }

    /// The Service with this address as its own, the first by name should there be several.
    pub fn service_at(&self, address: IpAddr) -> Option<(&Key, &Service)> {
        let key = self.owners.get(&address)?.first()?;
        Some((key, self.services.get(key)?))
    }

    /// Endpoints with a name of their own at this address: Service and name.
    pub fn names_at(&self, address: IpAddr) -> impl Iterator<Item = (&Key, &str)> {
        self.named.get(&address).into_iter().flatten().map(|((service, name), _)| (service, &**name))
    }

    /// Ready endpoints of a Service, each with the ports of its slice; those with this label if one is given.
    pub fn endpoints<'a>(&'a self, service: &Key, label: Option<&'a str>) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> {
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (endpoint, &*slice.ports)));
        endpoints.filter(move |(endpoint, _)| label.is_none_or(|label| endpoint.has_label(label)))
    }
}

fn addresses(service: Option<&Service>) -> &[IpAddr] {
    match service.map(|service| &service.target) {
        Some(Target::Addresses(addresses)) => addresses,
        Some(Target::Endpoints | Target::Alias(_) | Target::Nothing) | None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(endpoints: &[(&str, Option<&str>)]) -> Slice {
        let endpoint =
            |(address, name): &(&str, Option<&str>)| Endpoint { address: address.parse().unwrap(), hostname: name.map(Into::into) };
        Slice { service: Key::new("n", "s"), ports: Vec::new(), endpoints: endpoints.iter().map(endpoint).collect() }
    }

    #[test]
    fn what_is_taken_away_leaves_no_trace() {
        let mut records = Records::default();
        let service = Service { target: Target::Addresses(vec!["10.0.0.1".parse().unwrap()]), ports: Vec::new(), is_node_dns: false };
        records.set_service(Key::new("n", "s"), Some(service));
        records.set_slice(Key::new("n", "a"), Some(slice(&[("10.1.0.1", Some("x")), ("10.1.0.2", None)])));
        records.set_slice(Key::new("n", "b"), Some(slice(&[("10.1.0.1", Some("x"))])));
        let at = |records: &Records| records.names_at("10.1.0.1".parse().unwrap()).count();
        assert_eq!(at(&records), 1);
        records.set_slice(Key::new("n", "a"), None);
        assert_eq!(at(&records), 1, "the other slice still names it");
        records.set_slice(Key::new("n", "b"), Some(slice(&[("10.1.0.9", Some("x"))])));
        assert_eq!(at(&records), 0);
        records.set_slice(Key::new("n", "b"), None);
        records.set_service(Key::new("n", "s"), None);
        assert!(records.owners.is_empty() && records.named.is_empty() && records.slices_of.is_empty());
    }

    #[test]
    fn the_serial_counts_changes_alone() {
        let mut records = Records::default();
        records.set_slice(Key::new("n", "a"), Some(slice(&[("10.1.0.1", None)])));
        let before = records.serial();
        records.set_slice(Key::new("n", "a"), Some(slice(&[("10.1.0.1", None)])));
        assert_eq!(records.serial(), before);
        records.set_slice(Key::new("n", "a"), Some(slice(&[])));
        assert_ne!(records.serial(), before);
    }

    #[test]
    fn labels_of_endpoints() {
        let label = |address: &str| Endpoint { address: address.parse().unwrap(), hostname: None }.label();
        assert_eq!(label("10.1.0.1"), "10-1-0-1");
        assert_eq!(label("fd00:1::7"), "fd00-1--7");
        assert_eq!(label("fd00::"), "fd00--0");
    }
}
