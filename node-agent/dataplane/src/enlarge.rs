//! Maps that grow while the node works: when what is to be written would not fit, and when connections crowd their maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xebec_ebpf_abi::{inserts, map};

use crate::bpf::connections::Connections;
use crate::bpf::growing;
use crate::bpf::maps::Maps;
use crate::compile::services::room;
use crate::engine::Engine;
use crate::growth::{self, Fill, Plan};
use crate::{Config, Error};

/// How soon growth that failed is tried again: programs are loaded for it.
const REST: Duration = Duration::from_secs(30);

/// What is known of maps' growth.
pub struct Growth {
    /// Places a map that grows may have.
    most: u64,
    /// Maps that were given a size, and keep it.
    fixed: BTreeSet<String>,
    /// Connections are not swept while their maps change.
    connections: Arc<Mutex<Connections>>,
    /// How often each map has grown.
    pub done: BTreeMap<&'static str, u64>,
    /// Maps that cannot take what they shall, as large as they may be.
    over: BTreeSet<&'static str>,
    /// Those that programs write and that are nearly full then.
    crowded: BTreeSet<&'static str>,
    /// Why the last attempt failed, and when.
    pub failed: Option<(Instant, String)>,
}

impl Growth {
    /// As the operator wants it.
    pub fn new(config: &Config, connections: Arc<Mutex<Connections>>) -> Growth {
        Growth {
            most: config.max_map_entries.into(),
            fixed: config.layout.sizes.keys().cloned().collect(),
            connections,
            done: BTreeMap::new(),
            over: BTreeSet::new(),
            crowded: BTreeSet::new(),
            failed: None,
        }
    }

    /// Maps that are too small and as large as they may be.
    pub fn over(&self) -> BTreeSet<&'static str> {
        self.over.union(&self.crowded).copied().collect()
    }

    /// How many places a map may have at most.
    pub fn most(&self, maps: &Maps, name: &str) -> u64 {
        let places = maps.max_entries(name);
        match name {
            // By the numbers of backends, which are below the places of their map.
            map::CONNECTIONS => places.max(self.most(maps, map::BACKENDS)),
            _ if self.fixed.contains(name) || !is_growable(name) => places,
            _ => places.max(self.most),
        }
    }
}

/// Whether a map grows: all do that take more the more there is. An entry of `FRAGMENTS` matters while the pieces of one datagram are on
/// their way: the oldest are those of datagrams that never came in whole.
fn is_growable(name: &str) -> bool {
    !matches!(
        name,
        map::FRAGMENTS
            | map::CONFIG
            | map::DROPS
            | map::FORWARDS
            | map::SHORTCUTS
            | map::GENERATION
            | map::LISTEN
            | map::EVENTS
            | map::UNTOLD
            | map::INSERTS
            | map::XDP_DEVICES
    )
}

impl Engine {
    /// Tells the compilers how much the maps can take.
    pub fn tell_room(&mut self) {
        let most = |name: &str| self.growth.most(&self.maps, name);
        let (services, policy, parts) = (room::MAPS.map(|name| most(name) as usize), most(map::POLICY), most(map::RING_PLACES));
        let backends = self.maps.max_entries(map::BACKENDS) as usize;
        self.state.services.set_room(services, backends);
        self.state.services.tables.rings.room = Some(parts);
        self.state.policies.set_room(policy as usize);
    }

    /// Before what is planned is written: maps that would not take it grow, to the number that is known to come.
    pub fn make_room(&mut self) {
        let needs = self.state.needs();
        if needs.iter().all(|(name, needed)| *needed <= self.maps.max_entries(name)) {
            self.growth.over.clear();
            return;
        }
        let expected = self.state.expected();
        let fill = |(name, needed): (&&'static str, &u64)| {
            let expected = expected.get(name).copied().unwrap_or(0).max(*needed);
            (*name, Fill { places: self.maps.max_entries(name), needed: *needed, expected, most: self.growth.most(&self.maps, name) })
        };
        let Plan { grow, over } = growth::plan(needs.iter().map(fill));
        // Services and policies are told of by name.
        let is_told = |name: &&str| room::MAPS.contains(name) || matches!(*name, map::POLICY | map::RINGS | map::RING_PLACES);
        self.growth.over = over.into_iter().filter(|name| !is_told(name)).collect();
        self.enlarge(&grow);
    }

    /// After a sweep: connections have room in their maps, before there is none left.
    pub fn make_room_for_connections(&mut self) {
        // Until all links run our programs, those of before write to maps of theirs.
        if self.holding || !self.is_reconciled() {
            return;
        }
        let fill = |name| {
            let of = |counts: &BTreeMap<&str, u64>| counts.get(name).copied().unwrap_or(0);
            let (live, written) = (of(&self.swept.live), of(&self.swept.written));
            let crowded = Fill::crowded(live, self.maps.max_entries(name), self.growth.most(&self.maps, name));
            // What came since the sweep before may come again until the next.
            (name, Fill { expected: live.saturating_add(written), ..crowded })
        };
        let Plan { grow, over } = growth::plan(inserts::MAPS.map(fill));
        self.growth.crowded = over;
        self.enlarge(&grow);
    }

    fn enlarge(&mut self, sizes: &BTreeMap<&'static str, u32>) {
        let rests = self.growth.failed.as_ref().is_some_and(|(when, _)| when.elapsed() < REST);
        if sizes.is_empty() || rests {
            return;
        }
        let begin = Instant::now();
        match self.grow(sizes) {
            Ok(()) => {
                tracing::info!(?sizes, took = ?begin.elapsed(), "maps have grown");
                sizes.keys().for_each(|name| *self.growth.done.entry(name).or_default() += 1);
                self.growth.failed = None;
            }
            Err(error) => {
                tracing::error!(?sizes, %error, "maps cannot grow; it will be tried again");
                self.growth.failed = Some((Instant::now(), format!("maps cannot grow: {error}")));
            }
        }
    }

    fn grow(&mut self, sizes: &BTreeMap<&'static str, u32>) -> Result<(), Error> {
        let mut connections = self.growth.connections.lock();
        let grown = growing::grow(&self.programs, sizes, !self.holding)?;
        self.programs = grown.programs;
        self.maps = grown.maps;
        *connections = grown.connections.go_on_from(&connections);
        if sizes.contains_key(map::LIMITS) {
            // They were taken before it was filled.
            self.maps.limits.read();
        }
        Ok(())
    }

    /// How often maps have grown: who has handles of maps compares it.
    pub fn growths(&self) -> u64 {
        self.growth.done.values().sum()
    }
}
