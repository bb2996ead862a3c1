//! Maps of pods: who they are, what they may do, what they are doing.

use crate::{counters, env::lpm_key};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use xebec_ebpf_abi::{
    Addr, Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Limit, LimitKey, PolicyKey,
    PolicyVerdict, Remote, Shortcut, inserts,
};

#[map]
static ENDPOINTS: HashMap<Addr, Endpoint> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
static IPCACHE: LpmTrie<Addr, Remote> = LpmTrie::pinned(524_288, 0);
#[map]
static POLICY: LpmTrie<PolicyKey, PolicyVerdict> = LpmTrie::pinned(524_288, 0);
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(8192, 0);
#[map]
static LIMITS: HashMap<LimitKey, Limit> = HashMap::pinned(8192, BPF_F_NO_PREALLOC);
#[map]
static SHORTCUTS: PerCpuArray<Shortcut> = PerCpuArray::pinned(Shortcut::PLACES, 0);
#[map]
static GENERATION: Array<u64> = Array::pinned(1, 0);

// SAFETY of the `get`s: see services.rs.

#[inline(always)]
pub fn endpoint(addr: &Addr) -> Option<Endpoint> {
    unsafe { ENDPOINTS.get(addr) }.copied()
}

#[inline(always)]
pub fn remote(addr: &Addr) -> Option<Remote> {
    IPCACHE.get(lpm_key(128, *addr)).copied()
}

#[inline(always)]
pub fn policy(key: &PolicyKey) -> Option<PolicyVerdict> {
    POLICY.get(lpm_key(PolicyKey::EXACT, *key)).copied()
}

#[inline(always)]
pub fn with_flow<R>(key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the map's memory outlives the program's run. Another CPU may write the same entry:
    // both write the outcome of a packet of the same flow, and either is right.
    Some(f(unsafe { &mut *flow }))
}

#[inline(always)]
pub fn set_flow(key: &FlowKey, value: &Flow) -> bool {
    counters::inserted(inserts::FLOWS);
    FLOWS.insert(key, value, 0).is_ok()
}

#[inline(always)]
pub fn with_limit<R>(key: &LimitKey, f: impl FnOnce(&mut Limit) -> R) -> Option<R> {
    let limit = LIMITS.get_ptr_mut(key)?;
    // SAFETY: as for flows.
    Some(f(unsafe { &mut *limit }))
}

#[inline(always)]
pub fn with_shortcut<R>(place: u32, f: impl FnOnce(&mut Shortcut) -> R) -> Option<R> {
    let shortcut = SHORTCUTS.get_ptr_mut(place)?;
    // SAFETY: the entry is this CPU's, and programs at devices run with bottom halves off and do not nest.
    Some(f(unsafe { &mut *shortcut }))
}

#[inline(always)]
pub fn generation() -> u64 {
    GENERATION.get(0).copied().unwrap_or(0)
}

#[inline(always)]
pub fn fragment(key: &FragmentKey) -> Option<FragmentPorts> {
    unsafe { FRAGMENTS.get(key) }.copied()
}

#[inline(always)]
pub fn set_fragment(key: &FragmentKey, value: &FragmentPorts) {
    // Without the entry the later fragments are dropped and counted.
    let _ = FRAGMENTS.insert(key, value, 0);
}
