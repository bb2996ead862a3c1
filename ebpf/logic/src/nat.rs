//! Translations of packets' tuples, remembered in pairs: one entry a direction.

use crate::conntrack::{self, STEP};
use crate::env::Env;
use crate::parse::{Headers, Kind};
use crate::service;
use xebec_ebpf_abi::{DropReason, Flow, Nat, Port, Tuple, proto};

const CLOSED: u8 = Flow::FIN_ORIGINAL | Flow::FIN_REPLY;

/// What becomes of a packet that belongs to a flow, in `headers.to`; keeps the flow alive. `Some` with
/// `Nat::flags`.
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
        *target = nat.to;
        if related {
            return Some((nat.flags, None));
        }
        let state = conntrack::step(old, tcp_flags, original);
        let expires = now + conntrack::timeout(tuple.proto(), state);
        if state == old && expires <= nat.expires + STEP {
            return Some((nat.flags, None));
        }
        nat.state = u16::from(state);
        nat.expires = expires;
        Some((nat.flags, Some((u16::from(state), expires))))
    })??;
    if let Some((state, expires)) = renewed {
        env.with_nat(&headers.to.reversed(), |other| {
            other.state = state;
            other.expires = expires;
        });
    }
    Some(flags)
}

/// Whose translation it is: `Nat::flags` and `Nat::backend`.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub flags: u16,
    pub backend: u32,
}

/// Remembers that `from` becomes `to` and the answers the reverse. False when another flow that is
/// alive has answers that look the same, or the map is full.
///
/// A function of its own in the kernel too: its entries would not fit on the caller's stack.
#[inline(never)]
pub fn remember<E: Env>(env: &E, from: &Tuple, to: &Tuple, owner: Owner, now: u64) -> bool {
    let Owner { flags, backend } = owner;
    let expires = now + conntrack::TIMEOUT_NEW;
    let answers = to.reversed();
    let mut entry = Nat {
        expires,
        to: from.reversed(),
        flags: flags | Nat::REPLY,
        state: 0,
        backend,
    };
    if !env.set_nat(&answers, &entry, true) {
        let free = env.with_nat(&answers, |nat| {
            let state = nat.state as u8;
            nat.expires <= now
                || state & CLOSED == CLOSED
                || state & Flow::RESET != 0
                || nat.to == entry.to
        });
        if free != Some(true) || !env.set_nat(&answers, &entry, false) {
            return false;
        }
    }
    entry.to = *to;
    entry.flags = flags;
    env.set_nat(from, &entry, false)
}

/// How many ports are tried. With half of the range in use all of them fail once in 65,536 flows.
const PORT_TRIES: u32 = 16;

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
        return if remember(env, from, to, owner, now) {
            Ok(())
        } else {
            Err(DropReason::NatPortExhausted)
        };
    }
    let (first, last) = (
        u32::from(config.nat_port_min),
        u32::from(config.nat_port_max),
    );
    let size = last.wrapping_sub(first) + 1;
    let mut dice = env.random();
    for _ in 0..PORT_TRIES {
        let port = first + ((u64::from(dice) * u64::from(size)) >> 32) as u32;
        to.sport = Port::new(port as u16);
        if remember(env, from, to, owner, now) {
            return Ok(());
        }
        dice = service::mix(u64::from(dice) + 1);
    }
    Err(DropReason::NatPortExhausted)
}

/// Whether ports of the protocol can be rewritten.
#[inline(always)]
pub fn has_ports(proto: u8) -> bool {
    proto == proto::TCP || proto == proto::UDP
}
