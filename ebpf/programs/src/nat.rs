//! Maps of uplinks and address translation.

use crate::env::lpm_key;
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{HashMap, LpmTrie, LruHashMap},
};
use xebec_ebpf_abi::{Addr, Nat, Tuple, Uplink};

#[map]
static UPLINKS: HashMap<u32, Uplink> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
#[map]
static NO_MASQUERADE: LpmTrie<Addr, u32> = LpmTrie::pinned(4096, 0);
#[map]
static NAT: LruHashMap<Tuple, Nat> = LruHashMap::pinned(262_144, 0);

// SAFETY of the `get`s: see services.rs.

#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<Uplink> {
    unsafe { UPLINKS.get(ifindex) }.copied()
}

#[inline(always)]
pub fn keeps_pod_source(dst: &Addr) -> bool {
    NO_MASQUERADE.get(lpm_key(128, *dst)).is_some()
}

#[inline(always)]
pub fn with_nat<R>(key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R> {
    let nat = NAT.get_ptr_mut(key)?;
    // SAFETY: as for flows in pods.rs.
    Some(f(unsafe { &mut *nat }))
}

#[inline(always)]
pub fn set_nat(key: &Tuple, value: &Nat, only_new: bool) -> bool {
    let flags = if only_new { BPF_NOEXIST } else { BPF_ANY };
    NAT.insert(key, value, u64::from(flags)).is_ok()
}
