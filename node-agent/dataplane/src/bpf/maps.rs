//! Typed handles of the pinned maps: reading all they hold, writing one entry.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::Ebpf;
use aya::Pod;
use aya::maps::lpm_trie::{Key as LpmKey, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use xebec_ebpf_abi as abi;
use xebec_ebpf_abi::{
    Addr, Announced, AnnouncedKey, Backend, BackendSet, DropCount, Endpoint, Frontend, FrontendKey, MemberKey, NodeAddr, Places, PlacesKey,
    PolicyKey, PolicyVerdict, Remote, Rings, ServiceCount, SlotKey, SourceRangeKey, Uplink, XdpDevice,
};

use super::batch;
use super::layout;
use super::limits::Limits;
use super::loader::chain;
use crate::Error;
use crate::compile::rings;
use crate::compile::state::{Contents, Op};

type Hash<K, V> = HashMap<MapData, K, V>;
type Trie<K, V> = LpmTrie<MapData, K, V>;

/// The maps user space writes or reads.
pub struct Maps {
    frontends: Hash<FrontendKey, Frontend>,
    sets: Hash<u32, BackendSet>,
    slots: Hash<SlotKey, u32>,
    members: Hash<MemberKey, u32>,
    backends: Hash<u32, Backend>,
    rings: Hash<u32, Rings>,
    ring_places: Hash<PlacesKey, Places>,
    source_ranges: Trie<SourceRangeKey, u32>,
    node_addrs: Hash<Addr, NodeAddr>,
    endpoints: Hash<Addr, Endpoint>,
    ipcache: Trie<Addr, Remote>,
    policy: Trie<PolicyKey, PolicyVerdict>,
    uplinks: Hash<u32, Uplink>,
    announced: Hash<AnnouncedKey, Announced>,
    no_masquerade: Trie<Addr, u32>,
    xdp_devices: Hash<u32, XdpDevice>,
    config: Array<MapData, abi::Config>,
    generation: Array<MapData, u64>,
    /// Of pods' bandwidth.
    pub limits: Limits,
    drops: PerCpuArray<MapData, DropCount>,
    forwards: PerCpuArray<MapData, DropCount>,
    service_counts: PerCpuHashMap<MapData, u32, ServiceCount>,
    places: BTreeMap<String, u64>,
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let fail = |reason| Error::Load { what: format!("map {name}"), reason };
    let map = ebpf.take_map(name).ok_or_else(|| fail("the embedded object has none of that name".into()))?;
    T::try_from(map).map_err(|e| fail(chain(&e)))
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Maps, Error> {
        use abi::map;
        let data = |map: &Map| match map {
            Map::Array(m) | Map::HashMap(m) | Map::LpmTrie(m) | Map::LruHashMap(m) | Map::PerCpuHashMap(m) => m.info().ok(),
            _ => None,
        };
        let places = ebpf.maps().filter_map(|(name, m)| Some((name.to_owned(), u64::from(data(m)?.max_entries())))).collect();
        Ok(Maps {
            places,
            frontends: take(ebpf, map::FRONTENDS)?,
            sets: take(ebpf, map::BACKEND_SETS)?,
            slots: take(ebpf, map::BACKEND_SLOTS)?,
            members: take(ebpf, map::SET_MEMBERS)?,
            backends: take(ebpf, map::BACKENDS)?,
            rings: take(ebpf, map::RINGS)?,
            ring_places: take(ebpf, map::RING_PLACES)?,
            source_ranges: take(ebpf, map::SOURCE_RANGES)?,
            node_addrs: take(ebpf, map::NODE_ADDRS)?,
            endpoints: take(ebpf, map::ENDPOINTS)?,
            ipcache: take(ebpf, map::IPCACHE)?,
            policy: take(ebpf, map::POLICY)?,
            uplinks: take(ebpf, map::UPLINKS)?,
            announced: take(ebpf, map::ANNOUNCED)?,
            no_masquerade: take(ebpf, map::NO_MASQUERADE)?,
            xdp_devices: take(ebpf, map::XDP_DEVICES)?,
            config: take(ebpf, map::CONFIG)?,
            generation: take(ebpf, map::GENERATION)?,
            limits: Limits::take(ebpf)?,
            drops: take(ebpf, map::DROPS)?,
            forwards: take(ebpf, map::FORWARDS)?,
            service_counts: take(ebpf, map::SERVICE_COUNTS)?,
        })
    }

    /// Facts of the node; must be there before any program is attached. Whether packets of other nodes' clients are taken stays
    /// as it is: see [`Maps::take_direct`].
    pub fn configure(&mut self, mut config: abi::Config) -> Result<(), Error> {
        config.flags |= self.facts()?.flags & abi::Config::DIRECT;
        self.set_facts(config)
    }

    /// Whether packets of clients are taken that other nodes send inside packets of their own.
    pub fn take_direct(&mut self, due: bool) -> Result<(), Error> {
        let mut config = self.facts()?;
        if (config.flags & abi::Config::DIRECT != 0) == due {
            return Ok(());
        }
        config.flags ^= abi::Config::DIRECT;
        self.set_facts(config)
    }

    fn facts(&self) -> Result<abi::Config, Error> {
        self.config.get(&0, 0).map_err(|e| Error::Map { what: "read CONFIG".into(), reason: chain(&e) })
    }

    fn set_facts(&mut self, config: abi::Config) -> Result<(), Error> {
        self.config.set(0, config, 0).map_err(|e| Error::Map { what: "write CONFIG".into(), reason: chain(&e) })
    }

    /// Ends all shortcuts of connections: what they were made of has changed.
    pub fn end_shortcuts(&mut self) -> Result<(), Error> {
        let fail = |e: MapError| Error::Map { what: "write GENERATION".into(), reason: chain(&e) };
        let generation = self.generation.get(&0, 0).map_err(fail)?;
        self.generation.set(0, generation.wrapping_add(1), 0).map_err(fail)
    }

    /// How many entries a map can hold.
    pub fn max_entries(&self, name: &str) -> u64 {
        self.places.get(name).copied().unwrap_or(0)
    }

    /// Everything the maps hold.
    pub fn read(&self) -> Result<Contents, Error> {
        let mut found = Contents {
            frontends: all("FRONTENDS", &self.frontends)?,
            backends: all("BACKENDS", &self.backends)?,
            rings: all("RINGS", &self.rings)?,
            ring_places: self.read_places()?,
            source_ranges: prefixes("SOURCE_RANGES", &self.source_ranges)?,
            node_addrs: all("NODE_ADDRS", &self.node_addrs)?,
            endpoints: all("ENDPOINTS", &self.endpoints)?,
            ipcache: prefixes("IPCACHE", &self.ipcache)?,
            policy: prefixes("POLICY", &self.policy)?,
            uplinks: all("UPLINKS", &self.uplinks)?,
            announced: all("ANNOUNCED", &self.announced)?,
            no_masquerade: prefixes("NO_MASQUERADE", &self.no_masquerade)?,
            ..Contents::default()
        };
        for (id, header) in all("BACKEND_SETS", &self.sets)? {
            found.sets.entry(id).or_default().header = Some(header);
        }
        for (key, backend) in all("BACKEND_SLOTS", &self.slots)? {
            found.sets.entry(key.set).or_default().slots.insert(key.slot, backend);
        }
        for (key, slot) in all("SET_MEMBERS", &self.members)? {
            found.sets.entry(key.set).or_default().members.insert(key.backend, slot);
        }
        Ok(found)
    }

    /// One write. Deleting what is gone succeeds.
    pub fn apply(&mut self, op: &Op) -> Result<(), Error> {
        let (name, result) = match *op {
            Op::Rings(k, v) => ("RINGS", write(&mut self.rings, k, v)),
            Op::Ring(ring, ref contents) => ("RING_PLACES", self.write_ring(ring, contents.as_ref())),
            Op::Frontend(k, v) => ("FRONTENDS", write(&mut self.frontends, k, v)),
            Op::Set(k, v) => ("BACKEND_SETS", write(&mut self.sets, k, v)),
            Op::Slot(k, v) => ("BACKEND_SLOTS", write(&mut self.slots, k, v)),
            Op::Member(k, v) => ("SET_MEMBERS", write(&mut self.members, k, v)),
            Op::Backend(k, v) => ("BACKENDS", write(&mut self.backends, k, v)),
            Op::SourceRange(k, v) => ("SOURCE_RANGES", write_prefix(&mut self.source_ranges, k, v)),
            Op::NodeAddr(k, v) => ("NODE_ADDRS", write(&mut self.node_addrs, k, v)),
            Op::Endpoint(k, v) => ("ENDPOINTS", write(&mut self.endpoints, k, v)),
            Op::Ipcache(k, v) => ("IPCACHE", write_prefix(&mut self.ipcache, k, v)),
            Op::Policy(k, v) => ("POLICY", write_prefix(&mut self.policy, k, v)),
            Op::Uplink(k, v) => ("UPLINKS", write(&mut self.uplinks, k, v)),
            Op::Announced(k, v) => ("ANNOUNCED", write(&mut self.announced, k, v)),
            Op::NoMasquerade(k, v) => ("NO_MASQUERADE", write_prefix(&mut self.no_masquerade, k, v)),
        };
        result.map_err(|e| Error::Map { what: format!("write {op:?} to {name}"), reason: reason(name, &e) })
    }

    /// Devices whose drivers run the XDP program, with their hardware addresses.
    pub fn set_xdp_devices(&mut self, want: &BTreeMap<u32, [u8; 6]>) -> Result<(), Error> {
        let have: BTreeMap<u32, XdpDevice> = all("XDP_DEVICES", &self.xdp_devices)?;
        let gone = have.keys().filter(|index| !want.contains_key(index)).map(|index| (*index, None));
        let puts = want.iter().map(|(index, mac)| (*index, Some(XdpDevice::new(*mac))));
        for (index, value) in gone.chain(puts) {
            if have.get(&index) != value.as_ref() {
                write(&mut self.xdp_devices, index, value)
                    .map_err(|e| Error::Map { what: format!("write device {index} to XDP_DEVICES"), reason: chain(&e) })?;
            }
        }
        Ok(())
    }

    /// Writes operations from the front that are of one map and one kind, in as few calls as the kernel takes them. Returns
    /// how many are written; the next one is for [`Maps::apply`], which tells why.
    pub fn apply_together(&self, ops: &[Op]) -> usize {
        macro_rules! together {
            ($map:expr, $op:path) => {
                batch::write($map.map(), ops.iter().map_while(|op| if let $op(k, v) = op { Some((*k, *v)) } else { None }))
            };
        }
        macro_rules! prefixes {
            ($map:expr, $op:path) => {
                batch::write(
                    $map.map(),
                    ops.iter().map_while(|op| if let $op(k, v) = op { Some((LpmKey::new(k.0, k.1), *v)) } else { None }),
                )
            };
        }
        match ops.first() {
            Some(Op::Frontend(..)) => together!(self.frontends, Op::Frontend),
            Some(Op::Set(..)) => together!(self.sets, Op::Set),
            Some(Op::Slot(..)) => together!(self.slots, Op::Slot),
            Some(Op::Member(..)) => together!(self.members, Op::Member),
            Some(Op::Backend(..)) => together!(self.backends, Op::Backend),
            Some(Op::Rings(..)) => together!(self.rings, Op::Rings),
            Some(Op::Endpoint(..)) => together!(self.endpoints, Op::Endpoint),
            Some(Op::SourceRange(..)) => prefixes!(self.source_ranges, Op::SourceRange),
            Some(Op::Ipcache(..)) => prefixes!(self.ipcache, Op::Ipcache),
            Some(Op::Policy(..)) => prefixes!(self.policy, Op::Policy),
            // A ring is written by itself; the others are few.
            Some(Op::Ring(..) | Op::NodeAddr(..) | Op::Uplink(..) | Op::Announced(..) | Op::NoMasquerade(..)) | None => 0,
        }
    }

    fn read_places(&self) -> Result<BTreeMap<u32, rings::Contents>, Error> {
        let mut found = BTreeMap::new();
        let read = batch::scan(&self.ring_places, |key, places| rings::add_part(&mut found, key, &places));
        read.map_err(|e| Error::Map { what: "read RING_PLACES".into(), reason: chain(&e) })?;
        Ok(found)
    }

    /// Writes all parts of a ring, or deletes them.
    fn write_ring(&mut self, ring: u32, contents: Option<&rings::Contents>) -> Result<(), MapError> {
        let parts = contents.and_then(|c| c.spec.as_ref()).map(|spec| spec.parts());
        for (part, places) in (0..).zip(parts.iter().flatten()) {
            self.ring_places.insert(PlacesKey { ring, part }, places, 0)?;
        }
        if contents.is_some() {
            return Ok(());
        }
        for part in 0.. {
            match self.ring_places.remove(&PlacesKey { ring, part }) {
                result if is_gone(&result) => break,
                result => result?,
            }
        }
        Ok(())
    }

    /// Drops by reason, over all CPUs: packets and bytes.
    pub fn drops(&self) -> Vec<DropCount> {
        sum(&self.drops)
    }

    /// Passed packets by path, over all CPUs.
    pub fn forwards(&self) -> Vec<DropCount> {
        sum(&self.forwards)
    }

    /// What Services were asked for, over all CPUs, by `Frontend::service`; those that were asked for at all.
    pub fn service_counts(&self) -> BTreeMap<u32, ServiceCount> {
        let add = |a: ServiceCount, b: &ServiceCount| ServiceCount { flows: a.flows + b.flows, refused: a.refused + b.refused };
        // A count that goes meanwhile is of a Service that has gone.
        self.service_counts.iter().flatten().map(|(id, counts)| (id, counts.iter().fold(ServiceCount::default(), add))).collect()
    }

    /// Forgets the counts of Services that are gone. Returns how many remain.
    pub fn keep_service_counts(&mut self, alive: impl Fn(u32) -> bool) -> u64 {
        let (kept, gone): (Vec<u32>, Vec<u32>) = self.service_counts.keys().flatten().partition(|id| alive(*id));
        // One that is gone by itself is as good; one that cannot be deleted is tried again.
        gone.iter().for_each(|id| drop(self.service_counts.remove(id)));
        kept.len() as u64
    }
}

/// Memory that a pinned map takes, 0 if that is not told.
pub fn bytes(pin: &Path) -> u64 {
    let Ok(map) = MapData::from_pin(pin) else { return 0 };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok()).unwrap_or(0)
}

