//! API objects to what the records keep of them. Pure.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use k8s_openapi::api::{core::v1, discovery::v1 as discovery};

use crate::records::{Endpoint, Key, Port, Service, Slice, Target};

/// Label of Services that kube-proxy (and the dataplane) leave to somebody else.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Who that is for the Service that stands for the nodes' own name servers.
const NODE_DNS: &str = "xebec-dns";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reduces a Service.
pub fn service(service: &v1::Service) -> Service {
    let spec = service.spec.clone().unwrap_or_default();
    let labels = service.metadata.labels.as_ref();
    let target = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => alias(spec.external_name.as_deref().unwrap_or_default()),
        (_, Some("None")) => Target::Endpoints,
        (_, single) => {
            let all = spec.cluster_ips.iter().flatten().map(String::as_str).chain(single);
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in all.filter_map(|address| address.parse().ok()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Target::Addresses(addresses)
        }
    };
    let ports = spec.ports.iter().flatten().filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port)));
    Service { target, ports: ports.collect(), is_node_dns: labels.and_then(|l| l.get(PROXY_NAME)).is_some_and(|name| name == NODE_DNS) }
}

/// An address is no name: a resolver could do nothing with it.
fn alias(name: &str) -> Target {
    let name = name.trim_end_matches('.');
    if name.is_empty() || name.parse::<IpAddr>().is_ok() {
        return Target::Nothing;
    }
    match Name::from_ascii(name) {
        Ok(mut name) => {
            name.set_fqdn(true);
            Target::Alias(name)
        }
        Err(_) => Target::Nothing,
    }
}

/// Reduces an EndpointSlice to its ready endpoints; `None` if it belongs to no Service or holds names.
pub fn slice(slice: &discovery::EndpointSlice) -> Option<Slice> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = slice.metadata.namespace.as_deref()?;
    if slice.address_type == "FQDN" {
        return None;
    }
    let ready = slice.endpoints.iter().flatten().filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    let endpoints = ready.flat_map(|endpoint| {
        let hostname = || endpoint.hostname.as_deref().filter(|name| !name.is_empty()).map(Into::into);
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        addresses.map(move |address| Endpoint { address, hostname: hostname() })
    });
    let ports = slice.ports.iter().flatten().filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port));
    Some(Slice { service: Key::new(namespace, service), ports: ports.collect(), endpoints: endpoints.collect() })
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    let protocol = match protocol {
        None | Some("TCP") => "tcp",
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        Some(_) => return None,
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?;
    Some(Port { name: name.unwrap_or_default().into(), protocol, number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn target(spec: serde_json::Value) -> Target {
        service(&serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()).target
    }

    #[test]
    fn where_services_lead() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(target(json!({"clusterIP": "10.0.0.1"})), Target::Addresses(vec![ip("10.0.0.1")]));
        let dual = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]});
        assert_eq!(target(dual), Target::Addresses(vec![ip("10.0.0.1"), ip("fd00::1")]));
        assert_eq!(target(json!({"clusterIP": "None"})), Target::Endpoints);
        assert_eq!(target(json!({})), Target::Addresses(vec![]));
        let external = |name: &str| target(json!({"type": "ExternalName", "externalName": name}));
        assert_eq!(external("www.example.com"), Target::Alias(Name::from_ascii("www.example.com.").unwrap()));
        assert_eq!(external("www.example.com."), external("www.example.com"));
        for none in ["192.0.2.1", "", "."] {
            assert_eq!(external(none), Target::Nothing, "{none:?}");
        }
    }

    #[test]
    fn only_ready_endpoints_count() {
        let document = json!({
            "metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "hostname": "a"},
                {"addresses": ["10.1.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.3"], "conditions": {}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        });
        let slice = slice(&serde_json::from_value(document).unwrap()).unwrap();
        let addresses: Vec<String> = slice.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["10.1.0.1", "10.1.0.3"]);
        assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("a"));
        assert_eq!(slice.ports, [Port { name: "http".into(), protocol: "tcp", number: 80 }]);
    }

    #[test]
    fn the_nodes_own_service_is_told_by_its_label() {
        let with = |labels: serde_json::Value| {
            let document = json!({"metadata": {"name": "kube-dns", "labels": labels}, "spec": {"clusterIP": "10.96.0.10"}});
            service(&serde_json::from_value(document).unwrap()).is_node_dns
        };
        assert!(with(json!({"service.kubernetes.io/service-proxy-name": "xebec-dns"})));
        assert!(!with(json!({"service.kubernetes.io/service-proxy-name": "other"})));
        assert!(!with(json!({"k8s-app": "kube-dns"})));
    }
}
