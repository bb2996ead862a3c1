//! Address translation of packets.

use crate::{Addr, Port, Tuple};

/// What becomes of a packet's tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The entry counts until then.
    pub expires: u64,
    /// The tuple the packet leaves with.
    pub to: Tuple,
    /// Bits of `Nat::*`.
    pub flags: u16,
    /// Bits of [`Flow`](crate::Flow)`::*`, the same in both entries of a flow.
    pub state: u16,
    /// The Service's backend, 0 for masquerade.
    pub backend: u32,
    /// The set the backend must be a member of for a UDP flow to stay with it; 0: any.
    pub set: u32,
    pad: u32,
}

impl Nat {
    #[inline(always)]
    pub const fn new(to: Tuple, flags: u16, backend: u32, set: u32, expires: u64) -> Nat {
        Nat {
            expires,
            to,
            flags,
            state: 0,
            backend,
            set,
            pad: 0,
        }
    }

    /// The entry is for the answers; without it: for the initiator's packets.
    pub const REPLY: u16 = 1;
    /// The flow is masquerade, not a Service.
    pub const MASQUERADE: u16 = 2;
    /// Destination and source change at once, before the stack ([`prog::XDP_UPLINK`](crate::prog::XDP_UPLINK)).
    /// Where such a packet goes through the stack nevertheless, tc makes the entries of the two halves.
    pub const BOTH: u16 = 0x100;
    /// The packet stays as it is and goes to the target's address inside another one: see
    /// [`direct`](crate::direct). There is no entry for answers.
    pub const DIRECT: u16 = 0x200;
}

/// A device towards other machines.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Source of IPv4 packets that are masqueraded there; [`Addr::ANY`]: no IPv4 there.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// Largest IP packet that any route there takes; larger ones are the stack's. 0: not known.
    pub mtu: u32,
}

/// A device whose driver runs [`prog::XDP_UPLINK`](crate::prog::XDP_UPLINK).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its hardware address: packets for others pass.
    pub mac: [u8; 6],
    pad: u16,
}

impl XdpDevice {
    pub const fn new(mac: [u8; 6]) -> XdpDevice {
        XdpDevice { mac, pad: 0 }
    }
}

/// Names a datagram that came in pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    /// IPv4: 16 bits, IPv6: 32 bits; as in the packet.
    pub id: u32,
    proto: u32,
}

impl FragmentKey {
    #[inline(always)]
    pub const fn new(src: Addr, dst: Addr, id: u32, proto: u8) -> FragmentKey {
        FragmentKey {
            src,
            dst,
            id,
            proto: proto as u32,
        }
    }
}

/// Ports of a datagram that came in pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub sport: Port,
    pub dport: Port,
}

crate::wire! { Nat = 64, Uplink = 36, XdpDevice = 8, FragmentKey = 40, FragmentPorts = 4 }
