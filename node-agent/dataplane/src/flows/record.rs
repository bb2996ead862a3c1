//! What is asked and what is told.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Filter;
use crate::explain::PolicySaid;

/// Which events are wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowsQuestion {
    /// All of it must hold.
    pub filter: Filter,
    /// So many of those that have been, at most.
    pub last: usize,
    /// And those to come, until the asker goes.
    pub follow: bool,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    /// Something was seen.
    Flow(Box<Seen>),
    /// So much was seen and not told since the line before: there was more of it than the programs tell in a second, or than
    /// the asker has read.
    Missed(u64),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The first packet of a flow, passed on; or a socket of the node, given a backend elsewhere.
    Forwarded,
    /// Gone, or answered with a refusal.
    Dropped,
}

/// A drop, the first packet of a flow, or a socket's backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// When, in RFC 3339.
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped: the metric's label.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The program's place: socket, from_pod, to_pod, from_uplink, to_uplink, xdp.
    pub at: String,
    /// The device, if it is one towards other machines.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// tcp, udp, sctp, icmp, or a number; none: the packet could not be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub protocol: Option<String>,
    /// Who sent it.
    pub source: End,
    /// Whom it goes to; of a Service: the endpoint, once one is chosen.
    pub destination: End,
    /// The Service that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceAt>,
    /// What policies said, where one selects the pod.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub policies: Vec<PolicySaid>,
    /// Of the packet; none at a socket.
    pub bytes: u32,
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// None: not known (yet).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<IpAddr>,
    /// None: the protocol has none, or it is not known yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// NAMESPACE/NAME of the pod there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<String>,
    /// It is this node itself.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub node: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAt {
    /// NAMESPACE/NAME.
    pub name: String,
    /// The port's name, or its number if it has none.
    pub port: String,
    /// Where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<IpAddr>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_port: Option<u16>,
}
