//! Services: which frontend an address is, which backend a client gets.

use crate::conntrack;
use crate::env::Env;
use crate::least;
use crate::maglev::{self, Use};
use crate::parse::{Headers, Kind};
use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, BackendSet, DropReason, Frontend, FrontendKey, MemberKey,
    NodeAddr, Port, SlotKey, SourceRangeKey, Tuple,
};

/// The Service reached at an address. `from_node`: the client is in the node's network namespace,
/// where loopback is one of the node's addresses, and so is no address at all (connect(2) takes it
/// for loopback).
#[inline(always)]
pub fn find<E: Env>(
    env: &E,
    addr: Addr,
    port: Port,
    proto: u8,
    from_node: bool,
) -> Option<Frontend> {
    let loopback = addr.is_loopback() || addr == Addr::ANY || addr == Addr::ANY_V4;
    if loopback && !from_node {
        return None;
    }
    if let Some(frontend) = env.frontend(&FrontendKey::new(addr, port, proto)) {
        return Some(frontend);
    }
    let own = loopback
        || env
            .node_addr(&addr)
            .is_some_and(|a| a.flags & NodeAddr::NODEPORT != 0);
    if !own {
        return None;
    }
    env.frontend(&FrontendKey::node_port(addr.is_v4(), port, proto))
}

/// Whether the Service takes packets from this source.
#[inline(always)]
pub fn admits<E: Env>(env: &E, frontend: &Frontend, source: &Addr) -> bool {
    frontend.flags & Frontend::SOURCE_RANGES == 0 || in_ranges(env, frontend.service, source)
}

/// A function of its own: the key would grow its callers' stacks, and those are full.
#[inline(never)]
fn in_ranges<E: Env>(env: &E, service: u32, source: &Addr) -> bool {
    env.is_source_allowed(&SourceRangeKey {
        service,
        addr: *source,
    })
}

/// A backend that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub id: u32,
    pub backend: Backend,
}

impl Chosen {
    pub const NONE: Chosen = Chosen {
        id: 0,
        backend: Backend::new(Addr::ANY, Port::new(0), 0),
    };
}

/// What [`assign`] answers, as plain numbers: see `conntrack::judge`.
const ASSIGNED: u32 = 0;
const NO_BACKEND: u32 = 1;
const NO_LOCAL_BACKEND: u32 = 2;

/// Chooses a backend of `set` for the flow that a packet starts: `headers.to` leads to it,
/// `headers.backend` is it.
#[inline(always)]
pub fn assign<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    headers: &mut Headers,
) -> Result<(), DropReason> {
    match assign_in(env, frontend, set, headers) {
        ASSIGNED => Ok(()),
        NO_LOCAL_BACKEND => Err(DropReason::NoLocalBackend),
        _ => Err(DropReason::NoBackend),
    }
}

/// The same for a packet from outside. What comes of it is the caller's to count: another hook may be asked next.
#[inline(always)]
pub fn assign_outside<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    headers: &mut Headers,
) -> Result<(), DropReason> {
    match assign_outside_in(env, frontend, set, headers) {
        ASSIGNED => Ok(()),
        NO_LOCAL_BACKEND => Err(DropReason::NoLocalBackend),
        _ => Err(DropReason::NoBackend),
    }
}

/// A function of its own in the kernel too, so that what it needs of the stack is free again when the
/// choice is remembered.
#[inline(never)]
fn assign_in<E: Env>(env: &E, frontend: &Frontend, set: u32, headers: &mut Headers) -> u32 {
    let client = AffinityKey::address(headers.tuple.src, set);
    let chosen = choose(env, frontend, set, client, spread(&headers.tuple));
    env.served(frontend.service, chosen.is_err());
    headers.service = frontend.service;
    take(headers, chosen)
}

#[inline(never)]
fn assign_outside_in<E: Env>(env: &E, frontend: &Frontend, set: u32, headers: &mut Headers) -> u32 {
    let chosen = choose_outside(env, frontend, set, headers);
    headers.service = frontend.service;
    headers.asked = (headers.tuple.dst, headers.tuple.dport);
    headers.notes |= Headers::NEW;
    if frontend.flags & Frontend::DIRECT != 0 {
        headers.notes |= Headers::DIRECT;
    }
    take(headers, chosen)
}

