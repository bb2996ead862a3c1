//! What established connections of pods need not be asked with every packet.

use crate::Tuple;

/// A connection's packets at the device of the pod they leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShortcutKey {
    pub tuple: Tuple,
    /// The host-side veth of the pod that sends.
    pub ifindex: u32,
}

/// Where they go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    /// When they have to be judged again.
    pub until: u64,
    /// What `GENERATION` held when they were judged: another number there ends it.
    pub generation: u64,
    /// The host-side veth of the pod they are for, or [`Shortcut::STACK`].
    pub ifindex: u32,
    /// That veth's two sides' hardware addresses, as in `Endpoint`.
    pub pod_mac: [u8; 6],
    pub host_mac: [u8; 6],
}

impl Shortcut {
    /// In `ifindex`: to the node's stack, as for all that is not for a pod of the node.
    pub const STACK: u32 = 0;
}

crate::wire! { ShortcutKey = 44, Shortcut = 32 }
