//! How many entries programs have put into maps of theirs: user space counts those maps at its sweeps only, and learns
//! from these numbers that one must be looked at before.

use crate::map;

/// Places in `INSERTS`.
pub const FLOWS: u32 = 0;
pub const NAT: u32 = 1;
pub const AFFINITY: u32 = 2;
pub const SOCK_REVERSE: u32 = 3;
pub const GIVEN: u32 = 4;
pub const COUNTED: u32 = 5;

/// The map at each place.
pub const MAPS: [&str; 6] = [
    map::FLOWS,
    map::NAT,
    map::AFFINITY,
    map::SOCK_REVERSE,
    map::GIVEN,
    map::COUNTED,
];