#[inline(always)]
fn take(headers: &mut Headers, chosen: Result<Chosen, DropReason>) -> u32 {
    match chosen {
        Ok(chosen) => {
            headers.to = headers.tuple;
            headers.to.dst = chosen.backend.addr;
            headers.to.dport = chosen.backend.port;
            headers.backend = chosen;
            ASSIGNED
        }
        Err(DropReason::NoLocalBackend) => NO_LOCAL_BACKEND,
        Err(_) => NO_BACKEND,
    }
}

/// A slot may go between reading the count and reading it; then the count is read again.
const TRIES: usize = 3;

/// Picks a backend of `set` for a client in the cluster. `dice`: equal dice give equal backends while the
/// set is the same.
#[inline(always)]
pub fn choose<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    client: AffinityKey,
    dice: u32,
) -> Result<Chosen, DropReason> {
    let ring = if frontend.flags & Frontend::RING_INSIDE != 0 {
        Use::Current
    } else {
        Use::None
    };
    pick(env, frontend, set, client, dice, ring)
}

/// Picks a backend of `set` for a packet from outside, whose flow nobody knows.
#[inline(always)]
pub fn choose_outside<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    headers: &Headers,
) -> Result<Chosen, DropReason> {
    let ring = if frontend.flags & Frontend::RING == 0 {
        Use::None
    } else if conntrack::opens(headers) {
        Use::Current
    } else if headers.kind == Kind::Tcp {
        Use::BothGenerations
    } else {
        Use::BothForAWhile
    };
    let client = AffinityKey::address(headers.tuple.src, set);
    pick(env, frontend, set, client, spread(&headers.tuple), ring)
}

#[inline(always)]
fn pick<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    client: AffinityKey,
    dice: u32,
    ring: Use,
) -> Result<Chosen, DropReason> {
    let sticky = frontend.flags & Frontend::AFFINITY != 0;
    let now = if sticky { env.now() } else { 0 };
    if sticky && let Some(chosen) = remembered(env, frontend, set, &client, now) {
        return Ok(chosen);
    }
    let mut on_ring = maglev::backend(env, set, dice, ring);
    for _ in 0..TRIES {
        let (count, flags) = env.backend_set(set).map_or((0, 0), |s| (s.count, s.flags));
        if count == 0 {
            return Err(if flags & BackendSet::DROP_WHEN_EMPTY != 0 {
                DropReason::NoLocalBackend
            } else {
                DropReason::NoBackend
            });
        }
        let id = if on_ring != 0 {
            on_ring
        } else {
            let slot = least::scaled(dice, count);
            env.backend_slot(&SlotKey { set, slot }).unwrap_or(0)
        };
        // A ring that could not be brought up to date has no second say.
        on_ring = 0;
        let Some(backend) = env.backend(id) else {
            continue;
        };
        if sticky {
            env.set_affinity(&client, &Affinity::new(id, now));
        }
        return Ok(Chosen { id, backend });
    }
    Err(DropReason::NoBackend)
}

#[inline(always)]
fn remembered<E: Env>(
    env: &E,
    frontend: &Frontend,
    set: u32,
    client: &AffinityKey,
    now: u64,
) -> Option<Chosen> {
    let affinity = env.affinity(client)?;
    let timeout = u64::from(frontend.affinity_timeout) * 1_000_000_000;
    if now.saturating_sub(affinity.last_used) >= timeout {
        return None;
    }
    if !env.is_member(&MemberKey {
        set,
        backend: affinity.backend,
    }) {
        return None;
    }
    let backend = env.backend(affinity.backend)?;
    env.set_affinity(client, &Affinity::new(affinity.backend, now));
    Some(Chosen {
        id: affinity.backend,
        backend,
    })
}

/// Dice for a packet: the same for all packets of a flow, so that one whose entry was evicted finds
/// its backend again.
#[inline(always)]
pub fn spread(tuple: &Tuple) -> u32 {
    let (src, dst) = (tuple.src.words(), tuple.dst.words());
    let ports = u64::from(tuple.sport.raw()) << 16 | u64::from(tuple.dport.raw());
    let mut h = ports;
    let mut i = 0;
    while i < 4 {
        h = (h ^ u64::from(src[i]) ^ u64::from(dst[i]) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 29;
        i += 1;
    }
    mix(h)
}

/// Spreads a number over 32 bits (the finalizer of MurmurHash3, 64 bits wide).
#[inline(always)]
pub fn mix(value: u64) -> u32 {
    let mut h = value;
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^= h >> 33;
    (h >> 32) as u32
}