fn sum(map: &PerCpuArray<MapData, DropCount>) -> Vec<DropCount> {
    let zero = DropCount { packets: 0, bytes: 0 };
    let add = |a: DropCount, b: &DropCount| DropCount { packets: a.packets + b.packets, bytes: a.bytes + b.bytes };
    map.iter().map(|values| values.map_or(zero, |v| v.iter().fold(zero, add))).collect()
}

fn all<K: Pod + Ord, V: Pod>(name: &str, map: &Hash<K, V>) -> Result<BTreeMap<K, V>, Error> {
    batch::read(map).map_err(|e| Error::Map { what: format!("read {name}"), reason: chain(&e) })
}

fn prefixes<K: Pod + Ord, V: Pod>(name: &str, map: &Trie<K, V>) -> Result<BTreeMap<(u32, K), V>, Error> {
    let found = map.iter().map(|e| e.map(|(k, v)| ((k.prefix_len(), k.data()), v))).collect::<Result<_, _>>();
    found.map_err(|e| Error::Map { what: format!("read {name}"), reason: chain(&e) })
}

fn write<K: Pod, V: Pod>(map: &mut Hash<K, V>, key: K, value: Option<V>) -> Result<(), MapError> {
    match value {
        Some(value) => map.insert(key, value, 0),
        None => gone(map.remove(&key)),
    }
}

