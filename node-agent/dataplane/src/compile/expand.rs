//! One Service and its endpoints to the ports a proxy serves: pure, no numbers given out.
//!
//! The choice of endpoints follows kube-proxy 1.36 (`CategorizeEndpoints`, KEP-1669, KEP-2433, KEP-3015).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xebec_ebpf_abi::{Addr, Frontend, FrontendKey, Port};

use super::input::{Algorithm, EndpointIn, Forwarding, HostPortIn, ServiceIn, ServicePortIn, SliceIn};
use super::maglev;

/// What of the node the choice depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of the Node object.
    pub name: String,
    /// Its `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Addresses NodePorts are served on.
    pub addresses: BTreeSet<IpAddr>,
    /// How packets from outside get to other nodes, where a Service does not say.
    pub forwarding: Forwarding,
}

/// An endpoint as a frontend's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    /// Address of the endpoint.
    pub addr: Addr,
    /// Port at the endpoint.
    pub port: Port,
    /// Its packets end on this node: a pod here, or the node itself.
    pub local: bool,
}

/// Which of a port's two backend sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Endpoints anywhere.
    Cluster,
    /// Endpoints of this node: a traffic policy is Local.
    Local,
}

/// A backend set before it has a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetSpec {
    /// Its members.
    pub backends: BTreeSet<BackendKey>,
    /// There are endpoints, but none here: connections get no answer rather than a refusal.
    pub drop_when_empty: bool,
}

/// Where a port is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// Address, port, protocol.
    pub key: FrontendKey,
    /// Set for clients inside the cluster.
    pub internal: Role,
    /// Set for packets from outside.
    pub external: Role,
    /// Bits of [`Frontend`], affinity excepted.
    pub flags: u32,
}

/// One port of a Service in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Names the port within its owner: name, protocol, number, IPv4?
    pub id: (String, u8, u16, bool),
    /// Endpoints anywhere.
    pub cluster: SetSpec,
    /// Endpoints of this node, if a frontend uses them.
    pub local: Option<SetSpec>,
    /// Where it is reached.
    pub frontends: Vec<FrontendSpec>,
    /// Endpoints that end but still serve: flows they have stay theirs.
    pub draining: BTreeSet<BackendKey>,
    /// Weights other than the default.
    pub weights: BTreeMap<BackendKey, u32>,
    /// Seconds a client stays with its backend.
    pub affinity: Option<u32>,
    /// Sources allowed at frontends with [`Frontend::SOURCE_RANGES`].
    pub source_ranges: Vec<IpNet>,
}

impl PortSpec {
    /// Whether a frontend chooses from the set of a role by its ring.
    pub fn has_ring(&self, role: Role) -> bool {
        let inside = |f: &FrontendSpec| f.flags & Frontend::RING_INSIDE != 0 && f.internal == role;
        let outside = |f: &FrontendSpec| f.flags & Frontend::RING != 0 && f.external == role;
        self.frontends.iter().any(|f| inside(f) || outside(f))
    }

    /// The set of a role, if a frontend uses it.
    pub fn set(&self, role: Role) -> Option<&SetSpec> {
        let used = self.frontends.iter().any(|f| f.internal == role || f.external == role);
        match role {
            Role::Cluster => Some(&self.cluster).filter(|_| used),
            Role::Local => self.local.as_ref().filter(|_| used),
        }
    }
}

/// An address in map form; IPv4-mapped IPv6 becomes IPv4.
pub fn addr(ip: IpAddr) -> Addr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Addr::v4(ip.octets()),
        IpAddr::V6(ip) => Addr::v6(ip.octets()),
    }
}

/// Expands a Service over all its EndpointSlices.
pub fn service<'a>(service: &ServiceIn, slices: impl Iterator<Item = &'a SliceIn> + Clone, node: &NodeFacts) -> Vec<PortSpec> {
    let mut specs = Vec::new();
    for port in &service.ports {
        for v4 in [true, false] {
            if service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4) {
                specs.push(port_spec(service, port, v4, slices.clone(), node));
            }
        }
    }
    specs
}

