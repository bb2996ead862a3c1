//! Services to map entries: gives out numbers, keeps what each Service wants, recompiles only what changed.

pub mod complaints;
pub mod names;
mod pool;
pub mod room;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use xebec_ebpf_abi::{Backend, BackendSet, Frontend, FrontendKey, SourceRangeKey};

use super::expand::{self, BackendKey, NodeFacts, PortSpec, Role, SetSpec};
use super::input::{EndpointIn, Forwarding, HostPortIn, Key, ServiceIn, SliceIn};
use super::maglev::{self, Member};
use super::rings::RingTables;
use super::sets::Set;
use crate::sorted::Sorted;
use crate::table::Table;
use crate::{ByFamily, HealthCheck};
use pool::Pool;
use room::{Entries, Refusal};

/// Who wants a frontend. The order decides who gets an address that two want.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A Service.
    Service(Arc<Key>),
    /// A local sandbox with host ports, by the number of its endpoint. Numbers rise: the sandbox that was made
    /// last has the port, and one that is gone leaves it to whoever is left.
    Sandbox(Reverse<u32>),
}

/// Load-balancer addresses of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// Of both families.
    pub addresses: Vec<IpAddr>,
    /// Nodes with ready endpoints, where others would drop what comes; none: every node can serve.
    pub only: Option<BTreeSet<String>>,
}

/// The maps of Services.
#[derive(Default)]
pub struct ServiceTables {
    /// `FRONTENDS`.
    pub frontends: Table<FrontendKey, Frontend>,
    /// `BACKEND_SETS`, `BACKEND_SLOTS`, `SET_MEMBERS`.
    pub sets: Table<u32, Set>,
    /// `RINGS`, `RING_PLACES`.
    pub rings: RingTables,
    /// `BACKENDS`.
    pub backends: Table<u32, Backend>,
    /// `SOURCE_RANGES` by prefix length and key.
    pub source_ranges: Table<(u32, SourceRangeKey), u32>,
}

#[derive(Clone, Copy, Default)]
struct PortIds {
    service: u32,
    cluster: u32,
    local: u32,
}

#[derive(Default)]
struct Installed {
    ids: PortIds,
    frontends: Box<[FrontendKey]>,
    /// Their numbers.
    backends: Box<[u32]>,
    source_ranges: Box<[(u32, SourceRangeKey)]>,
}

type PortId = (String, u8, u16, bool);

/// Services that are compiled at a time: what is to be written is kept until it is.
const PORTION: usize = 500;

/// Compiles Services, EndpointSlices and host ports.
#[derive(Default)]
pub struct Services {
    node: NodeFacts,
    services: BTreeMap<Arc<Key>, ServiceIn>,
    /// Those with a health check port.
    checked: BTreeSet<Arc<Key>>,
    /// Those whose addresses nodes answer for.
    announced: BTreeSet<Arc<Key>>,
    /// Those that say themselves that they are reached directly.
    direct: BTreeSet<Arc<Key>>,
    /// Those with annotations that mean nothing.
    mistaken: BTreeSet<Arc<Key>>,
    /// The same of EndpointSlices.
    mistaken_slices: BTreeSet<Arc<Key>>,
    slices: BTreeMap<Arc<Key>, SliceIn>,
    /// In the order of their names.
    slices_of: BTreeMap<Arc<Key>, Vec<Arc<Key>>>,
    node_names: Pool,
    host_ports: BTreeMap<u32, (Vec<HostPortIn>, Vec<IpAddr>)>,
    dirty: BTreeSet<Owner>,
    installed: BTreeMap<Owner, Box<[(PortId, Installed)]>>,
    /// In the order of the owners.
    claims: Sorted<FrontendKey, Vec<(Owner, Frontend)>>,
    /// Frontends more than one owner wants.
    contested: BTreeSet<FrontendKey>,
    /// Number and users.
    backends: Sorted<BackendKey, (u32, u32)>,
    numbers: Numbers,
    /// How many entries the maps take; none: that is not known, as in tests.
    room: Option<Entries>,
    /// The greatest number a backend shall have.
    most_backend: Option<u32>,
    /// And the greatest it can ever have.
    last_backend: Option<u32>,
    /// Wanted slots and members of all sets.
    slots: usize,
    members: usize,
    refused: BTreeMap<Owner, Refusal>,
    /// Entries in use when it was last found that there is no room.
    refused_at: Entries,
    /// Parts of rings when it was last seen that some have none.
    ringless_at: u64,
    /// What the maps shall hold.
    pub tables: ServiceTables,
    /// Places of a ring; 0: none are made.
    pub ring_size: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds, as of the next compilation.
    pub now: u64,
    /// Sets that are chosen from by slot because the map has no room for their ring.
    pub without_ring: BTreeSet<u32>,
}

