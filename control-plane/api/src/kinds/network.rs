//! Services, endpoints, ingresses, network policies, address ranges.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, field, service_type};
use crate::{
    Document, table,
    validate::{core, names, network, service},
    value::{child, default, each, entries, has, is_zero, list, set, strings, text, with},
};

pub(super) fn core_rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "Service" => Rules {
            name: names::dns1035_label,
            default: default_service,
            prepare_create: |doc| set(doc, "status", json!({"loadBalancer": {}})),
            prepare_update: |new, old, sub| {
                if sub.is_empty() {
                    service_type::drop_dependent_fields(new, old);
                }
            },
            validate: service::validate,
            validate_update: service::validate_update,
            fields: |doc| vec![("spec.clusterIP", field(doc, "/spec/clusterIP")), ("spec.type", field(doc, "/spec/type"))],
            columns: &[
                ("Type", "string", 0),
                ("Cluster-IP", "string", 0),
                ("External-IP", "string", 0),
                ("Port(s)", "string", 0),
                ("Age", "string", 0),
                ("Selector", "string", 1),
            ],
            cells: service_cells,
            ..PLAIN
        },
        "Endpoints" => Rules {
            default: |doc| {
                each(doc, "subsets", |subset| each(subset, "ports", |port| default(port, "protocol", "TCP")));
            },
            validate: core::endpoints,
            columns: &[("Endpoints", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![endpoints_text(doc).into(), age(doc, now)],
            ..PLAIN
        },
        _ => return None,
    })
}

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "EndpointSlice" => Rules {
            default: |doc| {
                each(doc, "ports", |port| {
                    if !has(port, "name") {
                        set(port, "name", "");
                    }
                    default(port, "protocol", "TCP");
                });
            },
            validate: network::endpoint_slice,
            validate_update: |new, old, _, errors| super::immutable(new, old, "/addressType", errors),
            columns: &[("AddressType", "string", 0), ("Ports", "string", 0), ("Endpoints", "string", 0), ("Age", "string", 0)],
            cells: slice_cells,
            ..PLAIN
        },
        "Ingress" => Rules {
            prepare_create: |doc| set(doc, "status", json!({"loadBalancer": {}})),
            validate: network::ingress,
            columns: &[
                ("Class", "string", 0),
                ("Hosts", "string", 0),
                ("Address", "string", 0),
                ("Ports", "string", 0),
                ("Age", "string", 0),
            ],
            cells: ingress_cells,
            ..PLAIN
        },
        "IngressClass" => Rules {
            default: |doc| {
                with(doc, "spec", |spec| with(spec, "parameters", |p| default(p, "scope", "Cluster")));
            },
            validate: network::ingress_class,
            validate_update: |new, old, _, errors| super::immutable(new, old, "/spec/controller", errors),
            columns: &[("Controller", "string", 0), ("Parameters", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let p = &doc["spec"]["parameters"];
                let mut shown = String::new();
                if p.is_object() {
                    shown = text(&p["kind"]).to_owned();
                    if !text(&p["apiGroup"]).is_empty() {
                        shown = format!("{shown}.{}", text(&p["apiGroup"]));
                    }
                    shown = format!("{shown}/{}", text(&p["name"]));
                }
                vec![table::scalar(&doc["spec"]["controller"], ""), table::or_none(shown), age(doc, now)]
            },
            ..PLAIN
        },
        "NetworkPolicy" => Rules {
            default: default_network_policy,
            validate: network::network_policy,
            columns: &[("Pod-Selector", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![table::selector(&doc["spec"]["podSelector"]), age(doc, now)],
            ..PLAIN
        },
        "IPAddress" => Rules {
            name: network::ip_name,
            validate: network::ip_address,
            validate_update: |new, old, _, errors| super::immutable(new, old, "/spec/parentRef", errors),
            fields: |doc| vec![("metadata.name", field(doc, "/metadata/name"))],
            columns: &[("ParentRef", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let parent = &doc["spec"]["parentRef"];
                let parts = [text(&parent["group"]), text(&parent["resource"]), text(&parent["namespace"]), text(&parent["name"])];
                let shown = parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join("/");
                vec![shown.into(), age(doc, now)]
            },
            ..PLAIN
        },
        "ServiceCIDR" => Rules {
            validate: network::service_cidr,
            columns: &[("CIDRs", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![strings(&doc["spec"]["cidrs"]).collect::<Vec<_>>().join(",").into(), age(doc, now)],
            ..PLAIN
        },
        _ => return None,
    })
}

fn default_service(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    match text(&spec["sessionAffinity"]) {
        "ClientIP" => {
            if let Some(client) = child(spec, "sessionAffinityConfig").and_then(|c| child(c, "clientIP")) {
                default(client, "timeoutSeconds", 10_800);
            }
        }
        _ => crate::value::unset(spec, "sessionAffinityConfig"),
    }
    let type_ = text(&spec["type"]).to_owned();
    if type_ == "NodePort" || type_ == "LoadBalancer" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    each(spec, "ports", |port| {
        default(port, "protocol", "TCP");
        let own = port["port"].clone();
        if is_zero(&port["targetPort"]) && !own.is_null() {
            set(port, "targetPort", own);
        }
    });
}

fn default_network_policy(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    child(spec, "podSelector");
    for direction in ["ingress", "egress"] {
        each(spec, direction, |rule| each(rule, "ports", |port| default(port, "protocol", "TCP")));
    }
    if is_zero(&spec["policyTypes"]) {
        let egress = !list(&spec["egress"]).is_empty();
        set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
}

fn service_cells(doc: &Document, now: i64) -> Vec<Value> {
    let spec = &doc["spec"];
    let cluster_ip = strings(&spec["clusterIPs"]).next().unwrap_or_else(|| text(&spec["clusterIP"]));
    let external: Vec<&str> = strings(&spec["externalIPs"]).collect();
    let shown = match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let balancers = list(&doc["status"]["loadBalancer"]["ingress"]).iter().map(|i| match text(&i["ip"]) {
                "" => text(&i["hostname"]),
                ip => ip,
            });
            let all: Vec<&str> = balancers.filter(|s| !s.is_empty()).chain(external).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ => external.join(","),
    };
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|p| match p["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{}:{node}/{}", p["port"], text(&p["protocol"])),
            _ => format!("{}/{}", p["port"], text(&p["protocol"])),
        })
        .collect();
    vec![
        spec["type"].clone(),
        table::or_none(cluster_ip),
        table::or_none(shown),
        table::or_none(ports.join(",")),
        age(doc, now),
        table::labels(&spec["selector"]),
    ]
}

/// The first `max`, and how many more.
fn some_of(items: &[String], max: usize) -> String {
    match items.len() {
        0 => table::NONE.into(),
        n if n > max => format!("{} + {} more...", items[..max].join(","), n - max),
        _ => items.join(","),
    }
}

fn endpoints_text(doc: &Document) -> String {
    let mut all = Vec::new();
    for subset in list(&doc["subsets"]) {
        let hosts = || list(&subset["addresses"]).iter().map(|a| text(&a["ip"]));
        let bracket = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        match list(&subset["ports"]) {
            [] => all.extend(hosts().map(str::to_owned)),
            ports => {
                for port in ports {
                    all.extend(hosts().map(|ip| format!("{}:{}", bracket(ip), port["port"])));
                }
            }
        }
    }
    some_of(&all, 3)
}

fn slice_cells(doc: &Document, now: i64) -> Vec<Value> {
    let ports: Vec<String> = list(&doc["ports"])
        .iter()
        .map(|p| match (&p["port"], text(&p["name"])) {
            (Value::Null, "") => "*".into(),
            (Value::Null, name) => name.into(),
            (port, _) => port.to_string(),
        })
        .collect();
    let ports = if doc["ports"].is_null() || ports.is_empty() { "<unset>".into() } else { some_of(&ports, 3) };
    let addresses: Vec<String> = list(&doc["endpoints"]).iter().flat_map(|e| strings(&e["addresses"])).map(str::to_owned).collect();
    let addresses = if addresses.is_empty() { "<unset>".into() } else { some_of(&addresses, 3) };
    vec![doc["addressType"].clone(), ports.into(), addresses.into(), age(doc, now)]
}

fn ingress_cells(doc: &Document, now: i64) -> Vec<Value> {
    let spec = &doc["spec"];
    let hosts: Vec<String> = list(&spec["rules"]).iter().map(|r| text(&r["host"]).to_owned()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".into() } else { some_of(&hosts, 3) };
    let addresses = list(&doc["status"]["loadBalancer"]["ingress"]).iter().map(|i| match text(&i["ip"]) {
        "" => text(&i["hostname"]),
        ip => ip,
    });
    let class = match text(&spec["ingressClassName"]) {
        "" => entries(&doc["metadata"]["annotations"]).find(|(k, _)| *k == "kubernetes.io/ingress.class").map_or("", |(_, v)| text(v)),
        class => class,
    };
    let ports = if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
    vec![table::or_none(class), hosts.into(), addresses.collect::<Vec<_>>().join(",").into(), ports.into(), age(doc, now)]
}
