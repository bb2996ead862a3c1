//! What established connections of pods need not be asked with every packet.

use crate::Tuple;

/// A place of `SHORTCUTS`: a connection's packets where they leave a pod, and where they go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    pub tuple: Tuple,
    /// The host-side veth of the pod that sends.
    pub from: u32,
    /// That of the pod they are for, or [`Shortcut::STACK`].
    pub to: u32,
    /// When they have to be judged again.
    pub until: u64,
    /// What `GENERATION` held when they were judged: another number there ends it.
    pub generation: u64,
    /// Hardware addresses of the two sides of `to`, as in `Endpoint`.
    pub pod_mac: [u8; 6],
    pub host_mac: [u8; 6],
    pad: u32,
}

impl Shortcut {
    /// In `to`: to the node's stack, as for all that is not for a pod of the node.
    pub const STACK: u32 = 0;
    /// How many places there are.
    pub const PLACES: u32 = 8192;

    pub const fn new(tuple: Tuple, from: u32, to: u32, until: u64, generation: u64) -> Shortcut {
        Shortcut {
            tuple,
            from,
            to,
            until,
            generation,
            pod_mac: [0; 6],
            host_mac: [0; 6],
            pad: 0,
        }
    }

    /// The place of a connection. Of two that have the same one, the later has it.
    #[inline(always)]
    pub fn place(tuple: &Tuple) -> u32 {
        const SPREAD: u32 = 0x9e37_79b1;
        let ports = (tuple.sport.raw() as u32) << 16 | tuple.dport.raw() as u32;
        let mixed = (ports ^ tuple.dst.words()[3]).wrapping_mul(SPREAD);
        let mixed = (mixed ^ mixed >> 15 ^ tuple.src.words()[3]).wrapping_mul(SPREAD);
        mixed >> (32 - Shortcut::PLACES.trailing_zeros())
    }
}

crate::wire! { Shortcut = 80 }
const _: () = assert!(Shortcut::PLACES.is_power_of_two());
