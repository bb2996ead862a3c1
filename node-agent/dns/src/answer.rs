//! Question to answer, by the Kubernetes DNS specification 1.1.0. Pure.
//!
//! Where the specification is silent, CoreDNS's `kubernetes` plugin is followed as kubeadm sets it up: what does not exist is
//! NXDOMAIN, what exists without records of the type asked for is an empty answer, both with the zone's SOA; a headless Service
//! without ready endpoints does not exist; pod names are computed, not looked up; there are no wildcards.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::place::{Place, place};
use crate::records::{Key, Port, Records, Target};

/// Version of the specification, as `dns-version` tells it.
const SCHEMA_VERSION: &str = "1.1.0";
const SCHEMA_TTL: u32 = 28800;
/// Names are answered from this node's memory, so asking again is cheap, and a short life keeps headless Services fresh.
const TTL: u32 = 5;
/// Aliases that lead to aliases within the cluster.
const MAX_ALIASES: usize = 8;

/// What this server speaks for.
#[derive(Clone, Debug)]
pub struct Zones {
    /// The cluster's domain.
    pub domain: Name,
    /// Where it answers.
    pub servers: Vec<IpAddr>,
    /// Ranges of Services and pods: reverse names in them are ours alone.
    pub ranges: Vec<IpNet>,
}

/// What is to be done with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is answered here.
    Ours(Reply),
    /// So far, by aliases, it is; the rest is for `target`, which somebody else answers.
    Continue {
        /// The aliases up to `target`.
        aliases: Vec<Record>,
        /// What to ask for instead.
        target: Name,
    },
    /// Somebody else answers it.
    Forward,
}

/// Contents of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its response code.
    pub code: ResponseCode,
    /// It speaks for the zone.
    pub authoritative: bool,
    /// The sections.
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

impl Reply {
    /// Nothing but a code.
    pub fn code(code: ResponseCode) -> Reply {
        Reply { code, ..Reply::default() }
    }
}

/// What there is at a name.
enum Found {
    /// There is no such name, nor one below it.
    Missing,
    /// It is there, with these records, perhaps none of the type asked for.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    Alias(Name),
}

impl Found {
    fn nothing() -> Found {
        Found::Records { answers: Vec::new(), additionals: Vec::new() }
    }

    fn answers(answers: Vec<Record>) -> Found {
        Found::Records { answers, additionals: Vec::new() }
    }
}

/// Answers a question of class IN.
pub fn answer(zones: &Zones, records: &Records, name: &Name, kind: RecordType) -> Answer {
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return match zones.domain.zone_of(name) {
            true => Answer::Ours(Reply::code(ResponseCode::Refused)),
            false => Answer::Forward,
        };
    }
    if zones.domain.zone_of(name) {
        return within(zones, records, name, kind);
    }
    match name.parse_arpa_name() {
        Ok(net) => reverse(zones, records, name, kind, net),
        Err(_) => Answer::Forward,
    }
}

/// The cluster's domain, following aliases as long as they stay in it.
fn within(zones: &Zones, records: &Records, name: &Name, kind: RecordType) -> Answer {
    let mut aliases = Vec::new();
    let mut at = name.clone();
    loop {
        let (code, answers, additionals) = match look(zones, records, &at, kind) {
            Found::Missing => (ResponseCode::NXDomain, Vec::new(), Vec::new()),
            Found::Records { answers, additionals } => (ResponseCode::NoError, answers, additionals),
            Found::Alias(target) => {
                aliases.push(Record::from_rdata(at, TTL, RData::CNAME(CNAME(target.clone()))));
                if kind == RecordType::CNAME || kind == RecordType::ANY {
                    (ResponseCode::NoError, Vec::new(), Vec::new())
                } else if aliases.len() > MAX_ALIASES {
                    return Answer::Ours(Reply::code(ResponseCode::ServFail));
                } else if zones.domain.zone_of(&target) {
                    at = target;
                    continue;
                } else {
                    return Answer::Continue { aliases, target };
                }
            }
        };
        let empty = answers.is_empty() && (aliases.is_empty() || !matches!(kind, RecordType::CNAME | RecordType::ANY));
        let authorities = if empty { vec![soa(&zones.domain, records)] } else { Vec::new() };
        aliases.extend(answers);
        return Answer::Ours(Reply { code, authoritative: true, answers: aliases, authorities, additionals });
    }
}