fn write_prefix<K: Pod, V: Pod>(map: &mut Trie<K, V>, key: (u32, K), value: Option<V>) -> Result<(), MapError> {
    let key = LpmKey::new(key.0, key.1);
    match value {
        Some(value) => map.insert(&key, value, 0),
        None => gone(map.remove(&key)),
    }
}

/// Why a write failed. A full hash map says "argument list too long", a full trie that a device has no space left.
fn reason(name: &str, error: &MapError) -> String {
    let is_full = match error {
        MapError::SyscallError(e) => matches!(e.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)),
        _ => false,
    };
    match is_full {
        true if layout::is_resizable(name) => {
            format!("the map is full; start the agent with a higher --max-map-entries, or with --map-entries {name}=N for a larger one")
        }
        true => "the map is full".to_owned(),
        false => chain(error),
    }
}

pub(super) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    if is_gone(&result) { Ok(()) } else { result }
}

fn is_gone(result: &Result<(), MapError>) -> bool {
    match result {
        Err(MapError::KeyNotFound) => true,
        Err(MapError::SyscallError(e)) => e.io_error.raw_os_error() == Some(libc::ENOENT),
        Ok(()) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_called_one_and_what_helps_is_named() {
        let error = |number| {
            MapError::SyscallError(aya::sys::SyscallError {
                call: "bpf_map_update_elem",
                io_error: std::io::Error::from_raw_os_error(number),
            })
        };
        assert!(reason("IPCACHE", &error(libc::ENOSPC)).ends_with("--map-entries IPCACHE=N for a larger one"));
        assert!(reason("BACKENDS", &error(libc::E2BIG)).contains("--map-entries BACKENDS=N"));
        assert_eq!(reason("UPLINKS", &error(libc::E2BIG)), "the map is full");
        assert!(reason("IPCACHE", &error(libc::EPERM)).contains("not permitted"));
    }
}