fn port_spec<'a>(
    service: &ServiceIn,
    port: &ServicePortIn,
    v4: bool,
    slices: impl Iterator<Item = &'a SliceIn>,
    node: &NodeFacts,
) -> PortSpec {
    let of_family = |list: &[IpAddr]| -> Vec<IpAddr> { list.iter().filter(|ip| ip.is_ipv4() == v4).copied().collect() };
    let (external_ips, load_balancer_ips) = (of_family(&service.external_ips), of_family(&service.load_balancer_ips));
    let externally_reached = port.node_port.is_some() || !external_ips.is_empty() || !load_balancer_ips.is_empty();
    let uses_local = service.internal_local || (service.external_local && externally_reached);
    let endpoints = endpoints(port, v4, slices, node);
    let (cluster, local) = choose(&endpoints, node, uses_local);

    let number = Port::new(port.port);
    let internal_role = if service.internal_local { Role::Local } else { Role::Cluster };
    let external_role = if service.external_local { Role::Local } else { Role::Cluster };
    let (chosen_inside, chosen_outside) = match service.algorithm {
        // A ring takes as much room as thousands of slots: addresses that are not meant for the outside have none unasked.
        Algorithm::Unset => (0, Frontend::RING),
        Algorithm::Random => (0, 0),
        Algorithm::Maglev => (Frontend::RING | Frontend::RING_INSIDE, Frontend::RING | Frontend::RING_INSIDE),
        Algorithm::LeastConnections => (Frontend::LEAST_CONNECTIONS, Frontend::RING | Frontend::LEAST_CONNECTIONS),
    };
    let mut frontends = Vec::new();
    for ip in of_family(&service.cluster_ips) {
        // As kube-proxy: whoever routes packets for the ClusterIP to this node is served.
        let key = FrontendKey::new(addr(ip), number, port.proto);
        let flags = Frontend::EXTERNAL | chosen_inside;
        frontends.push(FrontendSpec { key, internal: internal_role, external: internal_role, flags });
        // What is sent to another port of the address is refused; not if an API server gave the Service this node's own address,
        // where others than Services answer.
        if !node.addresses.contains(&ip) {
            let key = FrontendKey::address(addr(ip));
            frontends.push(FrontendSpec { key, internal: internal_role, external: internal_role, flags: 0 });
        }
    }
    let forwarded = match service.forwarding.unwrap_or(node.forwarding) {
        Forwarding::Snat => 0,
        Forwarding::Dsr => Frontend::DIRECT,
    };
    let mut outside = |key, flags| {
        let flags = Frontend::EXTERNAL | chosen_outside | forwarded | flags;
        frontends.push(FrontendSpec { key, internal: Role::Cluster, external: external_role, flags });
    };
    for ip in external_ips {
        outside(FrontendKey::new(addr(ip), number, port.proto), 0);
    }
    let (range_flags, source_ranges) = source_ranges(service, v4, &load_balancer_ips, node);
    for ip in load_balancer_ips {
        outside(FrontendKey::new(addr(ip), number, port.proto), range_flags);
    }
    if let Some(node_port) = port.node_port.map(Port::new) {
        outside(FrontendKey::node_port(v4, node_port, port.proto), 0);
    }
    PortSpec {
        id: (port.name.clone(), port.proto, port.port, v4),
        cluster,
        local: uses_local.then_some(local),
        frontends,
        draining: endpoints.iter().filter(|c| c.endpoint.serving && c.endpoint.terminating).map(|c| c.key).collect(),
        weights: endpoints.iter().map(|c| (c.key, u32::from(c.endpoint.weight))).filter(|(_, w)| *w != maglev::DEFAULT_WEIGHT).collect(),
        affinity: service.affinity,
        source_ranges,
    }
}

/// Who may use the load-balancer addresses of a family: flags of their frontends, and the ranges. Ranges of the
/// other family alone close nothing. Where the node itself is allowed, so are packets it sends with the
/// load balancer's address as their source, which is how some deliver to themselves.
fn source_ranges(service: &ServiceIn, v4: bool, load_balancer_ips: &[IpAddr], node: &NodeFacts) -> (u32, Vec<IpNet>) {
    let mut ranges: Vec<IpNet> = service.source_ranges.iter().filter(|r| r.addr().is_ipv4() == v4).copied().collect();
    if ranges.is_empty() || load_balancer_ips.is_empty() {
        return (0, Vec::new());
    }
    let mut flags = Frontend::SOURCE_RANGES;
    if node.addresses.iter().any(|ip| ranges.iter().any(|r| r.contains(ip))) {
        flags |= Frontend::FROM_NODE;
        ranges.extend(load_balancer_ips.iter().map(|ip| IpNet::from(*ip)));
    }
    (flags, ranges)
}

/// An endpoint of one port.
struct Candidate<'a> {
    endpoint: &'a EndpointIn,
    key: BackendKey,
    /// Its object says that it runs on this node, which is what traffic policies ask.
    here: bool,
}