/// Numbers in use. Fresh ones go upwards, so that one that was freed rests.
#[derive(Default)]
struct Numbers {
    next_backend: u32,
    next_set: u32,
    next_service: u32,
    sets: BTreeSet<u32>,
    services: BTreeSet<u32>,
    /// Backends the kernel held at start, until someone wants them.
    found: BTreeMap<BackendKey, u32>,
}

fn backend_key(b: &Backend) -> BackendKey {
    BackendKey { addr: b.addr, port: b.port, local: b.flags & Backend::LOCAL != 0 }
}

fn fresh(next: &mut u32, taken: impl Fn(u32) -> bool) -> u32 {
    loop {
        *next = next.wrapping_add(1).max(1);
        if !taken(*next) {
            return *next;
        }
    }
}

/// As [`fresh`], and not above `most` while there is one: connections are counted in an array, by the number of their backend.
fn fresh_below(next: &mut u32, most: Option<u32>, taken: impl Fn(u32) -> bool) -> u32 {
    let Some(most) = most else {
        return fresh(next, taken);
    };
    for _ in 0..most {
        *next = if *next < most { *next + 1 } else { 1 };
        if !taken(*next) {
            return *next;
        }
    }
    // What is wanted and what is not yet deleted may be more together.
    fresh(&mut most.clone(), taken)
}

impl Services {
    /// After the actual side of the tables was loaded: numbers found in the kernel are kept for the objects
    /// they stand for, so that a restart of the agent changes nothing.
    pub fn adopt_loaded(&mut self) {
        let backends = self.tables.backends.have();
        self.numbers.found = backends.iter().map(|(id, b)| (backend_key(b), *id)).collect();
        // A number that a ring still leads to must not become another backend's.
        let on_rings = self.tables.rings.highest_backend();
        self.numbers.next_backend = backends.keys().last().copied().unwrap_or(0).max(on_rings);
        self.numbers.next_set = self.tables.sets.have().keys().last().copied().unwrap_or(0);
        self.numbers.next_service = self.tables.frontends.have().values().map(|f| f.service).max().unwrap_or(0);
    }

    /// The node's name, zone or addresses changed.
    pub fn set_node(&mut self, node: NodeFacts) {
        if self.node != node {
            self.node = node;
            self.dirty.extend(self.services.keys().cloned().map(Owner::Service));
        }
    }

    /// One copy of a Service's name for all who keep it.
    fn name_of(&self, key: Key) -> Arc<Key> {
        let known = self.services.get_key_value(&key).map(|(name, _)| name);
        let known = known.or_else(|| self.slices_of.get_key_value(&key).map(|(name, _)| name)).cloned();
        known.unwrap_or_else(|| Arc::new(key))
    }

    /// A Service was added, changed, or (none) removed.
    pub fn set_service(&mut self, key: Key, service: Option<ServiceIn>) {
        let key = self.name_of(key);
        let mark = |holds: bool, set: &mut BTreeSet<Arc<Key>>| if holds { set.insert(key.clone()) } else { set.remove(&key) };
        mark(service.as_ref().is_some_and(|s| s.health_check.is_some()), &mut self.checked);
        mark(service.as_ref().is_some_and(|s| !s.announced.is_empty()), &mut self.announced);
        mark(service.as_ref().is_some_and(|s| s.forwarding == Some(Forwarding::Dsr)), &mut self.direct);
        mark(service.as_ref().is_some_and(|s| !s.mistakes.is_empty()), &mut self.mistaken);
        let changed = match service {
            Some(service) => {
                self.services.get(&key) != Some(&service) && {
                    self.services.insert(key.clone(), service);
                    true
                }
            }
            None => self.services.remove(&key).is_some(),
        };
        if changed {
            self.dirty.insert(Owner::Service(key));
        }
    }

