//! Counters and the node's configuration.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use xebec_ebpf_abi::{Config, DropCount, DropReason, forward, inserts};
use xebec_ebpf_logic::budget::Budget;

#[map]
static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
static DROPS: PerCpuArray<DropCount> = PerCpuArray::pinned(DropReason::COUNT, 0);
#[map]
static FORWARDS: PerCpuArray<DropCount> = PerCpuArray::pinned(forward::COUNT, 0);
#[map]
static INSERTS: PerCpuArray<u64> = PerCpuArray::pinned(inserts::MAPS.len() as u32, 0);

/// ICMP errors each CPU may still send.
#[map]
static ICMP_BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn with_budget<R>(f: impl FnOnce(&mut Budget) -> R) -> Option<R> {
    let budget = ICMP_BUDGET.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's, and BPF programs do not migrate while they run.
    Some(f(unsafe { &mut *budget }))
}

#[inline(always)]
pub fn config() -> Option<Config> {
    CONFIG.get(0).copied()
}

#[inline(always)]
pub fn dropped(reason: DropReason, bytes: u32) {
    count(&DROPS, reason as u32, bytes);
}

#[inline(always)]
pub fn forwarded(path: u32, bytes: u32) {
    count(&FORWARDS, path, bytes);
}

/// An entry of a map, one of `inserts`', is written.
#[inline(always)]
pub fn inserted(map: u32) {
    if let Some(count) = INSERTS.get_ptr_mut(map) {
        // SAFETY: as below. A socket's program may be interrupted by a packet's: then one of the two goes uncounted.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn count(map: &PerCpuArray<DropCount>, index: u32, bytes: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's, and BPF programs do not migrate while they run.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
