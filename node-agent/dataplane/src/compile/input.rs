//! API objects cut down to what the dataplane reads. The reducers take what any API server may send and
//! leave out what does not parse: validation is the API server's work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use serde::{Deserialize, Serialize};
use xebec_ebpf_abi::proto;

use super::bandwidth::{self, Bandwidth};
pub use super::slices::{EndpointIn, SliceIn, WatchedSlice, slice};

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Empty for objects without a namespace.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// The key of any object.
    pub fn of<K: kube::Resource>(object: &K) -> Key {
        let meta = object.meta();
        Key { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }

    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The protocol number of a protocol name as the API writes it; none means TCP.
pub fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(proto::TCP),
        "UDP" => Some(proto::UDP),
        "SCTP" => Some(proto::SCTP),
        _ => None,
    }
}

/// A port number of the API; 0 and what does not fit are none.
pub(super) fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|p| *p != 0)
}

/// An address that can be another host's. What can not is refused by an API server's validation; should one
/// come through all the same, it must not take loopback or every address of a node from their owners.
pub(super) fn unicast(text: &str) -> Option<IpAddr> {
    let ip = text.parse::<IpAddr>().ok()?.to_canonical();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    (!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !broadcast).then_some(ip)
}

/// An address that packets are sent to from other links. kube-apiserver refuses the others as endpoints and external addresses: a
/// link-local one is what clouds serve credentials at, or a pod's own gateway.
pub(super) fn routed(text: &str) -> Option<IpAddr> {
    unicast(text).filter(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    })
}

fn ips(list: Option<&Vec<String>>, valid: fn(&str) -> Option<IpAddr>) -> Vec<IpAddr> {
    list.into_iter().flatten().filter_map(|ip| valid(ip)).collect()
}

/// What a proxy is not meant to serve, by its labels (kube-proxy does not even ask the API for it).
pub(super) fn is_left_alone(labels: Option<&Labels>) -> bool {
    const LABELS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
    labels.is_some_and(|labels| LABELS.iter().any(|l| labels.contains_key(*l)))
}

/// A Service that has addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceIn {
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNet>,
    pub ports: Vec<ServicePortIn>,
    /// Seconds of sessionAffinity ClientIP.
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Where a load balancer asks whether this node has endpoints of the Service.
    pub health_check: Option<u16>,
    /// Load-balancer addresses that are given by xebec's control plane: nodes answer for them.
    pub announced: Vec<IpAddr>,
    pub algorithm: Algorithm,
    /// None: as the node's agent was told.
    pub forwarding: Option<Forwarding>,
    /// Annotations whose values mean nothing, in words for their author.
    pub mistakes: Vec<String>,
}

/// How a Service's backends are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Consistent hashing for packets from outside to addresses that are meant for it, else at random.
    #[default]
    Unset,
    /// At random; packets by a hash over the backends' number.
    Random,
    /// Consistent hashing for all, so that weights count everywhere.
    Maglev,
    /// Sockets that connect get the backend with the fewest open connections of this node; packets as with [`Unset`](Self::Unset).
    LeastConnections,
}

/// Annotation of a Service: `random`, `maglev` or `least-connections`.
pub const ALGORITHM: &str = "xebec.dev/lb-algorithm";

fn algorithm(text: &str) -> Option<Algorithm> {
    match text {
        "random" => Some(Algorithm::Random),
        "maglev" => Some(Algorithm::Maglev),
        "least-connections" => Some(Algorithm::LeastConnections),
        _ => None,
    }
}

/// How packets from outside get to pods of other nodes, and answers back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// Both through the node the client has asked, behind its address.
    #[default]
    Snat,
    /// Packets as they are, inside packets between nodes; answers go straight to the client (direct server return).
    Dsr,
}

/// Annotation of a Service: `snat` or `dsr`.
pub const FORWARDING: &str = "xebec.dev/forwarding-mode";

impl Forwarding {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Forwarding::Snat => "snat",
            Forwarding::Dsr => "dsr",
        }
    }

    fn named(text: &str) -> Option<Forwarding> {
        [Forwarding::Snat, Forwarding::Dsr].into_iter().find(|f| f.name() == text)
    }
}

