//! The kernel as the logic sees it.

use crate::{announce, counters, events, least, nat, pods, rings, services};
use aya_ebpf::{
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
    maps::lpm_trie::Key,
};
use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, BackendSet, Config, DropReason,
    Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, Given, Limit,
    LimitKey, MemberKey, Nat, NodeAddr, PolicyKey, PolicyVerdict, Port, Remote, Rings, Shortcut,
    SlotKey, SockFrontend, SockKey, SourceRangeKey, Tuple, Uplink,
};
use xebec_ebpf_logic::{Env, Stored, budget::Budget, nat::Scratch, socket::Socket};

pub struct Kernel;

impl Env for Kernel {
    #[inline(always)]
    fn now(&self) -> u64 {
        // As of the last tick: nothing that is asked here is finer, and reading the clock itself costs as much as a map.
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn config(&self) -> Option<Config> {
        counters::config()
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        services::frontend(key)
    }

    #[inline(always)]
    fn backend_set(&self, id: u32) -> Option<BackendSet> {
        services::backend_set(id)
    }

    #[inline(always)]
    fn backend_slot(&self, key: &SlotKey) -> Option<u32> {
        services::backend_slot(key)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        services::backend(id)
    }

    #[inline(always)]
    fn is_member(&self, key: &MemberKey) -> bool {
        services::is_member(key)
    }

    #[inline(always)]
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        services::node_addr(addr)
    }

    #[inline(always)]
    fn rings(&self, set: u32) -> Option<Rings> {
        rings::rings(set)
    }

    #[inline(always)]
    fn ring_backend(&self, ring: u32, place: u32) -> Option<u32> {
        rings::backend(ring, place)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        services::affinity(key)
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        services::set_affinity(key, value);
    }

    #[inline(always)]
    fn sock_frontend(&self, key: &SockKey) -> Option<SockFrontend> {
        services::sock_frontend(key)
    }

    #[inline(always)]
    fn set_sock_frontend(&self, key: &SockKey, value: &SockFrontend) -> bool {
        services::set_sock_frontend(key, value)
    }

    #[inline(always)]
    fn remove_sock_frontend(&self, key: &SockKey) {
        services::remove_sock_frontend(key);
    }

    #[inline(always)]
    fn given(&self, key: &SockKey) -> Option<Given> {
        services::given(key)
    }

    #[inline(always)]
    fn set_given(&self, key: &SockKey, value: &Given) {
        services::set_given(key, value);
    }

    #[inline(always)]
    fn remove_given(&self, key: &SockKey) {
        services::remove_given(key);
    }

    #[inline(always)]
    fn connections(&self, backend: u32) -> u64 {
        least::connections(backend)
    }

    #[inline(always)]
    fn count_connection(&self, cookie: u64, backend: u32) {
        least::count(cookie, backend);
    }

    #[inline(always)]
    fn end_connection(&self, cookie: u64) {
        least::end(cookie);
    }

    #[inline(always)]
    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        pods::endpoint(addr)
    }

    #[inline(always)]
    fn remote(&self, addr: &Addr) -> Option<Remote> {
        pods::remote(addr)
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyVerdict> {
        pods::policy(key)
    }

    #[inline(always)]
    fn with_flow<R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        pods::with_flow(key, f)
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKey, value: &Flow) -> bool {
        pods::set_flow(key, value)
    }

    #[inline(always)]
    fn with_shortcut<R>(&self, place: u32, f: impl FnOnce(&mut Shortcut) -> R) -> Option<R> {
        pods::with_shortcut(place, f)
    }

    #[inline(always)]
    fn generation(&self) -> u64 {
        pods::generation()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        pods::fragment(key)
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentPorts) {
        pods::set_fragment(key, value);
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        nat::uplink(ifindex)
    }

    #[inline(always)]
    fn announced(&self, key: &AnnouncedKey) -> Option<Announced> {
        announce::announced(key)
    }

    #[inline(always)]
    fn is_source_allowed(&self, key: &SourceRangeKey) -> bool {
        services::is_source_allowed(key)
    }

    #[inline(always)]
    fn range(&self, addr: &Addr) -> u32 {
        nat::range(addr)
    }

    #[inline(always)]
    fn with_nat<R>(&self, key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R> {
        nat::with_nat(key, f)
    }

    #[inline(always)]
    fn set_nat(&self, key: &Tuple, value: &Nat, only_new: bool) -> Stored {
        nat::set_nat(key, value, only_new)
    }

    #[inline(always)]
    fn remove_nat(&self, key: &Tuple) {
        nat::remove_nat(key);
    }

    #[inline(always)]
    fn with_scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        nat::with_scratch(f)
    }

    #[inline(always)]
    fn with_budget<R>(&self, f: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        counters::with_budget(f)
    }

    #[inline(always)]
    fn dropped(&self, reason: DropReason, bytes: u32) {
        counters::dropped(reason, bytes);
    }

    #[inline(always)]
    fn forwarded(&self, path: u32, bytes: u32) {
        counters::forwarded(path, bytes);
    }

    #[inline(always)]
    fn served(&self, service: u32, refused: bool) {
        events::served(service, refused);
    }

    #[inline(always)]
    fn sent_away(&self, socket: &Socket, asked: &SockFrontend, to: &Addr, port: Port) {
        events::sent_away(socket.netns, socket.proto, asked, to, port);
    }

    #[inline(always)]
    fn with_limit<R>(&self, key: &LimitKey, f: impl FnOnce(&mut Limit) -> R) -> Option<R> {
        pods::with_limit(key, f)
    }
}

/// An LPM key on the stack, aligned so that it is written by words (aya's own is packed).
#[repr(C, align(4))]
pub struct LpmKey<K>(Key<K>);

#[inline(always)]
pub fn lpm_key<K>(bits: u32, data: K) -> LpmKey<K> {
    LpmKey(Key::new(bits, data))
}

impl<K> core::borrow::Borrow<Key<K>> for LpmKey<K> {
    #[inline(always)]
    fn borrow(&self) -> &Key<K> {
        &self.0
    }
}