    /// An EndpointSlice was added, changed, or (none) removed.
    pub fn set_slice(&mut self, key: Key, slice: Option<SliceIn>) {
        if self.slices.get(&key) == slice.as_ref() {
            return;
        }
        if let Some(old) = self.slices.remove(&key) {
            if let Some(of) = self.slices_of.get_mut(&old.service) {
                of.retain(|slice| **slice != key);
                if of.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            self.mistaken_slices.remove(&key);
            self.dirty.insert(Owner::Service(old.service));
        }
        if let Some(mut slice) = slice {
            let service = self.name_of(Key::clone(&slice.service));
            slice.service = service.clone();
            for name in slice.endpoints.iter_mut().filter_map(|e| e.node.as_mut()) {
                self.node_names.share(name);
            }
            let key = Arc::new(key);
            let of = self.slices_of.entry(service.clone()).or_default();
            if let Err(at) = of.binary_search(&key) {
                of.insert(at, key.clone());
            }
            if slice.mistake.is_some() {
                self.mistaken_slices.insert(key.clone());
            }
            self.dirty.insert(Owner::Service(service));
            self.slices.insert(key, slice);
        }
    }

    /// Whether clients' packets come here inside other nodes'.
    pub fn takes_direct(&self) -> bool {
        self.node.forwarding == Forwarding::Dsr || !self.direct.is_empty()
    }

    /// How packets from outside get to other nodes, in words.
    pub fn forwarding(&self) -> String {
        let (mode, own) = (self.node.forwarding, self.services.values().filter_map(|s| s.forwarding));
        match own.filter(|own| *own != mode).count() {
            0 => mode.name().to_owned(),
            others => format!("{}, {others} Services otherwise", mode.name()),
        }
    }

    /// A local sandbox's host ports and addresses; empty ones remove it.
    pub fn set_host_ports(&mut self, endpoint: u32, ports: Vec<HostPortIn>, ips: Vec<IpAddr>) {
        let value = (!ports.is_empty() && !ips.is_empty()).then_some((ports, ips));
        if self.host_ports.get(&endpoint) == value.as_ref() {
            return;
        }
        match value {
            Some(value) => self.host_ports.insert(endpoint, value),
            None => self.host_ports.remove(&endpoint),
        };
        self.dirty.insert(Owner::Sandbox(Reverse(endpoint)));
    }

    /// Names of the Services, for a full replacement.
    pub fn service_keys(&self) -> Vec<Key> {
        self.services.keys().map(|key| Key::clone(key)).collect()
    }

    /// Names of the EndpointSlices, for a full replacement.
    pub fn slice_keys(&self) -> Vec<Key> {
        self.slices.keys().map(|key| Key::clone(key)).collect()
    }

    /// Services with a health check port, and how many ready endpoints they have on this node.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        let checked = self.checked.iter().filter_map(|key| Some((key, self.services.get(key)?.health_check?)));
        let count = |key: &Key| {
            let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|k| self.slices.get(k));
            let here = |e: &&EndpointIn| e.ready && e.node.as_deref() == Some(self.node.name.as_str());
            let addresses: BTreeSet<IpAddr> = slices.flat_map(|s| s.endpoints.iter().filter(here)).map(|e| e.address).collect();
            let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
            ByFamily { v4, v6: addresses.len() - v4 }
        };
        checked
            .map(|(key, port)| HealthCheck { namespace: key.namespace.clone(), name: key.name.clone(), port, local_endpoints: count(key) })
            .collect()
    }

    /// Load-balancer addresses that nodes answer for, and which nodes can.
    pub fn announcements(&self) -> Vec<Announcement> {
        let of = self.announced.iter().filter_map(|key| Some((key, self.services.get(key)?)));
        let with_endpoints = |key: &Key| {
            let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|k| self.slices.get(k));
            slices.flat_map(|s| s.endpoints.iter().filter(|e| e.ready)).filter_map(|e| Some(e.node.as_deref()?.to_owned())).collect()
        };
        of.map(|(key, s)| Announcement { addresses: s.announced.clone(), only: s.external_local.then(|| with_endpoints(key)) }).collect()
    }

    /// Brings the desired side of the tables up to date with what changed, or with as much of it as is good at a time.
    pub fn compile(&mut self) {
        for _ in 0..PORTION {
            let Some(owner) = self.dirty.pop_first() else {
                break;
            };
            let specs = self.specs(&owner);
            let specs = self.admit(&owner, specs);
            self.install(owner, specs);
        }
        if self.dirty.is_empty() {
            self.retry_refused();
        }
    }

    /// Wanted slots of all sets.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Wanted members of all sets.
    pub fn members(&self) -> usize {
        self.members
    }

    /// From how many numbers those of backends are taken.
    pub fn numbers_of_backends(&self) -> u64 {
        self.most_backend.map_or(0, |most| u64::from(most) + 1)
    }

    /// Sets of Services with session affinity that are served, and its seconds.
    pub fn affinities(&self) -> BTreeMap<u32, u32> {
        let mut timeouts = BTreeMap::new();
        for frontend in self.tables.frontends.have().values().filter(|f| f.flags & Frontend::AFFINITY != 0) {
            for set in [frontend.internal, frontend.external] {
                let timeout: &mut u32 = timeouts.entry(set).or_default();
                *timeout = frontend.affinity_timeout.max(*timeout);
            }
        }
        timeouts
    }

    /// Numbers of Services' ports that are given out.
    pub fn numbers_of_services(&self) -> usize {
        self.numbers.services.len()
    }

    /// Whether there is more to compile.
    pub fn is_behind(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn specs(&self, owner: &Owner) -> Vec<PortSpec> {
        match owner {
            Owner::Service(key) => {
                let Some(service) = self.services.get(key) else {
                    return Vec::new();
                };
                let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|k| self.slices.get(k));
                expand::service(service, slices, &self.node)
            }
            Owner::Sandbox(Reverse(endpoint)) => match self.host_ports.get(endpoint) {
                Some((ports, ips)) => ports.iter().flat_map(|p| expand::host_port(p, ips)).collect(),
                None => Vec::new(),
            },
        }
    }

    fn install(&mut self, owner: Owner, specs: Vec<PortSpec>) {
        let mut old: BTreeMap<PortId, Installed> = self.installed.remove(&owner).into_iter().flatten().collect();
        let mut now: BTreeMap<PortId, Installed> = BTreeMap::new();
        let mut replaced = Vec::new();
        for spec in specs {
            if now.contains_key(&spec.id) {
                continue;
            }
            let before = old.remove(&spec.id);
            let ids = self.numbers_for(before.as_ref().map(|b| b.ids), &spec);
            now.insert(spec.id.clone(), self.install_port(&owner, ids, &spec));
            replaced.extend(before);
        }
        // Only now, when everything new is held, can the old go: a frontend may have moved between ports.
        for before in &replaced {
            self.drop_port(&owner, before, &now);
        }
        for gone in old.into_values() {
            self.drop_port(&owner, &gone, &now);
            for set in [gone.ids.cluster, gone.ids.local] {
                self.put_set(set, None);
                self.drop_ring(set);
                self.numbers.sets.remove(&set);
            }
            self.numbers.services.remove(&gone.ids.service);
        }
        if !now.is_empty() {
            self.installed.insert(owner, now.into_iter().collect());
        }
    }

    /// Keeps the port's numbers, else takes those its frontends have in the kernel, else fresh ones.
    fn numbers_for(&mut self, before: Option<PortIds>, spec: &PortSpec) -> PortIds {
        let mut ids = before.unwrap_or_default();
        let Services { numbers: n, tables, .. } = self;
        for frontend in spec.frontends.iter().filter(|f| f.key != FrontendKey::address(f.key.addr)) {
            let Some(found) = tables.frontends.have().get(&frontend.key) else {
                continue;
            };
            if ids.service == 0 && n.services.insert(found.service) {
                ids.service = found.service;
            }
            for (role, set) in [(frontend.internal, found.internal), (frontend.external, found.external)] {
                let of_role = match role {
                    Role::Cluster => &mut ids.cluster,
                    Role::Local => &mut ids.local,
                };
                if *of_role == 0 && set != 0 && n.sets.insert(set) {
                    *of_role = set;
                }
            }
        }
        if ids.service == 0 {
            ids.service = fresh(&mut n.next_service, |id| n.services.contains(&id));
            n.services.insert(ids.service);
        }
        let used = |id: u32, sets: &BTreeSet<u32>| sets.contains(&id) || tables.sets.have().contains_key(&id);
        // A set that no frontend uses is not made: with a Local policy throughout that is the cluster's.
        if spec.set(Role::Cluster).is_some() && ids.cluster == 0 {
            ids.cluster = fresh(&mut n.next_set, |id| used(id, &n.sets));
            n.sets.insert(ids.cluster);
        }
        if spec.set(Role::Local).is_some() && ids.local == 0 {
            ids.local = fresh(&mut n.next_set, |id| used(id, &n.sets));
            n.sets.insert(ids.local);
        }
        ids
    }

    fn install_port(&mut self, owner: &Owner, ids: PortIds, spec: &PortSpec) -> Installed {
        let mut held: BTreeSet<BackendKey> = BTreeSet::new();
        let mut backends = Vec::new();
        for (role, id) in [(Role::Cluster, ids.cluster), (Role::Local, ids.local)] {
            let Some(set) = spec.set(role) else {
                self.put_set(id, None);
                self.drop_ring(id);
                continue;
            };
            backends.extend(set.backends.iter().filter(|key| held.insert(**key)).map(|key| self.hold_backend(*key)));
            self.want_set(id, set, spec.has_members());
            if spec.has_ring(role) {
                self.want_ring(id, set, spec);
            } else {
                self.drop_ring(id);
            }
        }
        backends.extend(spec.draining.iter().filter(|key| held.insert(**key)).map(|key| self.hold_backend(*key)));
        let mut source_ranges = Vec::new();
        for range in &spec.source_ranges {
            let addr = expand::addr(range.network());
            let key = (SourceRangeKey::prefix_len(addr, range.prefix_len()), SourceRangeKey { service: ids.service, addr });
            self.tables.source_ranges.set(key, 1);
            source_ranges.push(key);
        }
        let set_of = |role| match role {
            Role::Cluster => ids.cluster,
            Role::Local => ids.local,
        };
        let mut frontends = Vec::new();
        for f in &spec.frontends {
            let mut value = Frontend {
                service: ids.service,
                internal: set_of(f.internal),
                external: set_of(f.external),
                flags: f.flags | if spec.affinity.is_some() { Frontend::AFFINITY } else { 0 },
                affinity_timeout: spec.affinity.unwrap_or(0),
            };
            if f.key == FrontendKey::address(f.key.addr) {
                // All ports of the Service share it.
                value = Frontend { service: 0, internal: 0, external: 0, flags: 0, affinity_timeout: 0 };
            }
            self.claim(f.key, owner, value);
            frontends.push(f.key);
        }
        Installed { ids, frontends: frontends.into(), backends: backends.into(), source_ranges: source_ranges.into() }
    }

    fn claim(&mut self, key: FrontendKey, owner: &Owner, value: Frontend) {
        match self.claims.get_mut(&key) {
            Some(claims) => match claims.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(at) => claims[at].1 = value,
                Err(at) => {
                    claims.insert(at, (owner.clone(), value));
                    self.contested.insert(key);
                }
            },
            None => drop(self.claims.insert(key, vec![(owner.clone(), value)])),
        }
        self.resolve(&key);
    }

    /// Ends what a port held before and no port of its owner holds now.
    fn drop_port(&mut self, owner: &Owner, before: &Installed, now: &BTreeMap<PortId, Installed>) {
        for key in before.frontends.iter() {
            if now.values().any(|n| n.frontends.contains(key)) {
                continue;
            }
            if let Some(claims) = self.claims.get_mut(key) {
                claims.retain(|(other, _)| other != owner);
                if claims.len() < 2 {
                    self.contested.remove(key);
                }
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
            self.resolve(key);
        }
        for key in before.source_ranges.iter() {
            if !now.values().any(|n| n.source_ranges.contains(key)) {
                self.tables.source_ranges.unset(key);
            }
        }
        for id in before.backends.iter() {
            self.release_backend(*id);
        }
    }

    /// The first owner in order has the frontend.
    fn resolve(&mut self, key: &FrontendKey) {
        let winner = self.claims.get(key).and_then(|claims| claims.first()).map(|(_, value)| *value);
        self.tables.frontends.put(*key, winner);
    }

    /// Counts a user of a backend; returns its number.
    fn hold_backend(&mut self, key: BackendKey) -> u32 {
        if let Some((id, users)) = self.backends.get_mut(&key) {
            *users += 1;
            return *id;
        }
        let id = match self.numbers.found.remove(&key) {
            Some(id) if self.tables.backends.want().get(&id).is_none() => id,
            _ => {
                let tables = &self.tables.backends;
                let taken = |id| tables.want().contains_key(&id) || tables.have().contains_key(&id);
                fresh_below(&mut self.numbers.next_backend, self.most_backend, taken)
            }
        };
        self.backends.insert(key, (id, 1));
        let flags = if key.local { Backend::LOCAL } else { 0 };
        self.tables.backends.set(id, Backend::new(key.addr, key.port, flags));
        id
    }

    fn release_backend(&mut self, id: u32) {
        let Some(key) = self.tables.backends.want().get(&id).map(backend_key) else {
            return;
        };
        if let Some((_, users)) = self.backends.get_mut(&key) {
            *users -= 1;
            if *users == 0 {
                self.backends.remove(&key);
                self.tables.backends.unset(&id);
            }
        }
    }

    fn want_ring(&mut self, id: u32, set: &SetSpec, spec: &PortSpec) {
        let member = |key: &BackendKey| {
            let weight = spec.weights.get(key).copied().unwrap_or(maglev::DEFAULT_WEIGHT);
            Some(Member { addr: key.addr, port: key.port, weight, id: self.backends.get(key)?.0 })
        };
        let members: Vec<Member> = if self.ring_size > 0 { set.backends.iter().filter_map(member).collect() } else { Vec::new() };
        if self.tables.rings.want(id, members, self.ring_size, self.now) {
            self.without_ring.remove(&id);
        } else if self.without_ring.insert(id) && self.without_ring.len() == 1 {
            // Once, not for each: there may be thousands.
            tracing::warn!(set = id, "the map of rings is full: backends of Services are chosen without consistent hashing");
        }
    }

    fn drop_ring(&mut self, id: u32) {
        self.tables.rings.drop_set(id);
        self.without_ring.remove(&id);
    }

    fn want_set(&mut self, id: u32, spec: &SetSpec, members: bool) {
        let ids: BTreeSet<u32> = spec.backends.iter().filter_map(|k| self.backends.get(k)).map(|(id, _)| *id).collect();
        let tables = &self.tables.sets;
        let old = tables.want().get(&id).or_else(|| tables.have().get(&id)).map(|s| s.slots.clone()).unwrap_or_default();
        let flags = if spec.drop_when_empty { BackendSet::DROP_WHEN_EMPTY } else { 0 };
        self.put_set(id, Some(Set::build(&old, &ids, flags, members)));
    }

    fn put_set(&mut self, id: u32, set: Option<Set>) {
        let size = |set: Option<&Set>| set.map_or((0, 0), |s| (s.slots.len(), s.members.len()));
        let (before, now) = (size(self.tables.sets.want().get(&id)), size(set.as_ref()));
        (self.slots, self.members) = (self.slots + now.0 - before.0, self.members + now.1 - before.1);
        self.tables.sets.put(id, set);
    }
}
