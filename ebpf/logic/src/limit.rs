//! Bandwidth limits of pods: a bucket of tokens, kept as the one moment at which what has passed would be over
//! if it had come at just the allowed rate. What would lie too far ahead is dropped: there is no queue, so no
//! device needs a queueing discipline, and TCP finds the rate as it does behind any policer.

use crate::env::Env;
use xebec_ebpf_abi::{DropReason, Limit, LimitKey};

const SECOND: u64 = 1_000_000_000;

/// Takes a packet of `bytes` into account. False: the bucket is too empty for it.
///
/// Of two packets at the same instant on two CPUs one may go uncounted: the limit is not meant to be exact to
/// that, and an atomic exchange would cost each packet of every pod that has one.
#[inline(always)]
pub fn take(limit: &mut Limit, now: u64, bytes: u32) -> bool {
    let rate = if limit.rate == 0 { 1 } else { limit.rate };
    let cost = u64::from(bytes) * SECOND / rate;
    // A full bucket takes any one packet, or one that is larger than the bucket would never pass.
    if limit.until <= now {
        limit.until = now + cost;
        return true;
    }
    if limit.until + cost > now + limit.burst {
        return false;
    }
    limit.until += cost;
    true
}

/// The same for a pod's packet in a direction.
#[inline(always)]
pub fn check<E: Env>(env: &E, endpoint: u32, direction: u8, bytes: u32) -> Result<(), DropReason> {
    let key = LimitKey {
        endpoint,
        direction: u32::from(direction),
    };
    let now = env.now();
    match env.with_limit(&key, |limit| take(limit, now, bytes)) {
        Some(false) => Err(DropReason::Bandwidth),
        Some(true) | None => Ok(()),
    }
}
