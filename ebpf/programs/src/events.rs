//! The ring of events, who listens to it, and counts of Services.

use crate::services;
use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, PerCpuArray, PerCpuHashMap, RingBuf},
};
use xebec_ebpf_abi::{
    Addr, DropReason, Event, Listen, NetnsCookie, Port, ServiceCount, SockFrontend, SockKey, Tuple,
    seen,
};
use xebec_ebpf_logic::{budget::Budget, news, parse::Headers};

#[map]
static EVENTS: RingBuf = RingBuf::pinned(512 << 10, 0);
#[map]
static LISTEN: Array<Listen> = Array::pinned(1, 0);
#[map]
static UNTOLD: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);
#[map]
static SERVICE_COUNTS: PerCpuHashMap<u32, ServiceCount> =
    PerCpuHashMap::pinned(65536, BPF_F_NO_PREALLOC);

/// What each CPU may still tell: of drops, of flows.
#[map]
static ALLOWANCE: PerCpuArray<Budget> = PerCpuArray::with_max_entries(2, 0);

/// A packet as a program saw it.
#[derive(Clone, Copy)]
pub struct Sight {
    /// One of `abi::seen`'s.
    pub seen: u8,
    pub ifindex: u32,
    pub bytes: u32,
}

/// Tells of a packet, if there is anything to tell and anybody to tell it to. `reason`: number of the reason it
/// is dropped for. `socket`: the cookie of the socket it comes from.
#[inline(always)]
pub fn tell(sight: Sight, headers: &Headers, reason: u32, socket: impl FnOnce() -> u64) {
    let kind = news::kind(headers, reason);
    if kind == 0 || !is_wanted(kind) {
        return;
    }
    write(&sight, headers, reason, socket());
}

/// Tells of a connect, sendmsg or bind that was refused.
#[inline(never)]
pub fn refused(asked: &Addr, port: Port, proto: u8, netns: u64, reason: DropReason) {
    if !is_wanted(Listen::DROPS) || !may_tell(Listen::DROPS) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        untold();
        return;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let event = entry.write(Event::new(now, seen::SOCKET, reason as u32, 0, 0));
    event.tuple = Tuple::new(Addr::ANY, Port::new(0), *asked, port, proto);
    event.netns = NetnsCookie::new(netns);
    entry.submit(0);
}

/// Tells of a socket of the node that was given a backend which no device of a pod leads to.
#[inline(always)]
pub fn sent_away(netns: u64, proto: u8, asked: &SockFrontend, to: &Addr, port: Port) {
    if is_wanted(Listen::FLOWS) {
        write_sent_away(netns, proto, asked, to, port);
    }
}

/// A function of its own: see `write`.
#[inline(never)]
fn write_sent_away(netns: u64, proto: u8, asked: &SockFrontend, to: &Addr, port: Port) {
    if !may_tell(Listen::FLOWS) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        untold();
        return;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let event = entry.write(Event::new(now, seen::SOCKET, 0, 0, 0));
    event.tuple = Tuple::new(Addr::ANY, Port::new(0), *to, port, proto);
    event.asked = asked.addr;
    event.asked_port = asked.port;
    event.service = asked.service;
    event.netns = NetnsCookie::new(netns);
    entry.submit(0);
}

#[inline(always)]
fn is_wanted(kind: u32) -> bool {
    LISTEN
        .get(0)
        .is_some_and(|listen| listen.wanted & kind != 0)
}

/// A function of its own: what it needs of the stack is not its callers'.
#[inline(never)]
fn write(sight: &Sight, headers: &Headers, reason: u32, socket: u64) {
    if !may_tell(news::kind(headers, reason)) {
        return;
    }
    let tuple = &headers.tuple;
    let asked = services::sock_frontend(&SockKey::new(socket, tuple.dst, tuple.dport));
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        untold();
        return;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let event = entry.write(Event::new(
        now,
        sight.seen,
        reason,
        sight.bytes,
        sight.ifindex,
    ));
    // Else they are another packet's.
    if headers.notes & Headers::UNREAD == 0 {
        event.tuple = *tuple;
        event.rules = headers.rules;
        event.service = headers.service;
        event.asked = headers.asked.0;
        event.asked_port = headers.asked.1;
        if let Some(asked) = asked {
            event.service = asked.service;
            event.asked = asked.addr;
            event.asked_port = asked.port;
        }
    }
    entry.submit(0);
}

#[inline(always)]
fn may_tell(kind: u32) -> bool {
    let rate = LISTEN.get(0).map_or(0, |listen| listen.rate);
    let index = if kind == Listen::FLOWS { 1 } else { 0 };
    let Some(allowance) = ALLOWANCE.get_ptr_mut(index) else {
        return false;
    };
    // SAFETY: a helper without arguments; the entry is this CPU's. A socket's program may be interrupted by a
    // packet's: then one of the two goes uncounted.
    let may = unsafe { news::may_tell(&mut *allowance, bpf_ktime_get_ns(), rate) };
    if !may {
        untold();
    }
    may
}

#[inline(always)]
fn untold() {
    if let Some(count) = UNTOLD.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's.
        unsafe { *count += 1 };
    }
}

/// Counts what a Service's port was asked for.
#[inline(always)]
pub fn served(service: u32, refused: bool) {
    match SERVICE_COUNTS.get_ptr_mut(service) {
        // SAFETY: the entry is this CPU's.
        Some(count) => unsafe {
            if refused {
                (*count).refused += 1;
            } else {
                (*count).flows += 1;
            }
        },
        None => first(service, refused),
    }
}

/// A function of its own: see `write`.
#[inline(never)]
fn first(service: u32, refused: bool) {
    let count = ServiceCount {
        flows: u64::from(!refused),
        refused: u64::from(refused),
    };
    // A full map costs the counts of one Service.
    if SERVICE_COUNTS
        .insert(service, count, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return;
    }
    // Another CPU was quicker.
    if let Some(own) = SERVICE_COUNTS.get_ptr_mut(service) {
        // SAFETY: the entry is this CPU's.
        unsafe {
            (*own).flows += count.flows;
            (*own).refused += count.refused;
        }
    }
}
