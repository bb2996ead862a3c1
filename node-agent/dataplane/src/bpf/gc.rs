//! Entries of the connection maps that count no more. The programs evict nothing that is alive and cannot look
//! for what is not: without the sweep the maps fill up and new flows are refused.

use std::collections::BTreeSet;
use std::time::Duration;

use xebec_ebpf_abi::{Flow, FlowKey, Nat, Tuple};

use super::batch;
use super::loader::chain;
use super::maps::Connections;

/// How long ago an entry must have expired. The programs take expired ones over; what they have just written is
/// not to be deleted for what it was when it was read.
const GRACE: u64 = 2_000_000_000;

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows of endpoints that remain.
    pub flows: u64,
    /// Translations that remain.
    pub nat: u64,
    /// Entries deleted.
    pub deleted: u64,
}

/// How soon the next sweep is due: the fuller the fuller of the maps, the sooner.
pub fn interval(swept: Swept, places: (u64, u64)) -> Duration {
    let percent = |used: u64, places: u64| used.saturating_mul(100) / places.max(1);
    match percent(swept.flows, places.0).max(percent(swept.nat, places.1)) {
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

/// Deletes what has expired, and flows of endpoints that are gone.
pub fn sweep(maps: &mut Connections, now: u64, endpoints: &BTreeSet<u32>) -> Swept {
    let mut swept = Swept::default();
    let over = |expires: u64| expires + GRACE < now;
    let mut gone = Vec::new();
    let each = |key: FlowKey, flow: Flow| {
        if over(flow.expires) || !endpoints.contains(&key.endpoint) { gone.push(key) } else { swept.flows += 1 }
    };
    if let Err(error) = batch::scan(&maps.flows, each) {
        tracing::warn!(error = %chain(&error), "flows cannot be read; the next sweep tries again");
    }
    for key in &gone {
        // The program may have renewed it since; deleting then costs one policy lookup.
        let still = maps.flows.get(key, 0).is_ok_and(|f| over(f.expires) || !endpoints.contains(&key.endpoint));
        if still && maps.flows.remove(key).is_ok() {
            swept.deleted += 1;
        }
    }
    let mut gone = Vec::new();
    let each = |tuple: Tuple, nat: Nat| if over(nat.expires) { gone.push(tuple) } else { swept.nat += 1 };
    if let Err(error) = batch::scan(&maps.nat, each) {
        tracing::warn!(error = %chain(&error), "translations cannot be read; the next sweep tries again");
    }
    for tuple in gone {
        let still = maps.nat.get(&tuple, 0).is_ok_and(|n| over(n.expires));
        if still && maps.nat.remove(&tuple).is_ok() {
            swept.deleted += 1;
        }
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_swept_sooner() {
        let of = |flows, nat| interval(Swept { flows, nat, deleted: 0 }, (1000, 1000));
        assert!(of(0, 0) > of(200, 0) && of(200, 0) > of(0, 700));
        assert_eq!(of(1000, 0), of(0, 1000));
        assert!(interval(Swept::default(), (0, 0)) > Duration::ZERO);
    }
}
