//! Maps of Services, and what clients were given.

use crate::{counters, env::lpm_key};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{HashMap, LpmTrie, LruHashMap},
};
use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, BackendSet, Frontend, FrontendKey, Given, MemberKey,
    NodeAddr, SlotKey, SockFrontend, SockKey, SourceRangeKey, inserts,
};

#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
static BACKEND_SETS: HashMap<u32, BackendSet> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
static BACKEND_SLOTS: HashMap<SlotKey, u32> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: HashMap<u32, Backend> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
static SET_MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
static SOURCE_RANGES: LpmTrie<SourceRangeKey, u32> = LpmTrie::pinned(65536, 0);
#[map]
static NODE_ADDRS: HashMap<Addr, NodeAddr> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(65536, 0);
#[map]
static SOCK_REVERSE: LruHashMap<SockKey, SockFrontend> = LruHashMap::pinned(131_072, 0);
#[map]
static GIVEN: LruHashMap<SockKey, Given> = LruHashMap::pinned(65536, 0);

// SAFETY of every `get` below: the value is copied at once; without preallocation an entry that is
// deleted meanwhile lives until the program ends, and in an LRU map at worst another flow's value is
// read, which the next packet puts right.

#[inline(always)]
pub fn frontend(key: &FrontendKey) -> Option<Frontend> {
    unsafe { FRONTENDS.get(key) }.copied()
}

#[inline(always)]
pub fn backend_set(id: u32) -> Option<BackendSet> {
    unsafe { BACKEND_SETS.get(id) }.copied()
}

#[inline(always)]
pub fn backend_slot(key: &SlotKey) -> Option<u32> {
    unsafe { BACKEND_SLOTS.get(key) }.copied()
}

#[inline(always)]
pub fn backend(id: u32) -> Option<Backend> {
    unsafe { BACKENDS.get(id) }.copied()
}

#[inline(always)]
pub fn is_member(key: &MemberKey) -> bool {
    SET_MEMBERS.get_ptr(key).is_some()
}

#[inline(always)]
pub fn node_addr(addr: &Addr) -> Option<NodeAddr> {
    unsafe { NODE_ADDRS.get(addr) }.copied()
}

#[inline(always)]
pub fn is_source_allowed(key: &SourceRangeKey) -> bool {
    SOURCE_RANGES.get(lpm_key(32 + 128, *key)).is_some()
}

#[inline(always)]
pub fn affinity(key: &AffinityKey) -> Option<Affinity> {
    unsafe { AFFINITY.get(key) }.copied()
}

#[inline(always)]
pub fn set_affinity(key: &AffinityKey, value: &Affinity) {
    counters::inserted(inserts::AFFINITY);
    // A full map costs stickiness, not the connection.
    let _ = AFFINITY.insert(key, value, 0);
}

#[inline(always)]
pub fn sock_frontend(key: &SockKey) -> Option<SockFrontend> {
    unsafe { SOCK_REVERSE.get(key) }.copied()
}

#[inline(always)]
pub fn set_sock_frontend(key: &SockKey, value: &SockFrontend) -> bool {
    counters::inserted(inserts::SOCK_REVERSE);
    SOCK_REVERSE.insert(key, value, 0).is_ok()
}

#[inline(always)]
pub fn remove_sock_frontend(key: &SockKey) {
    // Most sockets have no entry, and looking takes no lock.
    if SOCK_REVERSE.get_ptr(key).is_some() {
        let _ = SOCK_REVERSE.remove(key);
    }
}

#[inline(always)]
pub fn given(key: &SockKey) -> Option<Given> {
    unsafe { GIVEN.get(key) }.copied()
}

#[inline(always)]
pub fn set_given(key: &SockKey, value: &Given) {
    counters::inserted(inserts::GIVEN);
    // Without the entry the socket stays with its backend, as it would anywhere else.
    let _ = GIVEN.insert(key, value, 0);
}

#[inline(always)]
pub fn remove_given(key: &SockKey) {
    if GIVEN.get_ptr(key).is_some() {
        let _ = GIVEN.remove(key);
    }
}
