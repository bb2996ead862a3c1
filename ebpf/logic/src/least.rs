//! Least connections: a socket that connects goes where the fewest sockets of this node are.

use crate::env::Env;
use xebec_ebpf_abi::SlotKey;

/// How many backends are compared. A set that is larger is sampled: the least of several taken at random is
/// nearly as good as the least of all, and does not draw every client of every node to the same one.
pub const COMPARED: u32 = 8;

/// Dice with which `service::choose` takes the backend of `set` that has the fewest connections. Among
/// equals, and where there is no set, they are as random as any.
#[inline(always)]
pub fn dice<E: Env>(env: &E, set: u32) -> u32 {
    let count = env.backend_set(set).map_or(0, |s| s.count);
    let random = env.random();
    if count < 2 {
        return random;
    }
    let start = scaled(random, count);
    let (mut least, mut best) = (u64::MAX, start);
    let mut i = 0;
    while i < COMPARED && i < count {
        let slot = if count <= COMPARED {
            (start + i) % count
        } else {
            scaled(env.random(), count)
        };
        // A slot that has just gone is tried again by whoever uses the dice.
        let id = env.backend_slot(&SlotKey { set, slot }).unwrap_or(0);
        let connections = env.connections(id);
        if connections < least {
            (least, best) = (connections, slot);
        }
        i += 1;
    }
    for_slot(best, count)
}

/// The slot that dice lead to.
#[inline(always)]
pub fn scaled(dice: u32, count: u32) -> u32 {
    ((u64::from(dice) * u64::from(count)) >> 32) as u32
}

/// The smallest dice that lead to a slot below `count`, which is not 0.
#[inline(always)]
fn for_slot(slot: u32, count: u32) -> u32 {
    let count = u64::from(count);
    (u64::from(slot) << 32).div_ceil(count) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_for_a_slot_lead_to_it() {
        for count in [1, 2, 3, 7, 8, 9, 255, 256, 65_537, 524_288] {
            for slot in [0, 1, count / 3, count / 2, count - 1] {
                let slot = slot.min(count - 1);
                assert_eq!(
                    scaled(for_slot(slot, count), count),
                    slot,
                    "{slot} of {count}"
                );
            }
        }
    }
}
