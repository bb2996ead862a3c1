//! What is asked and what is answered.

use serde::{Deserialize, Serialize};
use xebec_ebpf_abi::{Addr, Port, Tuple, proto};

/// A packet to explain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyQuestion {
    /// An address, `node`, `pod/NAMESPACE/NAME`, `svc/NAMESPACE/NAME` or `NAMESPACE/NAME`.
    pub source: String,
    /// The same.
    pub destination: String,
    /// tcp, udp, sctp or icmp.
    pub protocol: String,
    /// Of the destination; not read for icmp.
    pub port: u16,
    /// Of the source, to ask about a flow that exists; any other by default.
    #[serde(default)]
    pub source_port: Option<u16>,
}

/// Where a packet ends and what decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Who sends.
    pub source: String,
    /// Whom it is sent to.
    pub destination: String,
    /// The packet as it was meant.
    pub packet: String,
    /// The packet where its way ends.
    pub arrives_as: String,
    /// What became of it.
    pub fate: Fate,
    /// The Service at the destination.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceSaid>,
    /// The endpoint that was chosen; another question may get another.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<BackendSaid>,
    /// What policies said, in order. Pods that no policy selects are not asked about.
    pub policies: Vec<PolicySaid>,
    /// Every program that saw it.
    pub steps: Vec<Step>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum Fate {
    /// A pod of this node has it.
    Delivered,
    /// The node itself has it.
    Node,
    /// It is on its way to another machine.
    Leaves {
        /// Through this device.
        device: String,
    },
    /// A program dropped it.
    Dropped {
        /// As in the metric.
        reason: String,
    },
    /// connect(2) failed: no packet was sent.
    Refused {
        /// As in the metric.
        reason: String,
    },
    /// The node has no device it could come from or leave by.
    Nowhere,
}

/// A Service and the port of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named like what they are")]
pub struct ServiceSaid {
    pub service: String,
    pub port: String,
    pub at: String,
    pub resource_version: Option<String>,
}

/// An endpoint and where it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named like what they are")]
pub struct BackendSaid {
    pub address: String,
    pub pod: Option<String>,
    pub endpoint_slice: Option<String>,
    /// The EndpointSlice's.
    pub resource_version: Option<String>,
}

/// What policies said of a packet at a pod that they select.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySaid {
    /// The pod.
    pub pod: String,
    /// ingress or egress.
    pub direction: String,
    /// What they said.
    pub allowed: bool,
    /// The flow was there before, and was allowed then.
    pub established: bool,
    /// The rule that decided; none: no rule allows the packet, or it comes from or goes to the node, which NetworkPolicies
    /// always allow, or no ClusterNetworkPolicy has a rule for it.
    pub rule: Option<String>,
    /// The rule's policy; if there is no rule, the NetworkPolicies that select the pod for the direction.
    pub policies: Vec<String>,
}

/// A program on the packet's way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named like what they are")]
pub struct Step {
    pub program: String,
    pub at: String,
    pub what: String,
}

/// An address and port as people write them.
pub fn end(addr: Addr, port: Port) -> String {
    std::net::SocketAddr::new(addr.to_ip(), port.get()).to_string()
}

/// A tuple as people write it.
pub fn tuple(tuple: &Tuple) -> String {
    let name = match tuple.proto() {
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::SCTP => "sctp",
        proto::ICMP | proto::ICMPV6 => return format!("icmp {} → {}", tuple.src.to_ip(), tuple.dst.to_ip()),
        _ => "ip",
    };
    format!("{name} {} → {}", end(tuple.src, tuple.sport), end(tuple.dst, tuple.dport))
}
