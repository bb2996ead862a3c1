//! Endpoint slices, ingresses, network policies, address ranges.

use serde_json::Value;

use super::{
    check::{Errors, at, at_index, cidr, ip, label_selector, one_of, port, port_name, port_or_name, required, required_name, syntax},
    names,
};
use crate::{
    Document,
    status::FieldError,
    value::{has, list, strings, text},
};

pub fn endpoint_slice(doc: &Document, errors: &mut Errors) {
    one_of(&doc["addressType"], "addressType", &["FQDN", "IPv4", "IPv6"], errors);
    let endpoints = list(&doc["endpoints"]);
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), 1000));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{i}]");
        let addresses = list(&endpoint["addresses"]);
        if addresses.is_empty() {
            errors.push(FieldError::required(at(&path, "addresses"), "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            errors.push(FieldError::too_many(at(&path, "addresses"), addresses.len(), 100));
        }
        for (j, address) in strings(&endpoint["addresses"]).enumerate() {
            let path = at_index(&path, "addresses", j);
            match text(&doc["addressType"]) {
                "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
                    errors.push(FieldError::invalid(path, address, "must be an IPv4 address"));
                }
                "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
                    errors.push(FieldError::invalid(path, address, "must be an IPv6 address"));
                }
                "FQDN" => syntax(address, &path, names::dns1123_subdomain, errors),
                _ => {}
            }
        }
        if has(endpoint, "hostname") {
            syntax(text(&endpoint["hostname"]), &at(&path, "hostname"), names::dns1123_label, errors);
        }
        if has(endpoint, "nodeName") {
            syntax(text(&endpoint["nodeName"]), &at(&path, "nodeName"), names::dns1123_subdomain, errors);
        }
    }
    let ports = list(&doc["ports"]);
    if ports.len() > 20_000 {
        errors.push(FieldError::too_many("ports", ports.len(), 20_000));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, p) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        let name = text(&p["name"]);
        if !name.is_empty() {
            syntax(name, &at(&path, "name"), names::dns1123_label, errors);
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(at(&path, "name"), name));
        }
        seen.push(name);
        one_of(&p["protocol"], &at(&path, "protocol"), &["SCTP", "TCP", "UDP"], errors);
    }
}

pub fn ingress(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    if list(&spec["rules"]).is_empty() && !has(spec, "defaultBackend") {
        errors.push(FieldError::invalid("spec", spec.clone(), "either `defaultBackend` or `rules` must be specified"));
    }
    if has(spec, "defaultBackend") {
        ingress_backend(&spec["defaultBackend"], "spec.defaultBackend", errors);
    }
    if has(spec, "ingressClassName") {
        syntax(text(&spec["ingressClassName"]), "spec.ingressClassName", names::dns1123_subdomain, errors);
    }
    for (i, rule) in list(&spec["rules"]).iter().enumerate() {
        let path = at_index("spec", "rules", i);
        host(text(&rule["host"]), &at(&path, "host"), errors);
        if !has(rule, "http") {
            continue;
        }
        let path = at(&path, "http");
        if list(&rule["http"]["paths"]).is_empty() {
            errors.push(FieldError::required(at(&path, "paths"), ""));
        }
        for (j, p) in list(&rule["http"]["paths"]).iter().enumerate() {
            let path = at_index(&path, "paths", j);
            let route = text(&p["path"]);
            match text(&p["pathType"]) {
                "" => errors.push(FieldError::required(at(&path, "pathType"), "pathType must be specified")),
                "Exact" | "Prefix" => {
                    if !route.starts_with('/') {
                        errors.push(FieldError::invalid(at(&path, "path"), route, "must be an absolute path"));
                    }
                    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                        if route.contains(bad) {
                            errors.push(FieldError::invalid(at(&path, "path"), route, format!("must not contain '{bad}'")));
                        }
                    }
                }
                "ImplementationSpecific" => {
                    if !route.is_empty() && !route.starts_with('/') {
                        errors.push(FieldError::invalid(at(&path, "path"), route, "must be an absolute path"));
                    }
                }
                other => {
                    errors.push(FieldError::not_supported(at(&path, "pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]))
                }
            }
            ingress_backend(&p["backend"], &at(&path, "backend"), errors);
        }
    }
    for (i, tls) in list(&spec["tls"]).iter().enumerate() {
        for (j, name) in strings(&tls["hosts"]).enumerate() {
            host(name, &at_index(&at_index("spec", "tls", i), "hosts", j), errors);
        }
    }
}

fn host(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        return;
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path, name, "must be a DNS name, not an IP address"));
    } else if let Some(rest) = name.strip_prefix("*.") {
        syntax(rest, path, names::dns1123_subdomain, errors);
    } else if name.contains('*') {
        let text = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        let pattern = "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
        errors.push(FieldError::invalid(path, name, names::pattern_message(text, pattern, &["*.example.com"])));
    } else {
        syntax(name, path, names::dns1123_subdomain, errors);
    }
}

