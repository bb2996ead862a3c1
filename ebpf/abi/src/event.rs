//! What is told of packets to those who want to see them.

use crate::{Addr, NetnsCookie, Port, Tuple};

/// Where something was seen.
pub mod seen {
    /// A socket's connect, sendmsg or bind.
    pub const SOCKET: u8 = 0;
    /// A packet left a pod.
    pub const FROM_POD: u8 = 1;
    /// A packet was to be handed to a pod by the node's stack.
    pub const TO_POD: u8 = 2;
    /// A packet came in from other machines.
    pub const FROM_UPLINK: u8 = 3;
    /// A packet was to go out to other machines.
    pub const TO_UPLINK: u8 = 4;
    /// A packet came in from other machines and was seen before the kernel had made anything of it.
    pub const XDP: u8 = 5;
    /// Names, by number.
    pub const LABELS: &[&str] = &[
        "socket",
        "from_pod",
        "to_pod",
        "from_uplink",
        "to_uplink",
        "xdp",
    ];
}

/// A drop, the first packet of a flow, or a socket's backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub time: u64,
    /// The flow as far as it had come: what goes on, or what was dropped. Addresses are zero where the
    /// packet could not be read; a socket has no source yet.
    pub tuple: Tuple,
    /// What the sender asked for, if that is known and is something else: a Service.
    pub asked: Addr,
    pub asked_port: Port,
    /// One of [`seen`]'s.
    pub seen: u8,
    pad: u8,
    /// `Frontend::service` of the Service that was asked for; 0: none is known.
    pub service: u32,
    /// Number of the [`DropReason`](crate::DropReason); 0: it was passed on.
    pub reason: u32,
    pub bytes: u32,
    /// The device; 0 at sockets.
    pub ifindex: u32,
    /// `PolicyVerdict::rule` by [`direction`](crate::direction), of policies that were asked.
    pub rules: [u32; 2],
    /// Of the socket.
    pub netns: NetnsCookie,
}

impl Event {
    /// Everything zero but this.
    #[inline(always)]
    pub const fn new(time: u64, seen: u8, reason: u32, bytes: u32, ifindex: u32) -> Event {
        const NONE: Port = Port::new(0);
        Event {
            time,
            tuple: Tuple::new(Addr::ANY, NONE, Addr::ANY, NONE, 0),
            asked: Addr::ANY,
            asked_port: NONE,
            seen,
            pad: 0,
            service: 0,
            reason,
            bytes,
            ifindex,
            rules: [0; 2],
            netns: NetnsCookie::UNKNOWN,
        }
    }
}

/// What is to be told. All zero: nobody listens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Bits of `Listen::*`.
    pub wanted: u32,
    /// Events of each kind that a CPU tells in a second; what is more is counted in `UNTOLD`.
    pub rate: u32,
}

impl Listen {
    /// What is dropped.
    pub const DROPS: u32 = 1;
    /// First packets of flows, and sockets that are given a backend elsewhere.
    pub const FLOWS: u32 = 2;
}

/// What a Service's port was asked for on this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCount {
    /// Connections, and flows of datagrams, that were given a backend.
    pub flows: u64,
    /// Connects and packets that were given none.
    pub refused: u64,
}

crate::wire! { Event = 104, Listen = 8, ServiceCount = 16 }
