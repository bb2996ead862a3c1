//! Random Services and EndpointSlices, as plain values and as the API writes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

pub const NODE: &str = "here";
pub const ZONE: &str = "east";
/// Addresses of the node.
pub const NODE_IPS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// A Service as its author thinks of it.
#[derive(Clone, Debug)]
pub struct Service {
    pub n: u8,
    pub kind: &'static str,
    /// IPv4, IPv6.
    pub families: (bool, bool),
    pub node_ports: bool,
    pub external_ips: bool,
    /// Load-balancer addresses in status: as VIPs, or behind a proxy.
    pub ingress: Option<bool>,
    pub ranges: Vec<&'static str>,
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub other_proxy: bool,
}

/// Name, protocol, port of the Service.
pub const PORTS: [(&str, &str, u16); 2] = [("web", "TCP", 80), ("dns", "UDP", 53)];

pub fn node_port(service: u8, port: usize) -> u16 {
    30000 + u16::from(service) * 10 + port as u16
}

impl Service {
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let v4 = self.families.0.then(|| IpAddr::from([10, 96, 0, self.n + 1]));
        let v6 = self.families.1.then(|| format!("fd00:96::{}", self.n + 1).parse().expect("an address"));
        v4.into_iter().chain(v6).collect()
    }

    /// Every Service wants the same ones.
    pub fn externals(&self) -> Vec<IpAddr> {
        let all: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
        all.iter().filter(|_| self.external_ips).map(|ip| ip.parse().expect("an address")).collect()
    }

    pub fn balancers(&self) -> Vec<IpAddr> {
        vec![IpAddr::from([198, 51, 100, self.n + 1]), format!("2001:db8:2::{}", self.n + 1).parse().expect("an address")]
    }

    pub fn object(&self) -> Value {
        let mut ports = Vec::new();
        for (i, (name, protocol, port)) in PORTS.iter().enumerate() {
            let mut p = json!({"name": name, "protocol": protocol, "port": port});
            if self.node_ports {
                p["nodePort"] = json!(node_port(self.n, i));
            }
            ports.push(p);
        }
        let policy = |local| if local { "Local" } else { "Cluster" };
        let mut spec = json!({
            "type": self.kind, "clusterIPs": self.cluster_ips(), "externalIPs": self.externals(), "ports": ports,
            "internalTrafficPolicy": policy(self.internal_local), "externalTrafficPolicy": policy(self.external_local),
            "loadBalancerSourceRanges": self.ranges,
        });
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        let mode = |vip: bool| if vip { "VIP" } else { "Proxy" };
        let mut ingress: Vec<Value> = vec![json!({"hostname": "lb.example.com"})];
        if let Some(vip) = self.ingress {
            ingress.extend(self.balancers().iter().map(|ip| json!({"ip": ip, "ipMode": mode(vip)})));
        }
        let algorithm = ["anything", "random", "maglev", "least-connections"][usize::from(self.n % 4)];
        let label = if self.other_proxy { "service.kubernetes.io/service-proxy-name" } else { "app" };
        json!({
            "metadata": {"namespace": "ns", "name": format!("s{}", self.n), "labels": {label: "x"},
                "annotations": {"xebec.dev/lb-algorithm": algorithm}},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        })
    }
}

/// An endpoint: what its conditions say, where it is, what it is hinted for.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub n: u8,
    /// None: the API does not say, which means ready and serving, and not terminating.
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub node: Option<&'static str>,
    pub zones: Vec<&'static str>,
    pub nodes: Vec<&'static str>,
}

/// A slice of a Service: family, a number for each port it has, endpoints.
#[derive(Clone, Debug)]
pub struct Slice {
    pub v4: bool,
    pub numbers: [Option<u16>; 2],
    pub endpoints: Vec<Endpoint>,
    /// Its addresses are of the other family than it says.
    pub wrong_family: bool,
}

