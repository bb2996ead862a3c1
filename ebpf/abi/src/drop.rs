//! Why a packet or a connect was dropped, and how one was passed on.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $label:literal;)*) => {
        /// Why something was dropped. Numbers and labels are never reused: both are seen from outside.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $doc])* $name = $number,)* }

        impl DropReason {
            /// Every reason, by number.
            pub const ALL: &[DropReason] = &[$(DropReason::$name),*];

            /// The metric's label.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// Headers cut short, or lengths that contradict each other.
    Malformed = 1, "malformed";
    /// A packet left a pod with a source address that is not the pod's.
    SpoofedSource = 2, "spoofed_source";
    /// A packet for a pod's device, but no pod there has the destination address.
    UnknownEndpoint = 3, "unknown_endpoint";
    /// NetworkPolicy: the pod may not receive this.
    PolicyIngress = 4, "policy_ingress";
    /// NetworkPolicy: the pod may not send this.
    PolicyEgress = 5, "policy_egress";
    /// The Service has no endpoint that may be used.
    NoBackend = 6, "no_backend";
    /// The client is not in the Service's loadBalancerSourceRanges.
    SourceRange = 7, "source_range";
    /// No free port was found for source translation.
    NatPortExhausted = 8, "nat_port_exhausted";
    /// The conntrack map took no further entry.
    FlowTableFull = 9, "flow_table_full";
    /// A later fragment whose first fragment was not seen.
    FragmentUnknown = 10, "fragment_unknown";
    /// An ICMP error about a flow nobody knows, for an address that is translated.
    IcmpUnrelated = 11, "icmp_unrelated";
    /// A protocol that cannot be forwarded to a Service.
    ProtocolUnsupported = 12, "protocol_unsupported";
    /// A helper failed to write the packet.
    RewriteFailed = 13, "rewrite_failed";
    /// Neither IP nor ARP came out of a pod.
    NotIp = 14, "not_ip";
    /// An IPv6 packet carries a v4-mapped address, which must not be seen on a wire.
    MappedAddress = 15, "mapped_address";
    /// User space has not written `CONFIG`.
    NotConfigured = 16, "not_configured";
    /// The hop limit ran out while the packet was forwarded past the stack.
    TtlExceeded = 17, "ttl_exceeded";
    /// The packet does not fit its way and must not be cut up. Its sender is told what fits.
    TooBig = 18, "too_big";
    /// A socket of the node wants a port that NodePorts or host ports are served on.
    PortReserved = 30, "port_reserved";
    /// The map of translations took no further entry.
    NatTableFull = 31, "nat_table_full";
    /// The Service has endpoints, but none on this node, and only those may be used.
    NoLocalBackend = 32, "no_local_backend";
    /// A ClusterIP, but not one of its ports.
    NoServicePort = 33, "no_service_port";
    /// The backend a socket was given has gone, and the Service has no other.
    BackendGone = 34, "backend_gone";
    /// The pod sends, or is sent, more than its bandwidth annotation allows.
    Bandwidth = 40, "bandwidth";
    /// What came inside another packet for a pod was not sent by a node of the cluster.
    DirectSource = 50, "direct_source";
    /// What a node sent inside another packet is no client's whole packet.
    DirectInner = 51, "direct_inner";
    /// A client's packet does not fit the way to its pod inside another one.
    DirectTooBig = 52, "direct_too_big";
    /// There is no way to the pod that a client's packet is for.
    DirectNoRoute = 53, "direct_no_route";
}

impl DropReason {
    /// Entries of the map `DROPS`; room for reasons to come. Entry 0 is not used.
    pub const COUNT: u32 = 64;

    pub fn from_number(n: u32) -> Option<DropReason> {
        Self::ALL.iter().copied().find(|r| *r as u32 == n)
    }
}

/// Entries of the map `FORWARDS`.
pub mod forward {
    /// A packet left a pod.
    pub const FROM_POD: u32 = 0;
    /// A packet was handed to a pod.
    pub const TO_POD: u32 = 1;
    /// A packet from an uplink was translated to a Service's backend.
    pub const UPLINK_SERVICE: u32 = 2;
    /// An answer was translated back.
    pub const UPLINK_REPLY: u32 = 3;
    /// A pod's packet left with the node's address.
    pub const MASQUERADE: u32 = 4;
    /// A socket's connect or sendmsg was given a backend (`bytes` is not counted).
    pub const SOCKET: u32 = 5;
    /// A packet to a Service's backend elsewhere was turned round in the driver.
    pub const DRIVER_SERVICE: u32 = 6;
    /// An answer was.
    pub const DRIVER_REPLY: u32 = 7;
    /// A client's packet went to a pod elsewhere inside another one.
    pub const UPLINK_DIRECT: u32 = 8;
    /// It did so in the driver.
    pub const DRIVER_DIRECT: u32 = 9;
    /// Such a packet was taken out and translated to the pod here.
    pub const DIRECT_RECEIVED: u32 = 10;
    /// A pod's packet left for another machine without the node's stack.
    pub const ROUTED: u32 = 11;
    /// What a router said of such a packet was told to the client inside.
    pub const DIRECT_ERROR: u32 = 12;
    /// Entries of the map.
    pub const COUNT: u32 = 16;
    /// The metric's labels, by entry.
    pub const LABELS: &[&str] = &[
        "from_pod",
        "to_pod",
        "uplink_service",
        "uplink_reply",
        "masquerade",
        "socket",
        "driver_service",
        "driver_reply",
        "uplink_direct",
        "driver_direct",
        "direct_received",
        "routed",
        "direct_error",
    ];
}

/// A counter, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    pub packets: u64,
    pub bytes: u64,
}

crate::wire! { DropCount = 16 }

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_and_labels_are_unique_and_fit_the_map() {
        let numbers: HashSet<u32> = DropReason::ALL.iter().map(|r| *r as u32).collect();
        let labels: HashSet<&str> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(numbers.len(), DropReason::ALL.len());
        assert_eq!(labels.len(), DropReason::ALL.len());
        assert!(numbers.iter().all(|n| (1..DropReason::COUNT).contains(n)));
        assert_eq!(DropReason::from_number(4), Some(DropReason::PolicyIngress));
        assert_eq!(DropReason::from_number(0), None);
    }
}
