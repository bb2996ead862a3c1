//! Entries of the connection maps that count no more. The maps are LRU, so this only keeps them honest: fill
//! figures mean live flows, and a freed endpoint number carries no old flow.

use std::collections::BTreeSet;

use xebec_ebpf_abi::Nat;

use super::maps::Connections;

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

/// `CLOCK_MONOTONIC` in nanoseconds, as the programs see it.
pub fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one timespec, which lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Deletes what has expired, flows of endpoints that are gone, and UDP translations to backends that are gone
/// (a client keeps sending to a dead backend otherwise: there is no handshake to fail).
pub fn sweep(maps: &mut Connections, now: u64, endpoints: &BTreeSet<u32>, backends: &BTreeSet<u32>) -> Swept {
    let mut swept = Swept::default();
    let mut gone = Vec::new();
    for (key, flow) in maps.flows.iter().flatten() {
        if flow.expires < now || !endpoints.contains(&key.endpoint) { gone.push(key) } else { swept.flows += 1 }
    }
    for key in &gone {
        // The program may have renewed it since; deleting then costs one policy lookup.
        let still = maps.flows.get(key, 0).is_ok_and(|f| f.expires < now || !endpoints.contains(&key.endpoint));
        if still && maps.flows.remove(key).is_ok() {
            swept.deleted += 1;
        }
    }
    let mut gone = Vec::new();
    for (tuple, nat) in maps.nat.iter().flatten() {
        let orphan = nat.flags & Nat::MASQUERADE == 0
            && nat.backend != 0
            && tuple.proto() == xebec_ebpf_abi::proto::UDP
            && !backends.contains(&nat.backend);
        if nat.expires < now || orphan { gone.push((tuple, orphan)) } else { swept.nat += 1 }
    }
    for (tuple, orphan) in gone {
        let still = orphan || maps.nat.get(&tuple, 0).is_ok_and(|n| n.expires < now);
        if still && maps.nat.remove(&tuple).is_ok() {
            swept.deleted += 1;
        }
    }
    swept
}
