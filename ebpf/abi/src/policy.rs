//! Pods, who their peers are, what they may do, what they are doing.

use crate::{Addr, NetnsCookie, Port};

/// Directions, seen from the pod.
pub mod direction {
    pub const INGRESS: u8 = 0;
    pub const EGRESS: u8 = 1;
}

/// Identities with a fixed meaning. User space numbers its own from [`FIRST_FREE`](identity::FIRST_FREE).
pub mod identity {
    /// In a policy key: whoever the peer is.
    pub const ANY: u32 = 0;
    /// This node.
    pub const HOST: u32 = 1;
    /// No entry in `IPCACHE`.
    pub const WORLD: u32 = 2;
    /// Another node.
    pub const REMOTE_NODE: u32 = 3;
    pub const FIRST_FREE: u32 = 256;
}

/// A local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Node-local, never 0, the same for all of the pod's addresses.
    pub id: u32,
    /// The host-side veth.
    pub ifindex: u32,
    /// The pod-side veth's.
    pub pod_mac: [u8; 6],
    /// The host-side veth's.
    pub host_mac: [u8; 6],
    /// Bits of `Endpoint::*`.
    pub flags: u32,
    /// Changes whenever flows must be judged again.
    pub epoch: u32,
    /// The pod's network namespace.
    pub netns: NetnsCookie,
}

impl Endpoint {
    /// A policy selects the pod for ingress.
    pub const ISOLATE_INGRESS: u32 = 1;
    /// A policy selects the pod for egress.
    pub const ISOLATE_EGRESS: u32 = 2;
    /// Packets may skip the node's stack on their way to the pod (`bpf_redirect_peer`): the device is
    /// one of a veth pair whose other side is up in another network namespace.
    pub const DIRECT: u32 = 4;
    /// `LIMITS` says how much the pod may be sent.
    pub const LIMIT_INGRESS: u32 = 8;
    /// `LIMITS` says how much it may send.
    pub const LIMIT_EGRESS: u32 = 16;
}

/// Who is behind an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    pub identity: u32,
    /// Bits of `Remote::*`.
    pub flags: u32,
}

impl Remote {
    /// An address of this node: may always reach the node's pods.
    pub const HOST: u32 = 1;
    /// No entry was found.
    pub const WORLD: Remote = Remote {
        identity: identity::WORLD,
        flags: 0,
    };
}

/// Key of `POLICY`, big-endian because an LPM trie compares bit by bit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    endpoint: u32,
    direction: u8,
    pad: [u8; 3],
    identity: u32,
    proto: u8,
    pad2: u8,
    port: Port,
}

impl PolicyKey {
    /// Prefix length of an entry for any protocol and port.
    pub const ANY_PROTO: u32 = 96;
    /// Prefix length of an entry for any port of a protocol.
    pub const ANY_PORT: u32 = 112;
    /// Prefix length of an entry for one port, and of every lookup.
    pub const EXACT: u32 = 128;

    /// `direction` is one of [`direction`]'s, `identity` the peer's or [`identity::ANY`].
    #[inline(always)]
    pub const fn new(endpoint: u32, direction: u8, identity: u32, proto: u8, port: Port) -> Self {
        PolicyKey {
            endpoint: endpoint.to_be(),
            direction,
            pad: [0; 3],
            identity: identity.to_be(),
            proto,
            pad2: 0,
            port,
        }
    }

    pub const fn endpoint(&self) -> u32 {
        u32::from_be(self.endpoint)
    }

    pub const fn direction(&self) -> u8 {
        self.direction
    }

    pub const fn identity(&self) -> u32 {
        u32::from_be(self.identity)
    }

    pub const fn proto(&self) -> u8 {
        self.proto
    }

    pub const fn port(&self) -> Port {
        self.port
    }
}

/// What a policy entry says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// [`PolicyVerdict::ALLOW`] or [`PolicyVerdict::DENY`].
    pub verdict: u32,
    /// Names the rule towards people; 0: none.
    pub rule: u32,
}

impl PolicyVerdict {
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
}

