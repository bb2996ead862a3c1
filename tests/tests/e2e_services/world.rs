//! Three nodes with servers, and what is asked of the API about them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde_json::{Value, json};
use xebec_tests::cluster::{Cluster, IMAGE, args, until};
use xtask::up::{self, IpFamily, Store};

use crate::client::{self, Answer};

/// Of every Service: TCP, a second TCP port by name, UDP.
pub const PORT: u16 = 80;
pub const OTHER_PORT: u16 = 81;
pub const UDP_PORT: u16 = 53;
/// Of every server.
pub const TARGET: u16 = 8080;
const OTHER_TARGET: u16 = 9090;
const UDP_TARGET: u16 = 5353;

/// Ports of a Service, as its spec has them.
pub fn ports() -> Value {
    json!([
        {"name": "tcp", "port": PORT, "targetPort": TARGET},
        {"name": "other", "port": OTHER_PORT, "targetPort": "other"},
        {"name": "udp", "protocol": "UDP", "port": UDP_PORT, "targetPort": UDP_TARGET}])
}

/// `a1` and `a2` serve app `a` on the first two nodes, `b2` serves app `b` on the second; `client` is on the third.
pub struct World {
    pub cluster: Cluster,
}

impl World {
    pub fn new() -> World {
        let cluster = Cluster::with(up::Args { nodes: Some(3), ip_family: IpFamily::Dual, ..args("services", Store::Embedded) });
        let world = World { cluster };
        for (name, app, node) in [("a1", "a", 1), ("a2", "a", 2), ("b2", "b", 2), ("client", "client", 3)] {
            world.server(name, app, node, json!({}));
        }
        world.ready();
        for name in ["a1", "a2", "b2"] {
            client::serve_udp(&world.uid(name), name, UDP_TARGET);
        }
        crate::service(&world.cluster, "a", "a", json!({}));
        crate::service(&world.cluster, "b", "b", json!({}));
        world
    }

    /// A pod on a node that tells each client its own name and the client's address; on its second port it calls itself `other`.
    pub fn server(&self, name: &str, app: &str, node: u8, port: Value) {
        let script = r#"serve() {
  mkdir -p /$1/cgi-bin; printf '#!/bin/sh\necho; echo "%s $REMOTE_ADDR"\n' "$2" > /$1/cgi-bin/who; chmod +x /$1/cgi-bin/who
}
serve one $NAME; serve two $NAME-other; httpd -f -p 9090 -h /two & exec httpd -f -p 8080 -h /one"#;
        let mut main = json!({"containerPort": TARGET});
        for (key, value) in port.as_object().into_iter().flatten() {
            main[key] = value.clone();
        }
        apply(
            &self.cluster,
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}}, "spec": {
                "nodeName": self.cluster.node(node).name, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", script], "env": [{"name": "NAME", "value": name}],
                    "ports": [main, {"name": "other", "containerPort": OTHER_TARGET}],
                    "readinessProbe": {"tcpSocket": {"port": TARGET}, "periodSeconds": 1}}]}}),
        );
    }

    /// Waits until every pod is.
    pub fn ready(&self) {
        self.cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]);
    }

    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.cluster.kubectl(&["get", kind, name, "-o", "json"])).expect("JSON")
    }

    pub fn uid(&self, pod: &str) -> String {
        self.get("pod", pod)["metadata"]["uid"].as_str().expect("a uid").to_owned()
    }

    /// IPv4, then IPv6.
    pub fn pod_ips(&self, name: &str) -> Vec<IpAddr> {
        self.get("pod", name)["status"]["podIPs"].as_array().expect("a list").iter().map(|ip| address(&ip["ip"])).collect()
    }

    /// IPv4, then IPv6.
    pub fn cluster_ips(&self, service: &str) -> Vec<IpAddr> {
        self.get("service", service)["spec"]["clusterIPs"].as_array().expect("a list").iter().map(address).collect()
    }

    /// Addresses a pool has given the Service: IPv4, then IPv6.
    pub fn balancer_ips(&self, service: &str) -> Vec<IpAddr> {
        let given = || -> BTreeSet<IpAddr> {
            let service = self.get("service", service);
            service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten().map(|i| address(&i["ip"])).collect()
        };
        until(&format!("{service} has an address of each family"), || given().len() == 2);
        given().into_iter().collect()
    }

    /// The NodePort of one of the Service's ports.
    pub fn node_port(&self, service: &str, port: &str) -> u16 {
        let service = self.get("service", service);
        let list = service["spec"]["ports"].as_array().expect("a list");
        let found = list.iter().find(|p| p["name"] == port).expect("the port");
        found["nodePort"].as_u64().expect("a number") as u16
    }

    /// Addresses of this machine, which is outside of every node.
    pub fn outside(&self) -> Vec<IpAddr> {
        self.cluster.up.network.host()
    }

    /// Addresses of the segment that nobody has: IPv4, then IPv6.
    pub fn free(&self, n: u8) -> Vec<IpAddr> {
        let beside = |ip: &IpAddr| -> IpAddr {
            match *ip {
                IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) + u32::from(n)).into(),
                IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) + u128::from(n)).into(),
            }
        };
        self.outside().iter().map(beside).collect()
    }
}

fn address(value: &Value) -> IpAddr {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no address"))
}

pub fn apply(cluster: &Cluster, object: &Value) {
    cluster.apply(&object.to_string());
}

/// Asks until all of `want` have answered, and nobody else.
#[track_caller]
pub fn all_answer(what: &str, want: &[&str], mut ask: impl FnMut() -> Answer) {
    let mut seen = BTreeSet::new();
    let mut last = String::new();
    until(&format!("{what}: all of {want:?} have answered"), || {
        match ask() {
            Ok((name, _)) => {
                assert!(want.contains(&name.as_str()), "{what}: {name} is not behind it");
                seen.insert(name);
            }
            Err(error) if last != error.to_string() => {
                last = error.to_string();
                eprintln!("{what}: {last}");
            }
            Err(_) => {}
        }
        seen.len() == want.len()
    });
}

/// Asks until somebody answers; whom the server saw.
#[track_caller]
pub fn seen_by(what: &str, mut ask: impl FnMut() -> Answer) -> IpAddr {
    let mut seen = None;
    until(what, || {
        seen = ask().ok();
        seen.is_some()
    });
    seen.expect("it has answered").1
}