/// What an annotation says; what it does not mean is told to its author.
pub(super) fn said<T>(
    annotations: Option<&Labels>,
    name: &str,
    read: fn(&str) -> Option<T>,
    known: &str,
    mistakes: &mut Vec<String>,
) -> Option<T> {
    let text = annotations?.get(name)?;
    let value = read(text);
    if value.is_none() {
        let text: String = text.chars().take(64).collect();
        mistakes.push(format!("the annotation {name} is {text:?}, which means nothing; it may be {known}"));
    }
    value
}

/// One port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortIn {
    /// Empty for the only, unnamed port.
    pub name: String,
    pub proto: u8,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// Reduces a Service; none for those a proxy leaves alone: headless, ExternalName, other proxies'.
pub fn service(service: &Service) -> Option<ServiceIn> {
    if is_left_alone(service.metadata.labels.as_ref()) {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return None;
    }
    let single = spec.cluster_ip.iter().filter_map(|ip| unicast(ip)).collect();
    let cluster_ips = match ips(spec.cluster_ips.as_ref(), unicast) {
        list if list.is_empty() => single,
        list => list,
    };
    // Headless ("None") and not yet allocated Services alike: there is nothing to translate.
    if cluster_ips.is_empty() {
        return None;
    }
    let external = matches!(kind, "NodePort" | "LoadBalancer");
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        Some(ServicePortIn {
            name: p.name.clone().unwrap_or_default(),
            proto: protocol(p.protocol.as_deref())?,
            port: port(p.port)?,
            node_port: p.node_port.filter(|_| external).and_then(port),
        })
    });
    let ingress = service.status.iter().flat_map(|s| &s.load_balancer).flat_map(|l| &l.ingress).flatten();
    // ipMode Proxy (KEP-1860): packets shall pass the load balancer, so its address is not taken here.
    let load_balancer_ips: Vec<IpAddr> = ingress
        .filter(|i| kind == "LoadBalancer" && i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| unicast(i.ip.as_ref()?))
        .collect();
    // Addresses of other implementations are announced by those.
    let conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let given_by_us = conditions.clone().any(|c| c.type_ == "xebec.dev/LoadBalancerAddress");
    let announced = if given_by_us { load_balancer_ips.clone() } else { Vec::new() };
    let affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(10800);
            Some(u32::try_from(seconds).unwrap_or(10800))
        }
        _ => None,
    };
    let external_local = external && spec.external_traffic_policy.as_deref() == Some("Local");
    let (annotations, mut mistakes) = (service.metadata.annotations.as_ref(), Vec::new());
    let algorithm = said(annotations, ALGORITHM, algorithm, "random, maglev or least-connections", &mut mistakes);
    let forwarding = said(annotations, FORWARDING, Forwarding::named, "snat or dsr", &mut mistakes);
    Some(ServiceIn {
        algorithm: algorithm.unwrap_or_default(),
        forwarding,
        mistakes,
        cluster_ips,
        external_ips: ips(spec.external_ips.as_ref(), routed),
        load_balancer_ips,
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter(|_| kind == "LoadBalancer")
            .filter_map(|r| r.trim().parse().ok())
            .collect(),
        ports: ports.collect(),
        affinity,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        announced,
        health_check: spec.health_check_node_port.filter(|_| kind == "LoadBalancer" && external_local).and_then(port),
    })
}

/// A pod as a policy subject or peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIn {
    pub uid: String,
    pub node: String,
    pub labels: Labels,
    /// Empty for pods that share the node's network or have ended.
    pub ips: Vec<IpAddr>,
    /// Named container ports: name and protocol to number.
    pub named_ports: BTreeMap<String, (u8, u16)>,
    /// Container ports that shall be reachable at the node's addresses.
    pub host_ports: Vec<HostPortIn>,
    pub host_network: bool,
    /// None in records of before this was kept.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// What is wrong with its annotations of bandwidth; none in older records too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_complaint: Option<Box<str>>,
}

