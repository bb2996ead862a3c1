//! What `xebec status --node` shows of the dataplane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::SyncStatus;

/// A snapshot; every field is read when it is asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// All watches have synced once, the maps hold the desired state and CNI calls are served.
    pub ready: bool,
    /// What readiness still waits for, in words for an operator; empty when ready.
    pub waiting_for: Vec<String>,
    /// Devices towards other machines.
    pub devices: Vec<Device>,
    /// Addresses NodePorts answer on.
    pub node_addresses: Vec<IpAddr>,
    /// How packets from outside get to pods of other nodes: "snat" or "dsr", and how many Services have it otherwise.
    #[serde(default)]
    pub forwarding: String,
    /// Ranges pods get addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses leased to sandboxes, and how many the ranges hold.
    pub leases: usize,
    /// Addresses the ranges hold for pods.
    pub capacity: u64,
    /// Local pods with a device.
    pub endpoints: usize,
    /// Those of them whose programs are attached by links of their own, not by the tc blocks that the others share.
    #[serde(default)]
    pub pods_by_links: usize,
    /// Filled and possible entries of each map.
    pub maps: Vec<MapFill>,
    /// Packets dropped since the programs were first loaded, by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
    /// Packets passed on, by path.
    pub forwards: BTreeMap<String, u64>,
    /// What Services were asked for on this node; those that were never are left out.
    #[serde(default)]
    pub services: Vec<ServiceUse>,
    /// The programs, by name.
    pub programs: Vec<ProgramSize>,
    /// How far the maps are behind the API.
    pub sync: SyncStatus,
    /// What failed at the last reconciliation and is retried; empty when all is well.
    pub errors: Vec<String>,
}

/// A device towards other machines.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number in the node's network namespace.
    pub index: u32,
    /// Its largest packet.
    pub mtu: u32,
    /// Where our programs see its packets; "none": they are not attached.
    pub mode: String,
    /// Whether its driver runs the XDP program: "native", or "none" and why.
    #[serde(default)]
    pub xdp: String,
}

/// How large a program is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramSize {
    /// Its name in the object.
    pub name: String,
    /// Instructions the verifier went through; 0 before kernel 5.16, which does not tell.
    pub verified_instructions: u32,
    /// Machine code.
    pub jitted_bytes: u32,
}

/// What a port of a Service was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceUse {
    /// The Service's.
    pub namespace: String,
    /// The Service's.
    pub name: String,
    /// The port's name, or its number if it has none.
    pub port: String,
    /// Connections, and flows of datagrams, that were given an endpoint.
    pub flows: u64,
    /// Connects and packets that were given none.
    pub refused: u64,
}

/// How full a map is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapFill {
    /// Name of the map in the object.
    pub name: String,
    /// Entries in it.
    pub entries: u64,
    /// Entries it can hold.
    pub max_entries: u64,
    /// Entries it may grow to hold; no more than it can hold: it does not grow.
    #[serde(default)]
    pub limit: u64,
    /// Memory of the kernel's that it takes.
    #[serde(default)]
    pub bytes: u64,
    /// How often it has grown since the agent started.
    #[serde(default)]
    pub growths: u64,
}

/// What load balancers outside ask of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHealth {
    /// The API has been read in full once: before that no Service is known.
    pub synced: bool,
    /// Nothing is left to write.
    pub settled: bool,
    /// The node is being deleted, or about to be.
    pub leaving: bool,
    /// Services with a health check port.
    pub services: Vec<HealthCheck>,
}

/// How many there are with IPv4 and with IPv6 addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByFamily {
    pub v4: usize,
    pub v6: usize,
}

/// A Service with `externalTrafficPolicy: Local` whose load balancer asks which nodes have endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service's.
    pub namespace: String,
    /// The Service's.
    pub name: String,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node, of each family.
    pub local_endpoints: ByFamily,
}