fn look(zones: &Zones, records: &Records, name: &Name, kind: RecordType) -> Found {
    match place(&zones.domain, name) {
        Place::Apex => match kind {
            RecordType::SOA => Found::answers(vec![soa(name, records)]),
            RecordType::NS => {
                let server = name_server(zones, records);
                let additionals = every_address(&server, &zones.servers);
                let answers = vec![Record::from_rdata(name.clone(), TTL, RData::NS(NS(server)))];
                Found::Records { answers, additionals }
            }
            _ => Found::nothing(),
        },
        Place::Version if kind == RecordType::TXT => {
            let text = TXT::new(vec![SCHEMA_VERSION.to_owned()]);
            Found::answers(vec![Record::from_rdata(name.clone(), SCHEMA_TTL, RData::TXT(text))])
        }
        Place::Version | Place::Branch => Found::nothing(),
        Place::NameServer => Found::answers(addresses(name, kind, zones.servers.iter().copied())),
        Place::Namespace(namespace) if records.has_namespace(&namespace) => Found::nothing(),
        Place::Pod { namespace, address } if records.has_namespace(&namespace) => {
            Found::answers(addresses(name, kind, std::iter::once(address)))
        }
        Place::Service { namespace, service } => {
            look_service(zones, records, &Asked { key: Key::new(&namespace, &service), label: None, port: None }, name, kind)
        }
        Place::Endpoint { namespace, service, label } => {
            look_service(zones, records, &Asked { key: Key::new(&namespace, &service), label: Some(&label), port: None }, name, kind)
        }
        Place::Port { namespace, service, protocol, port } => {
            let port = Some((&*protocol, Some(&*port)));
            look_service(zones, records, &Asked { key: Key::new(&namespace, &service), label: None, port }, name, kind)
        }
        Place::Protocol { namespace, service, protocol } => {
            let port = Some((&*protocol, None));
            look_service(zones, records, &Asked { key: Key::new(&namespace, &service), label: None, port }, name, kind)
        }
        Place::Namespace(_) | Place::Pod { .. } | Place::Unknown => Found::Missing,
    }
}

/// A Service, or something of it.
struct Asked<'a> {
    key: Key,
    /// Of an endpoint.
    label: Option<&'a str>,
    /// Protocol, and name of a port with it.
    port: Option<(&'a str, Option<&'a str>)>,
}

impl Asked<'_> {
    fn is_meant(&self, port: &Port) -> bool {
        match self.port {
            None => true,
            Some((protocol, None)) => port.protocol == protocol && !port.name.is_empty(),
            Some((protocol, Some(name))) => port.protocol == protocol && !name.is_empty() && *port.name == *name,
        }
    }
}

/// Where a port is served: by a name and its addresses.
struct Serving {
    target: Name,
    addresses: Vec<IpAddr>,
    port: u16,
}

fn look_service(zones: &Zones, records: &Records, asked: &Asked<'_>, name: &Name, kind: RecordType) -> Found {
    let Some(service) = records.service(&asked.key) else { return Found::Missing };
    let (mut found, mut serving): (BTreeSet<IpAddr>, Vec<Serving>) = (BTreeSet::new(), Vec::new());
    let mut is_there = false;
    let own = match (&service.target, asked.label) {
        (Target::Nothing, _) => return Found::Missing,
        (Target::Alias(target), None) if asked.port.is_none() => return Found::Alias(target.clone()),
        (Target::Alias(_), _) => return Found::Missing,
        (Target::Addresses(own), None) => Some(own),
        (Target::Addresses(_) | Target::Endpoints, _) => None,
    };
    match own {
        Some(own) => {
            is_there = asked.port.is_none();
            found.extend(own);
            let Some(target) = name_of(zones, None, &asked.key) else { return Found::Missing };
            for port in service.ports.iter().filter(|p| asked.is_meant(p)) {
                is_there = true;
                serving.push(Serving { target: target.clone(), addresses: own.clone(), port: port.number });
            }
        }
        None => {
            for (endpoint, ports) in records.endpoints(&asked.key, asked.label) {
                is_there |= asked.port.is_none();
                found.insert(endpoint.address);
                // A label the API would not have taken leads nowhere.
                let Some(target) = name_of(zones, Some(&endpoint.label()), &asked.key) else { continue };
                for port in ports.iter().filter(|p| asked.is_meant(p)) {
                    is_there = true;
                    serving.push(Serving { target: target.clone(), addresses: vec![endpoint.address], port: port.number });
                }
            }
        }
    }
    if !is_there {
        return Found::Missing;
    }
    match kind {
        RecordType::A | RecordType::AAAA if asked.port.is_none() => Found::answers(addresses(name, kind, found)),
        RecordType::SRV if !matches!(asked.port, Some((_, None))) => services(name, serving),
        _ => Found::nothing(),
    }
}

