//! Direct server return: a client's packet goes to the backend's node as it is, inside a packet from node to pod
//! ([`proto::IPIP`](crate::proto::IPIP), [`proto::IPV6`](crate::proto::IPV6)), so the pod's answer needs not come back the same way.
//!
//! The outer packet's source is the node that took the client's packet, its destination the pod. The pod's port is the number
//! of the IPv4 datagram or the last 16 bits of the IPv6 flow label. A device that makes several packets of one counts the IPv4
//! number up, so only a packet that begins a flow, or one of a flow that is not known yet, is asked for it.
//!
//! Of such a flow the sending node has one entry in `NAT` ([`Nat::DIRECT`](crate::Nat::DIRECT)), for it sees no answers; the
//! receiving node has two, as for every client of a pod of its own.

/// Whose addresses a range in `NO_MASQUERADE` holds. Every entry there has at least one bit.
pub mod range {
    /// They see pods' own addresses.
    pub const INSIDE: u32 = 1;
    /// Of a node's pods.
    pub const PODS: u32 = 2;
    /// An address that a node is known by, this one's own included.
    pub const NODE: u32 = 4;
}
