//! Translations of packets' tuples, remembered in pairs: one entry a direction.
//!
//! Of a pair, the second's key is the first's target reversed, and the other way round. Nothing that is
//! alive is evicted: when there is no place, the new flow is refused.

use crate::conntrack::{self, STEP};
use crate::env::{Env, Stored};
use crate::parse::{Headers, Kind, NO_TUPLE};
use xebec_ebpf_abi::{DropReason, Flow, MemberKey, Nat, Port, Tuple, proto};

const CLOSED: u8 = Flow::FIN_ORIGINAL | Flow::FIN_REPLY;

/// What becomes of a packet that belongs to a flow, in `headers.to`; keeps the flow alive. `Some` with
/// `Nat::flags`. `None` also for a UDP flow whose backend is no member of its set any more: it has to
/// be given another one.
#[inline(never)]
pub fn lookup<E: Env>(env: &E, headers: &mut Headers, now: u64) -> Option<u16> {
    let opens = conntrack::opens(headers);
    let related = headers.kind == Kind::IcmpError;
    let tcp_flags = headers.tcp_flags;
    let (tuple, target) = (&headers.tuple, &mut headers.to);
    let (flags, renewed) = env.with_nat(tuple, |nat| {
        let old = nat.state as u8;
        let original = nat.flags & Nat::REPLY == 0;
        if nat.expires <= now || (opens && original && old & (CLOSED | Flow::RESET) != 0) {
            return None;
        }
        if original && is_stale(env, tuple, nat) {
            return None;
        }
        *target = nat.to;
        if related {
            return Some((nat.flags, false));
        }
        let both_ways = nat.flags & Nat::DIRECT == 0;
        let state = if both_ways {
            conntrack::step(old, tcp_flags, original)
        } else {
            conntrack::step_unanswered(old, tcp_flags)
        };
        let expires = now + conntrack::timeout(tuple.proto(), state);
        if state == old && expires <= nat.expires + STEP {
            return Some((nat.flags, false));
        }
        nat.state = u16::from(state);
        nat.expires = expires;
        Some((nat.flags, both_ways))
    })??;
    if renewed {
        renew_other(env, &headers.tuple);
    }
    Some(flags)
}

/// UDP has no handshake that a client could begin anew when its backend has gone.
#[inline(always)]
fn is_stale<E: Env>(env: &E, from: &Tuple, nat: &Nat) -> bool {
    nat.set != 0
        && from.proto() == proto::UDP
        && !env.is_member(&MemberKey {
            set: nat.set,
            backend: nat.backend,
        })
}

/// Where entries are put together: they would take half of the stack that all functions share.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    entry: Nat,
    answers: Tuple,
    other: Tuple,
}

impl Scratch {
    pub const EMPTY: Scratch = Scratch {
        entry: Nat::new(NO_TUPLE, 0, 0, 0, 0),
        answers: NO_TUPLE,
        other: NO_TUPLE,
    };
}

/// Gives the other entry of a flow what the packet's own has, and puts it back if it is missing.
#[inline(never)]
fn renew_other<E: Env>(env: &E, tuple: &Tuple) {
    env.with_scratch(|scratch| {
        let Scratch { entry, other, .. } = scratch;
        if env.with_nat(tuple, |own| *entry = *own).is_none() {
            return;
        }
        *other = entry.to.reversed();
        let known = env.with_nat(other, |nat| {
            nat.state = entry.state;
            nat.expires = entry.expires;
        });
        if known.is_none() {
            entry.to = tuple.reversed();
            entry.flags ^= Nat::REPLY;
            env.set_nat(other, entry, true);
        }
    });
}

/// Whose translation it is: `Nat::flags`, `Nat::backend` and `Nat::set`.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub flags: u16,
    pub backend: u32,
    pub set: u32,
}

/// What [`store`] answers, as plain numbers: see `conntrack::judge`.
const KEPT: u32 = 0;
/// Another flow that is alive has answers that look the same.
const TAKEN: u32 = 1;
const FULL: u32 = 2;

/// Remembers that `from` becomes `to` and the answers the reverse; where none are seen ([`Nat::DIRECT`]), the first alone.
/// When another CPU has remembered the flow meanwhile, `to` is what that one has decided.
#[inline(always)]
pub fn remember<E: Env>(
    env: &E,
    from: &Tuple,
    to: &mut Tuple,
    owner: Owner,
    now: u64,
) -> Result<(), DropReason> {
    let kept = if owner.flags & Nat::DIRECT != 0 {
        store_one(env, from, to, &owner, now)
    } else {
        store(env, from, to, &owner, now)
    };
    match kept {
        KEPT => Ok(()),
        FULL => Err(DropReason::NatTableFull),
        _ => Err(DropReason::NatPortExhausted),
    }
}

/// The answers' entry comes first: without it no packet may leave. Each entry is written only if there
/// is none, so that of two CPUs one wins; the other takes its own back and follows.
#[inline(never)]
fn store<E: Env>(env: &E, from: &Tuple, to: &mut Tuple, owner: &Owner, now: u64) -> u32 {
    // The scratch space of a CPU is always there.
    env.with_scratch(|scratch| store_in(env, scratch, from, to, owner, now))
        .unwrap_or(FULL)
}