/// SRV records and the addresses of their targets. Several endpoints may share a name, and a name several ports.
fn services(name: &Name, serving: Vec<Serving>) -> Found {
    let places: BTreeSet<(Name, u16)> = serving.iter().map(|s| (s.target.clone(), s.port)).collect();
    let weight = u16::try_from(100 / places.len().max(1)).unwrap_or(1).max(1);
    let record = |(target, port): (Name, u16)| Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target)));
    let mut told: BTreeSet<(Name, IpAddr)> = BTreeSet::new();
    for place in serving {
        told.extend(place.addresses.iter().map(|address| (place.target.clone(), *address)));
    }
    let additionals = told.into_iter().map(|(target, address)| address_record(&target, address));
    Found::Records { answers: places.into_iter().map(record).collect(), additionals: additionals.collect() }
}

/// Reverse names: of what is known, and of everything in our ranges.
fn reverse(zones: &Zones, records: &Records, name: &Name, kind: RecordType, net: IpNet) -> Answer {
    let whole = net.prefix_len() == net.max_prefix_len();
    let names: Vec<Name> = if whole { names_at(zones, records, net.addr()) } else { Vec::new() };
    let ours = zones.ranges.iter().any(|range| range.contains(&net));
    if names.is_empty() && !ours {
        return Answer::Forward;
    }
    let code = if names.is_empty() && whole { ResponseCode::NXDomain } else { ResponseCode::NoError };
    let answers: Vec<Record> = match kind {
        RecordType::PTR => names.into_iter().map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect(),
        _ => Vec::new(),
    };
    let tree = name.trim_to(2).to_lowercase();
    let authorities = if answers.is_empty() { vec![soa(&tree, records)] } else { Vec::new() };
    Answer::Ours(Reply { code, authoritative: true, answers, authorities, additionals: Vec::new() })
}

/// A Service's own address names the Service; an endpoint's names the endpoint if it has a name of its own.
fn names_at(zones: &Zones, records: &Records, address: IpAddr) -> Vec<Name> {
    match records.service_at(address) {
        Some((key, _)) => name_of(zones, None, key).into_iter().collect(),
        None => records.names_at(address).filter_map(|(key, label)| name_of(zones, Some(label), key)).collect(),
    }
}

/// `None` if it would be longer than a name may be.
fn name_of(zones: &Zones, label: Option<&str>, key: &Key) -> Option<Name> {
    let labels = label.into_iter().chain([&*key.name, &*key.namespace, "svc"]).map(str::as_bytes);
    Name::from_labels(labels).ok()?.append_domain(&zones.domain).ok()
}

/// The Service that has a server's address, else a name of the zone's own.
fn name_server(zones: &Zones, records: &Records) -> Name {
    let service = zones.servers.iter().find_map(|server| records.service_at(*server));
    service.and_then(|(key, _)| name_of(zones, None, key)).unwrap_or_else(|| below("ns.dns", &zones.domain))
}

fn below(labels: &str, zone: &Name) -> Name {
    // A zone so long that it has no room for the label names itself.
    Name::from_ascii(labels).and_then(|name| name.append_domain(zone)).unwrap_or_else(|_| zone.clone())
}

fn addresses(name: &Name, kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
    let of_kind = |address: &IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    };
    addresses.into_iter().filter(of_kind).map(|address| address_record(name, address)).collect()
}

fn every_address(name: &Name, addresses: &[IpAddr]) -> Vec<Record> {
    addresses.iter().map(|address| address_record(name, *address)).collect()
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

fn soa(zone: &Name, records: &Records) -> Record {
    let (server, mailbox) = (below("ns.dns", zone), below("hostmaster", zone));
    Record::from_rdata(zone.clone(), TTL, RData::SOA(SOA::new(server, mailbox, records.serial(), 7200, 1800, 86400, TTL)))
}
