//! Entries of the connection maps that count no more. The programs evict nothing that is alive and cannot look
//! for what is not: without the sweep the maps fill up and new flows are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData};
use xebec_ebpf_abi::map;

use super::batch;
use super::connections::Connections;
use super::loader::chain;

/// How long ago an entry must have expired. The programs take expired ones over; what they have just written is
/// not to be deleted for what it was when it was read.
const GRACE: u64 = 2_000_000_000;
/// How long what a client was given is kept if nobody knows of its Service: that may just have come.
const UNKNOWN: u32 = 60;

/// What entries may belong to.
#[derive(Clone, Debug, Default)]
pub struct Alive {
    /// Numbers of endpoints.
    pub endpoints: BTreeSet<u32>,
    /// Sets of Services with session affinity, and its seconds.
    pub affinities: BTreeMap<u32, u32>,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that remain in each map.
    pub live: BTreeMap<&'static str, u64>,
    /// Those that programs had written to it since the sweep before.
    pub written: BTreeMap<&'static str, u64>,
    /// Entries deleted.
    pub deleted: u64,
}

/// How soon the next sweep is due: the fuller the fullest of the maps, the sooner. Entries and places of each.
pub fn interval(fills: impl IntoIterator<Item = (u64, u64)>) -> Duration {
    let percent = |(used, places): (u64, u64)| used.saturating_mul(100) / places.max(1);
    match fills.into_iter().map(percent).max().unwrap_or(0) {
        0..10 => Duration::from_secs(30),
        10..50 => Duration::from_secs(10),
        _ => Duration::from_secs(3),
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as the programs see it.
pub fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one timespec, which lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Deletes what has expired, and flows of endpoints that are gone; counts what remains. What sockets leave goes with them: it is
/// only counted.
pub fn sweep(maps: &mut Connections, now: u64, alive: &Alive) -> Swept {
    let begin = Instant::now();
    let mut swept = Swept { written: maps.begin_sweep(), ..Swept::default() };
    let over = |expires: u64| expires.saturating_add(GRACE) < now;
    let until = |used: u64, set: u32| {
        let timeout = alive.affinities.get(&set).copied().unwrap_or(UNKNOWN);
        used.saturating_add(u64::from(timeout) * 1_000_000_000)
    };
    swept.map(map::FLOWS, &mut maps.flows, |key, flow| over(flow.expires) || !alive.endpoints.contains(&key.endpoint));
    swept.map(map::NAT, &mut maps.nat, |_, nat| over(nat.expires));
    swept.map(map::AFFINITY, &mut maps.affinity, |key, affinity| over(until(affinity.last_used, key.set)));
    swept.map(map::SOCK_REVERSE, &mut maps.sock_reverse, |_, _| false);
    swept.map(map::GIVEN, &mut maps.given, |_, _| false);
    swept.map(map::COUNTED, &mut maps.counted, |_, _| false);
    swept.map(map::FRAGMENTS, &mut maps.fragments, |_, _| false);
    maps.end_sweep(&swept.live, begin.elapsed());
    swept
}

impl Swept {
    fn map<K: Pod, V: Pod>(&mut self, name: &'static str, map: &mut HashMap<MapData, K, V>, is_over: impl Fn(&K, &V) -> bool) {
        let (mut gone, mut live) = (Vec::new(), 0);
        let each = |key: K, value: V| if is_over(&key, &value) { gone.push(key) } else { live += 1 };
        if let Err(error) = batch::scan(map, each) {
            tracing::warn!(map = name, error = %chain(&error), "a map cannot be read; the next sweep tries again");
        }
        for key in gone {
            // The program may have renewed it since; what is deleted then costs one decision more.
            if map.get(&key, 0).is_ok_and(|value| is_over(&key, &value)) && map.remove(&key).is_ok() {
                self.deleted += 1;
            }
        }
        self.live.insert(name, live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_swept_sooner() {
        let of = |flows, nat| interval([(flows, 1000), (nat, 1000)]);
        assert!(of(0, 0) > of(200, 0) && of(200, 0) > of(0, 700));
        assert_eq!(of(1000, 0), of(0, 1000));
        assert!(interval([(0, 0)]) > Duration::ZERO);
    }
}
