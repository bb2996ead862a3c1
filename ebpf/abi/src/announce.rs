//! Load-balancer addresses a node answers for on the local segment.

use crate::Addr;

/// An address on one device towards other machines.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AnnouncedKey {
    pub addr: Addr,
    pub ifindex: u32,
}

/// Who is named when somebody asks who has the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Hardware address of the device.
    pub mac: [u8; 6],
    pad: [u8; 2],
}

impl Announced {
    pub const fn new(mac: [u8; 6]) -> Announced {
        Announced { mac, pad: [0; 2] }
    }
}

crate::wire! { AnnouncedKey = 20, Announced = 8 }
