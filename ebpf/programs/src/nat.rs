//! Maps of uplinks and address translation.

use crate::{counters, env::lpm_key};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{HashMap, LpmTrie, PerCpuArray},
};
use xebec_ebpf_abi::{Addr, Nat, Tuple, Uplink, inserts};
use xebec_ebpf_logic::{Stored, nat::Scratch};

#[map]
static UPLINKS: HashMap<u32, Uplink> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
#[map]
static NO_MASQUERADE: LpmTrie<Addr, u32> = LpmTrie::pinned(4096, 0);
#[map]
static NAT: HashMap<Tuple, Nat> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
/// See `Scratch`.
#[map]
static NAT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

// SAFETY of the `get`s: see services.rs.

#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<Uplink> {
    unsafe { UPLINKS.get(ifindex) }.copied()
}

#[inline(always)]
pub fn range(addr: &Addr) -> u32 {
    NO_MASQUERADE.get(lpm_key(128, *addr)).copied().unwrap_or(0)
}

#[inline(always)]
pub fn with_nat<R>(key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R> {
    let nat = NAT.get_ptr_mut(key)?;
    // SAFETY: as for flows in pods.rs.
    Some(f(unsafe { &mut *nat }))
}

#[inline(always)]
pub fn set_nat(key: &Tuple, value: &Nat, only_new: bool) -> Stored {
    const EEXIST: i64 = -17;
    counters::inserted(inserts::NAT);
    let flags = if only_new { BPF_NOEXIST } else { BPF_ANY };
    match NAT.insert(key, value, u64::from(flags)) {
        Ok(()) => Stored::Written,
        Err(code) if i64::from(code) == EEXIST => Stored::Exists,
        Err(_) => Stored::Full,
    }
}

#[inline(always)]
pub fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
    let scratch = NAT_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: programs that translate packets run with bottom halves off and do not nest: nobody else on
    // this CPU has the entry, and no caller holds it while another does. Any bytes are a Scratch.
    Some(f(unsafe { &mut *scratch }))
}

#[inline(always)]
pub fn remove_nat(key: &Tuple) {
    // User space may have been quicker.
    let _ = NAT.remove(key);
}