/// Splits the ports `first..=last` into the fewest prefixes: `(port, prefix length of the key)`.
/// Nothing comes out when `first > last`.
pub fn port_prefixes(first: u16, last: u16) -> impl Iterator<Item = (Port, u32)> {
    let mut next = u32::from(first);
    let end = u32::from(last) + 1;
    core::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let mut size: u32 = 1;
        while next.is_multiple_of(size * 2) && next + size * 2 <= end && size < 1 << 16 {
            size *= 2;
        }
        let port = Port::new(next as u16);
        next += size;
        Some((port, PolicyKey::EXACT - size.trailing_zeros()))
    })
}

/// A flow of one endpoint: the same key for both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub remote: Addr,
    pub endpoint: u32,
    pub local_port: Port,
    pub remote_port: Port,
    proto: u32,
}

impl FlowKey {
    #[inline(always)]
    pub const fn new(
        endpoint: u32,
        local_port: Port,
        remote: Addr,
        remote_port: Port,
        proto: u8,
    ) -> FlowKey {
        FlowKey {
            remote,
            endpoint,
            local_port,
            remote_port,
            proto: proto as u32,
        }
    }

    pub const fn proto(&self) -> u8 {
        self.proto as u8
    }
}

/// State of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The entry counts until then.
    pub expires: u64,
    /// `Endpoint::epoch` when the flow was last judged.
    pub epoch: u32,
    /// Direction of the first packet.
    pub direction: u8,
    /// Bits of `Flow::*`.
    pub state: u8,
    pad: u16,
    /// What the version has that tests of upgrades play.
    #[cfg(feature = "next")]
    pub more: u64,
}

impl Flow {
    /// An answer was seen.
    pub const REPLIED: u8 = 1;
    /// The initiator has sent FIN.
    pub const FIN_ORIGINAL: u8 = 2;
    /// The other side has sent FIN.
    pub const FIN_REPLY: u8 = 4;
    /// RST was seen.
    pub const RESET: u8 = 8;
    /// The pod knows its peer by another address: packets to it are looked up in `NAT`.
    pub const TRANSLATED: u8 = 16;
    /// The pod talks to itself through a Service: no policy applies.
    pub const SELF: u8 = 32;

    #[inline(always)]
    pub const fn new(direction: u8, state: u8, epoch: u32, expires: u64) -> Flow {
        Flow {
            expires,
            epoch,
            direction,
            state,
            pad: 0,
            #[cfg(feature = "next")]
            more: 1,
        }
    }
}

crate::wire! {
    Endpoint = 36, Remote = 8, PolicyKey = 16, PolicyVerdict = 8, FlowKey = 28,
}

#[cfg(not(feature = "next"))]
crate::wire! { Flow = 16 }
#[cfg(feature = "next")]
crate::wire! { Flow = 24 }

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn covered(first: u16, last: u16) -> Vec<u32> {
        let mut ports = Vec::new();
        for (port, len) in port_prefixes(first, last) {
            let size = 1u32 << (PolicyKey::EXACT - len);
            assert_eq!(
                u32::from(port.get()) % size,
                0,
                "a prefix starts at a multiple of its size"
            );
            ports.extend(u32::from(port.get())..u32::from(port.get()) + size);
        }
        ports
    }

    #[test]
    fn port_prefixes_cover_the_range_and_nothing_else() {
        for (first, last) in [
            (0, 0),
            (80, 80),
            (80, 81),
            (1, 65535),
            (0, 65535),
            (32000, 32768),
            (65535, 65535),
        ] {
            let expected: Vec<u32> = (u32::from(first)..=u32::from(last)).collect();
            assert_eq!(covered(first, last), expected, "{first}-{last}");
        }
        assert_eq!(port_prefixes(0, 65535).count(), 1);
        assert_eq!(
            port_prefixes(0, 65535).next().unwrap().1,
            PolicyKey::ANY_PORT
        );
        assert_eq!(port_prefixes(2, 1).count(), 0);
    }

    #[test]
    fn policy_key_is_big_endian() {
        let key = PolicyKey::new(
            0x01020304,
            direction::EGRESS,
            0x0a0b0c0d,
            6,
            Port::new(0x1234),
        );
        // SAFETY: 16 bytes of integers without padding.
        let bytes: [u8; 16] = unsafe { core::mem::transmute(key) };
        assert_eq!(
            bytes,
            [1, 2, 3, 4, 1, 0, 0, 0, 10, 11, 12, 13, 6, 0, 0x12, 0x34]
        );
    }
}