pub fn endpoint_ip(n: u8, v4: bool) -> IpAddr {
    match (n, v4) {
        // The node itself, as the API server's endpoint is.
        (0, true) => NODE_IPS[0].parse().expect("an address"),
        (0, false) => NODE_IPS[1].parse().expect("an address"),
        (n, true) => IpAddr::from([10, 244, 0, n]),
        (n, false) => format!("fd00:244::{n}").parse().expect("an address"),
    }
}

impl Slice {
    pub fn object(&self, service: u8, slice: u8) -> Value {
        let ports: Vec<Value> = PORTS
            .iter()
            .zip(self.numbers)
            .filter_map(|((name, protocol, _), number)| Some(json!({"name": name, "protocol": protocol, "port": number?})))
            .collect();
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|e| {
                json!({
                    "addresses": [endpoint_ip(e.n, self.v4 != self.wrong_family)],
                    "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
                    "nodeName": e.node,
                    "hints": {
                        "forZones": e.zones.iter().map(|z| json!({"name": z})).collect::<Vec<_>>(),
                        "forNodes": e.nodes.iter().map(|n| json!({"name": n})).collect::<Vec<_>>(),
                    },
                })
            })
            .collect();
        json!({
            "metadata": {"namespace": "ns", "name": format!("s{service}-{slice}"), "annotations": {"xebec.dev/weight": format!("{}", slice + 1)}, "labels": {"kubernetes.io/service-name": format!("s{service}")}},
            "addressType": if self.v4 { "IPv4" } else { "IPv6" }, "ports": ports, "endpoints": endpoints,
        })
    }
}

/// What the API holds.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub services: BTreeMap<u8, Service>,
    pub slices: BTreeMap<(u8, u8), Slice>,
}

prop_compose! {
    pub fn service(n: u8)(
        kind in prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer"), Just("ExternalName")],
        families in prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))],
        (node_ports, external_ips, internal_local, external_local) in any::<(bool, bool, bool, bool)>(),
        ingress in any::<Option<bool>>(),
        ranges in prop_oneof![
            2 => Just(vec![]), 1 => Just(vec!["172.16.0.0/12"]), 1 => Just(vec!["2001:db8::/48"]),
            1 => Just(vec![" 192.0.2.0/24", "fd00::/8"]), 1 => Just(vec!["10.244.0.0/24"]),
        ],
        affinity in proptest::option::of(1u32..86400),
        other_proxy in proptest::bool::weighted(0.05),
    ) -> Service {
        let external = kind == "NodePort" || kind == "LoadBalancer";
        Service {
            n, kind, families, node_ports: node_ports && external, external_ips, ingress, ranges, affinity, internal_local,
            external_local, other_proxy,
        }
    }
}

prop_compose! {
    fn endpoint()(
        n in 0u8..6,
        (ready, serving, terminating) in any::<(Option<bool>, Option<bool>, Option<bool>)>(),
        node in prop_oneof![3 => Just(Some(NODE)), 3 => Just(Some("there")), 1 => Just(None)],
        zones in prop_oneof![1 => Just(vec![]), 3 => Just(vec![ZONE]), 1 => Just(vec!["west", ZONE]), 1 => Just(vec!["west"])],
        nodes in prop_oneof![2 => Just(vec![]), 2 => Just(vec![NODE]), 1 => Just(vec!["there"])],
    ) -> Endpoint {
        Endpoint { n, ready, serving, terminating, node, zones, nodes }
    }
}

prop_compose! {
    pub fn slice()(
        v4 in any::<bool>(),
        numbers in prop_oneof![Just([Some(8080), Some(5353)]), Just([Some(8081), None]), Just([None, Some(5353)])],
        endpoints in proptest::collection::vec(endpoint(), 0..4),
        wrong_family in proptest::bool::weighted(0.1),
    ) -> Slice {
        Slice { v4, numbers, endpoints, wrong_family }
    }
}
