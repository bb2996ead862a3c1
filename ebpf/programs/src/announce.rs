//! The map of addresses that are answered for.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap};
use xebec_ebpf_abi::{Announced, AnnouncedKey};

#[map]
static ANNOUNCED: HashMap<AnnouncedKey, Announced> = HashMap::pinned(16384, BPF_F_NO_PREALLOC);

#[inline(always)]
pub fn announced(key: &AnnouncedKey) -> Option<Announced> {
    // SAFETY: see services.rs.
    unsafe { ANNOUNCED.get(key) }.copied()
}
