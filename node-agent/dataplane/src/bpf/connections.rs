//! The maps that programs fill, with what is known of how full they are: they are counted at sweeps, and between two sweeps
//! programs say how many entries they have written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray};
use xebec_ebpf_abi::{
    Affinity, AffinityKey, Flow, FlowKey, FragmentKey, FragmentPorts, Given, Nat, SockFrontend, SockKey, Tuple, inserts, map,
};

use super::maps::take;
use crate::Error;
use crate::growth;

type Hash<K, V> = HashMap<MapData, K, V>;

/// A number for each of `inserts::MAPS`.
type Numbers = [u64; inserts::MAPS.len()];

/// Apart from the maps user space writes: sweeping them takes long and must hold nobody up.
pub struct Connections {
    /// Conntrack of endpoints.
    pub flows: Hash<FlowKey, Flow>,
    /// Translations.
    pub nat: Hash<Tuple, Nat>,
    /// What clients were given.
    pub affinity: Hash<AffinityKey, Affinity>,
    /// What sockets asked for.
    pub sock_reverse: Hash<SockKey, SockFrontend>,
    /// What connected sockets were given.
    pub given: Hash<SockKey, Given>,
    /// Sockets that are counted.
    pub counted: Hash<u64, u32>,
    /// Ports of datagrams in pieces.
    pub fragments: Hash<FragmentKey, FragmentPorts>,
    inserts: PerCpuArray<MapData, u64>,
    places: Numbers,
    /// As they were at the last sweep.
    live: Numbers,
    written: Numbers,
    /// No sweep out of turn before.
    rested: Instant,
}

/// How long to rest from sweeps out of turn, at least, and for each moment that the last one took: a map that stays full is not to
/// take the node's CPUs as well.
const REST: Duration = Duration::from_millis(200);
const REST_FOR_WORK: u32 = 5;

impl Connections {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Connections, Error> {
        let entries = |name| ebpf.map(name).and_then(places).unwrap_or(0);
        let places = inserts::MAPS.map(entries);
        let mut connections = Connections {
            flows: take(ebpf, map::FLOWS)?,
            nat: take(ebpf, map::NAT)?,
            affinity: take(ebpf, map::AFFINITY)?,
            sock_reverse: take(ebpf, map::SOCK_REVERSE)?,
            given: take(ebpf, map::GIVEN)?,
            counted: take(ebpf, map::COUNTED)?,
            fragments: take(ebpf, map::FRAGMENTS)?,
            inserts: take(ebpf, map::INSERTS)?,
            places,
            live: Numbers::default(),
            written: Numbers::default(),
            rested: Instant::now(),
        };
        connections.written = connections.written_now();
        Ok(connections)
    }

    /// Entries that programs have written to each map, over all CPUs. What cannot be read counts as nothing new.
    fn written_now(&self) -> Numbers {
        let mut place = 0;
        self.written.map(|before| {
            let counts = self.inserts.get(&place, 0);
            place += 1;
            counts.map_or(before, |counts| counts.iter().sum())
        })
    }

    /// What has been written to each map since the last sweep.
    fn since(&self) -> Numbers {
        let now = self.written_now();
        std::array::from_fn(|at| now[at].wrapping_sub(self.written[at]))
    }

    /// Before a sweep: what is written from now on counts for the next. Returns what was written since the last.
    pub fn begin_sweep(&mut self) -> BTreeMap<&'static str, u64> {
        let since = self.since();
        self.written = self.written_now();
        inserts::MAPS.into_iter().zip(since).collect()
    }

    /// After a sweep that took so long: what it has found.
    pub fn end_sweep(&mut self, live: &BTreeMap<&'static str, u64>, took: Duration) {
        self.live = inserts::MAPS.map(|name| live.get(name).copied().unwrap_or(0));
        self.rested = Instant::now() + REST.max(took * REST_FOR_WORK);
    }

    /// Whether a map may be so full by now that it is to be swept out of turn.
    pub fn is_filling(&self) -> bool {
        let fills = self.live.into_iter().zip(self.since()).zip(self.places);
        Instant::now() >= self.rested && fills.into_iter().any(|((live, since), places)| growth::is_filling(live, since, places))
    }

    /// Takes the place of others, after some of the maps have grown.
    pub fn go_on_from(mut self, before: &Connections) -> Connections {
        (self.live, self.written, self.rested) = (before.live, before.written, before.rested);
        self
    }
}

fn places(map: &aya::maps::Map) -> Option<u64> {
    match map {
        aya::maps::Map::HashMap(data) | aya::maps::Map::LruHashMap(data) => Some(data.info().ok()?.max_entries().into()),
        _ => None,
    }
}