fn ingress_backend(backend: &Value, path: &str, errors: &mut Errors) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends")),
        (false, true) => {}
        (false, false) => errors.push(FieldError::required(at(path, "service.name"), "")),
        (true, false) => {
            let (service, path) = (&backend["service"], at(path, "service"));
            required_name(&service["name"], &at(&path, "name"), names::dns1035_label, errors);
            let (name, number) = (text(&service["port"]["name"]), service["port"]["number"].as_i64().unwrap_or(0));
            let path = at(&path, "port");
            match (name.is_empty(), number == 0) {
                (true, true) => errors.push(FieldError::required(path, "port name or number is required")),
                (false, false) => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
                (false, true) => syntax(name, &at(&path, "name"), port_name, errors),
                (true, false) => port(&number.into(), &at(&path, "number"), errors),
            }
        }
    }
}

pub fn ingress_class(doc: &Document, errors: &mut Errors) {
    let controller = text(&doc["spec"]["controller"]);
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.push(FieldError::required("spec.controller", "")),
        Some((domain, path)) if !path.is_empty() => syntax(domain, "spec.controller", names::dns1123_subdomain, errors),
        _ => errors.push(FieldError::invalid("spec.controller", controller, "must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
}

pub fn network_policy(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    label_selector(&spec["podSelector"], "spec.podSelector", errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(&spec[direction]).iter().enumerate() {
            let path = at_index("spec", direction, i);
            for (j, p) in list(&rule["ports"]).iter().enumerate() {
                policy_port(p, &at_index(&path, "ports", j), errors);
            }
            for (j, peer) in list(&rule[peers]).iter().enumerate() {
                policy_peer(peer, &at_index(&path, peers, j), errors);
            }
        }
    }
    let types = list(&spec["policyTypes"]);
    if types.len() > 2 {
        errors.push(FieldError::invalid("spec.policyTypes", spec["policyTypes"].clone(), "may not specify more than two policyTypes"));
        return;
    }
    for (i, type_) in types.iter().enumerate() {
        one_of(type_, &at_index("spec", "policyTypes", i), &["Egress", "Ingress"], errors);
    }
}

fn policy_port(p: &Value, path: &str, errors: &mut Errors) {
    one_of(&p["protocol"], &at(path, "protocol"), &["SCTP", "TCP", "UDP"], errors);
    if has(p, "port") {
        port_or_name(&p["port"], &at(path, "port"), errors);
    }
    let Some(end) = p["endPort"].as_i64() else { return };
    match &p["port"] {
        Value::Null => errors.push(FieldError::required(at(path, "port"), "must be specified when `endPort` is specified")),
        Value::String(_) => errors.push(FieldError::invalid(at(path, "endPort"), end, "may not be specified when `port` is non-numeric")),
        first => {
            port(&end.into(), &at(path, "endPort"), errors);
            if first.as_i64().is_some_and(|first| end < first) {
                errors.push(FieldError::invalid(at(path, "endPort"), end, "must be greater than or equal to `port`"));
            }
        }
    }
}

fn policy_peer(peer: &Value, path: &str, errors: &mut Errors) {
    let selects = has(peer, "podSelector") || has(peer, "namespaceSelector");
    for key in ["podSelector", "namespaceSelector"] {
        label_selector(&peer[key], &at(path, key), errors);
    }
    match (selects, has(peer, "ipBlock")) {
        (false, false) => errors.push(FieldError::required(path, "must specify a peer")),
        (true, true) => errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer")),
        (true, false) => {}
        (false, true) => {
            let (block, path) = (&peer["ipBlock"], at(path, "ipBlock"));
            if required(&block["cidr"], &at(&path, "cidr"), errors) {
                cidr(text(&block["cidr"]), &at(&path, "cidr"), errors);
            }
            for (i, except) in strings(&block["except"]).enumerate() {
                let path = at_index(&path, "except", i);
                let before = errors.len();
                cidr(except, &path, errors);
                if errors.len() == before && !inside(except, text(&block["cidr"])) {
                    errors.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
                }
            }
        }
    }
}

/// Whether block `inner` lies strictly inside `outer`.
fn inside(inner: &str, outer: &str) -> bool {
    let parse = |block: &str| -> Option<(u128, u32, u32)> {
        let (address, bits) = block.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        match address.parse().ok()? {
            std::net::IpAddr::V4(a) => Some((u128::from(u32::from(a)) << 96, bits, 4)),
            std::net::IpAddr::V6(a) => Some((u128::from(a), bits, 6)),
        }
    };
    let (Some((a, a_bits, a_family)), Some((b, b_bits, b_family))) = (parse(inner), parse(outer)) else { return false };
    let mask = if b_bits == 0 { 0 } else { u128::MAX << (128 - b_bits.min(128)) };
    a_family == b_family && a_bits > b_bits && (a & mask) == (b & mask)
}

/// The name of an IPAddress is the address.
pub fn ip_name(name: &str) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        Ok(ip) => vec![format!("must be in canonical form (\"{ip}\")")],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

pub fn ip_address(doc: &Document, errors: &mut Errors) {
    let parent = &doc["spec"]["parentRef"];
    if parent.is_null() {
        errors.push(FieldError::required("spec.parentRef", ""));
        return;
    }
    for key in ["resource", "name"] {
        required_name(&parent[key], &at("spec.parentRef", key), names::path_segment, errors);
    }
}

pub fn service_cidr(doc: &Document, errors: &mut Errors) {
    let cidrs = list(&doc["spec"]["cidrs"]);
    if cidrs.is_empty() {
        errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
    }
    if cidrs.len() > 2 {
        errors.push(FieldError::invalid("spec.cidrs", doc["spec"]["cidrs"].clone(), "may only hold up to 2 values"));
    }
    for (i, block) in strings(&doc["spec"]["cidrs"]).enumerate() {
        cidr(block, &at_index("spec", "cidrs", i), errors);
    }
}

/// One address of old-style endpoints.
pub fn endpoint_address(address: &Value, path: &str, errors: &mut Errors) {
    ip(text(&address["ip"]), &at(path, "ip"), errors);
    if !text(&address["hostname"]).is_empty() {
        syntax(text(&address["hostname"]), &at(path, "hostname"), names::dns1123_label, errors);
    }
    if has(address, "nodeName") {
        syntax(text(&address["nodeName"]), &at(path, "nodeName"), names::dns1123_subdomain, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    fn messages(api_version: &str, kind: &str, mut doc: Value) -> Vec<String> {
        let hooks = &by_kind(api_version, kind).unwrap().hooks;
        hooks.default(&mut doc);
        hooks.validate_create(&doc).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn network_policies() {
        let policy = |rule: Value| messages("networking.k8s.io/v1", "NetworkPolicy", json!({"spec": {"ingress": [rule]}}));
        assert!(policy(json!({"from": [{"podSelector": {}}], "ports": [{"port": 80, "endPort": 90}]})).is_empty());
        assert_eq!(policy(json!({"from": [{}]})), ["spec.ingress[0].from[0]: Required value: must specify a peer"]);
        assert_eq!(
            policy(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]})),
            ["spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"]
        );
        assert_eq!(
            policy(json!({"ports": [{"port": 80, "endPort": 70}]})),
            ["spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`"]
        );
        assert!(inside("2001:db8::/64", "2001:db8::/32") && !inside("10.0.0.0/8", "10.0.0.0/8"));
    }

    #[test]
    fn ingresses_and_slices() {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let ingress = |path: Value| {
            messages("networking.k8s.io/v1", "Ingress", json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}}))
        };
        assert!(ingress(json!({"path": "/", "pathType": "Prefix", "backend": backend})).is_empty());
        assert_eq!(
            ingress(json!({"path": "/", "backend": backend})),
            ["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"]
        );
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}], "ports": []});
        assert_eq!(
            messages("discovery.k8s.io/v1", "EndpointSlice", slice),
            ["endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address"]
        );
    }
}