#[inline(always)]
fn store_in<E: Env>(
    env: &E,
    scratch: &mut Scratch,
    from: &Tuple,
    to: &mut Tuple,
    owner: &Owner,
    now: u64,
) -> u32 {
    let Scratch {
        entry,
        answers,
        other,
    } = scratch;
    *answers = to.reversed();
    *entry = Nat::new(
        from.reversed(),
        owner.flags | Nat::REPLY,
        owner.backend,
        owner.set,
        now + conntrack::TIMEOUT_NEW,
    );
    match env.set_nat(answers, entry, true) {
        Stored::Written => {}
        Stored::Full => return FULL,
        Stored::Exists => {
            // Whose they are, if those packets are not this flow's.
            let free = env.with_nat(answers, |nat| {
                *other = nat.to.reversed();
                let state = nat.state as u8;
                nat.expires <= now
                    || state & CLOSED == CLOSED
                    || state & Flow::RESET != 0
                    || nat.to == entry.to
            });
            if free != Some(true) {
                return TAKEN;
            }
            if *other != *from && env.with_nat(other, |nat| nat.to == *to) == Some(true) {
                // That flow is over: its entry must not stay alone.
                env.remove_nat(other);
            }
            if env.set_nat(answers, entry, false) != Stored::Written {
                return FULL;
            }
        }
    }
    entry.to = *to;
    entry.flags = owner.flags;
    match env.set_nat(from, entry, true) {
        Stored::Written => return KEPT,
        Stored::Full => {
            env.remove_nat(answers);
            return FULL;
        }
        Stored::Exists => {}
    }
    // An old flow of the same client, or the same flow on another CPU.
    let alive = env.with_nat(from, |nat| {
        *to = nat.to;
        nat.expires > now
            && nat.state as u8 & (CLOSED | Flow::RESET) == 0
            && !is_stale(env, from, nat)
            // What was masqueraded before it was a Service's is not what was chosen now.
            && (nat.flags ^ owner.flags) & Nat::MASQUERADE == 0
    });
    *other = to.reversed();
    if alive == Some(true) {
        if *other != *answers {
            env.remove_nat(answers);
        }
        return KEPT;
    }
    if alive.is_some() && *other != *answers {
        env.remove_nat(other);
    }
    *to = entry.to;
    if env.set_nat(from, entry, false) == Stored::Written {
        KEPT
    } else {
        env.remove_nat(answers);
        FULL
    }
}

#[inline(never)]
fn store_one<E: Env>(env: &E, from: &Tuple, to: &mut Tuple, owner: &Owner, now: u64) -> u32 {
    env.with_scratch(|scratch| {
        let entry = &mut scratch.entry;
        let expires = now + conntrack::TIMEOUT_NEW;
        *entry = Nat::new(*to, owner.flags, owner.backend, owner.set, expires);
        let stored = match env.set_nat(from, entry, true) {
            Stored::Exists => {
                let follows = env.with_nat(from, |nat| {
                    let alive = nat.expires > now && nat.state as u8 & (CLOSED | Flow::RESET) == 0;
                    let same = nat.flags == owner.flags && !is_stale(env, from, nat);
                    if alive && same {
                        *to = nat.to;
                    }
                    alive && same
                });
                if follows == Some(true) {
                    return KEPT;
                }
                env.set_nat(from, entry, false)
            }
            stored => stored,
        };
        if stored == Stored::Full { FULL } else { KEPT }
    })
    .unwrap_or(FULL)
}

/// How many ports are tried. A port is taken only for one destination, so it takes as many flows to one
/// address and port to use up the range.
const PORT_TRIES: u32 = 24;

/// Finds a source port that makes the answers to `from` unique when it leaves from `to.src`, puts it
/// into `to` and remembers the translation.
#[inline(always)]
pub fn source<E: Env>(
    env: &E,
    from: &Tuple,
    to: &mut Tuple,
    owner: Owner,
    now: u64,
) -> Result<(), DropReason> {
    let config = env.config().ok_or(DropReason::NotConfigured)?;
    if from.sport.raw() == 0 {
        // No port to tell flows apart by.
        return remember(env, from, to, owner, now);
    }
    let first = u32::from(config.nat_port_min);
    let size = u32::from(config.nat_port_max).wrapping_sub(first) + 1;
    // From a random place on: all ports are tried where there are few.
    let start = ((u64::from(env.random()) * u64::from(size)) >> 32) as u32;
    for step in 0..PORT_TRIES {
        let mut place = start + step;
        if place >= size {
            place -= size;
        }
        to.sport = Port::new((first + place) as u16);
        match store(env, from, to, &owner, now) {
            KEPT => return Ok(()),
            FULL => return Err(DropReason::NatTableFull),
            _ => {}
        }
        if step + 1 >= size {
            break;
        }
    }
    Err(DropReason::NatPortExhausted)
}

/// Whether ports of the protocol can be rewritten.
#[inline(always)]
pub fn has_ports(proto: u8) -> bool {
    proto == proto::TCP || proto == proto::UDP
}
