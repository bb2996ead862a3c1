//! Maps of uplinks and address translation.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
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