/// A `hostPort` of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPortIn {
    /// `hostIP` unless it names every address.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub container_port: u16,
    pub proto: u8,
}

/// Reduces a Pod.
pub fn pod(pod: &Pod) -> PodIn {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let ended = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    let mut addresses: Vec<IpAddr> = Vec::new();
    if !host_network && !ended {
        let list = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
        addresses.extend(list.filter_map(|ip| ip.ip.parse::<IpAddr>().ok()));
        if addresses.is_empty() {
            addresses.extend(status.and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
    }
    let restartable = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let restartable = restartable.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.iter().flat_map(|s| s.containers.iter()).chain(restartable);
    let (mut named_ports, mut host_ports) = (BTreeMap::new(), Vec::new());
    for p in containers.flat_map(|c| c.ports.iter().flatten()) {
        let (Some(proto), Some(number)) = (protocol(p.protocol.as_deref()), port(p.container_port)) else {
            continue;
        };
        if let Some(name) = &p.name {
            named_ports.entry(name.clone()).or_insert((proto, number));
        }
        if let Some(host) = p.host_port.and_then(port).filter(|_| !host_network) {
            let ip = p.host_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()).filter(|ip| !ip.is_unspecified());
            host_ports.push(HostPortIn { ip, port: host, container_port: number, proto });
        }
    }
    PodIn {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ips: addresses,
        named_ports,
        host_ports,
        host_network,
        bandwidth: bandwidth::of(pod.metadata.annotations.as_ref()),
        // As with runtimes, which hand on nothing of pods that share the node's network.
        bandwidth_complaint: bandwidth::complaint(pod.metadata.annotations.as_ref()).filter(|_| !host_network).map(Into::into),
    }
}

/// Labels of a Namespace. `kubernetes.io/metadata.name` is there even if the API server left it out.
pub fn namespace(namespace: &Namespace) -> Labels {
    let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
    if let Some(name) = &namespace.metadata.name {
        labels.entry("kubernetes.io/metadata.name".into()).or_insert_with(|| name.clone());
    }
    labels
}

/// A node, this one or another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeIn {
    pub zone: Option<String>,
    pub pod_cidrs: Vec<IpNet>,
    /// Internal and external.
    pub addresses: BTreeSet<IpAddr>,
    /// It is being deleted, or the cluster autoscaler is about to: load balancers shall leave it.
    pub leaving: bool,
    /// It is ready, and may have load-balancer addresses.
    pub balances: bool,
    /// Those other nodes use, in the order given.
    pub internal: Vec<IpAddr>,
}

/// Labels and addresses of any node, as policies ask for them.
pub fn labeled_node(node: &Node) -> (Labels, BTreeSet<IpAddr>) {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let addresses = addresses.filter_map(|a| a.address.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    (node.metadata.labels.clone().unwrap_or_default(), addresses.collect())
}

/// Reduces a Node.
pub fn node(node: &Node) -> NodeIn {
    let spec = node.spec.as_ref();
    let mut pod_cidrs: Vec<IpNet> = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten().filter_map(|c| c.parse().ok()).collect();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.and_then(|s| s.pod_cidr.as_ref()).and_then(|c| c.parse::<IpNet>().ok()));
    }
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let mut taints = spec.iter().flat_map(|s| s.taints.iter().flatten());
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    let excluded = node.metadata.labels.as_ref().is_some_and(|l| l.contains_key("node.kubernetes.io/exclude-from-external-load-balancers"));
    let leaving = node.metadata.deletion_timestamp.is_some() || taints.any(|t| t.key == "ToBeDeletedByClusterAutoscaler");
    let internal = addresses.clone().filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect();
    NodeIn {
        internal,
        leaving,
        balances: ready && !excluded && !leaving,
        zone: node.metadata.labels.as_ref().and_then(|l| l.get("topology.kubernetes.io/zone").cloned()),
        pod_cidrs,
        addresses: addresses
            .filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|a| a.address.parse().ok())
            .collect(),
    }
}
