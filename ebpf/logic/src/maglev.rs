//! Consistent hashing: a flow's hash is a place on a ring, and the place has a backend. User space makes the
//! rings, equal on every node, so that any node sends a flow where any other would.

use crate::env::Env;
use xebec_ebpf_abi::Ring;

/// Which rings of a set count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    None,
    Current,
    /// The packet is of a flow that began elsewhere or earlier: if its place has changed hands, it belongs to
    /// the one from before.
    BothGenerations,
    /// The packet may be of such a flow, as long as the change is recent.
    BothForAWhile,
}

/// The backend that `hash` leads to, 0 for none.
#[inline(always)]
pub fn backend<E: Env>(env: &E, set: u32, hash: u32, rings: Use) -> u32 {
    if rings == Use::None {
        return 0;
    }
    let Some(of_set) = env.rings(set) else {
        return 0;
    };
    let current = at(env, of_set.current, hash);
    let second_chance = match rings {
        Use::None | Use::Current => false,
        Use::BothGenerations => true,
        Use::BothForAWhile => env.now() < of_set.until,
    };
    if !second_chance {
        return current;
    }
    let previous = at(env, of_set.previous, hash);
    if previous != current && previous != 0 && env.backend(previous).is_some() {
        previous
    } else {
        current
    }
}

#[inline(always)]
fn at<E: Env>(env: &E, ring: Ring, hash: u32) -> u32 {
    if ring.size <= 1 {
        // A ring of one place has no table: its number is the backend. Without a ring both are 0.
        return if ring.size == 1 { ring.number } else { 0 };
    }
    env.ring_backend(ring.number, hash % ring.size).unwrap_or(0)
}