/// The endpoints of a port in one family, each address and port once: slices may overlap while endpoints move
/// between them. One that is known to be here wins, then one that is ready.
fn endpoints<'a>(port: &ServicePortIn, v4: bool, slices: impl Iterator<Item = &'a SliceIn>, node: &NodeFacts) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<(Addr, Port), Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let numbers = slice.ports.iter().filter(|(name, proto, _)| *name == port.name && *proto == port.proto);
        for number in numbers.map(|(_, _, number)| Port::new(*number)) {
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == v4) {
                let here = endpoint.node.as_deref() == Some(node.name.as_str());
                // The API server's endpoints name no node, yet their packets end on the one they run on.
                let local = here || node.addresses.contains(&endpoint.address);
                let key = BackendKey { addr: addr(endpoint.address), port: number, local };
                let candidate = Candidate { endpoint, key, here };
                let rank = |c: &Candidate| (c.here, c.endpoint.ready, c.endpoint.serving && c.endpoint.terminating);
                match found.get(&(key.addr, key.port)) {
                    Some(other) if rank(other) >= rank(&candidate) => {}
                    _ => {
                        found.insert((key.addr, key.port), candidate);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

/// The cluster-wide set and that of this node: ready endpoints, else those that still serve while they end.
fn choose(endpoints: &[Candidate], node: &NodeFacts, uses_local: bool) -> (SetSpec, SetSpec) {
    let topology = topology(endpoints, node);
    let pick = |of: &dyn Fn(&Candidate) -> bool, ready_if: &dyn Fn(&Candidate) -> bool| -> BTreeSet<BackendKey> {
        let ready: BTreeSet<_> = endpoints.iter().filter(|c| c.endpoint.ready && of(c) && ready_if(c)).map(|c| c.key).collect();
        if !ready.is_empty() {
            return ready;
        }
        let ending = |c: &&Candidate| c.endpoint.serving && c.endpoint.terminating && of(c);
        endpoints.iter().filter(ending).map(|c| c.key).collect()
    };
    let cluster = pick(&|_| true, &|c| topology.admits(c.endpoint, node));
    if !uses_local {
        return (SetSpec { backends: cluster, drop_when_empty: false }, SetSpec::default());
    }
    let local = pick(&|c| c.here, &|_| true);
    let any = !cluster.is_empty();
    (SetSpec { backends: cluster, drop_when_empty: false }, SetSpec { backends: local, drop_when_empty: any })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Any,
    SameZone,
    SameNode,
}

impl Topology {
    fn admits(self, e: &EndpointIn, node: &NodeFacts) -> bool {
        match self {
            Topology::Any => true,
            Topology::SameZone => node.zone.as_ref().is_some_and(|z| e.for_zones().contains(z)),
            Topology::SameNode => e.for_nodes().contains(&node.name),
        }
    }
}

/// Hints count only when every ready endpoint has them and one is meant for this node.
fn topology(endpoints: &[Candidate], node: &NodeFacts) -> Topology {
    let ready = || endpoints.iter().map(|c| c.endpoint).filter(|e| e.ready);
    let (mut all_nodes, mut all_zones) = (ready().next().is_some(), node.zone.is_some());
    for e in ready() {
        all_nodes &= !e.for_nodes().is_empty();
        all_zones &= !e.for_zones().is_empty();
    }
    if all_nodes && ready().any(|e| Topology::SameNode.admits(e, node)) {
        Topology::SameNode
    } else if all_zones && ready().any(|e| Topology::SameZone.admits(e, node)) {
        Topology::SameZone
    } else {
        Topology::Any
    }
}

/// The `hostPort` of a local pod: in each family a frontend with the pod as its only backend.
pub fn host_port(port: &HostPortIn, pod_ips: &[IpAddr]) -> Vec<PortSpec> {
    let mut specs = Vec::new();
    for v4 in [true, false] {
        let pod = pod_ips.iter().find(|ip| ip.is_ipv4() == v4);
        let Some(pod) = pod.filter(|_| port.ip.is_none_or(|h| h.is_ipv4() == v4)) else {
            continue;
        };
        let backend = BackendKey { addr: addr(*pod), port: Port::new(port.container_port), local: true };
        let key = match port.ip {
            Some(ip) => FrontendKey::new(addr(ip), Port::new(port.port), port.proto),
            None => FrontendKey::node_port(v4, Port::new(port.port), port.proto),
        };
        specs.push(PortSpec {
            id: (port.ip.map(|ip| ip.to_string()).unwrap_or_default(), port.proto, port.port, v4),
            cluster: SetSpec { backends: BTreeSet::from([backend]), drop_when_empty: false },
            local: None,
            frontends: vec![FrontendSpec { key, internal: Role::Cluster, external: Role::Cluster, flags: Frontend::EXTERNAL }],
            draining: BTreeSet::new(),
            weights: BTreeMap::new(),
            affinity: None,
            source_ranges: Vec::new(),
        });
    }
    specs
}
