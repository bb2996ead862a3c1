//! What a Service needs, and what an update keeps of the old one. Pure.

use std::net::IpAddr;

use serde_json::Value;
use xebec_api::{Document, status::FieldError};

/// Addresses and ports a Service holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub ips: Vec<IpAddr>,
    pub ports: Vec<u16>,
}

impl Held {
    pub fn of(service: &Document) -> Held {
        let mut held = Held::default();
        if needs_cluster_ip(service) {
            held.ips = cluster_ips(service).iter().filter_map(|ip| ip.parse().ok()).collect();
        }
        let spec = &service["spec"];
        let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let numbers = ports.iter().map(|p| &p["nodePort"]).chain([&spec["healthCheckNodePort"]]).filter_map(port_number);
        held.ports = numbers.collect();
        held.ports.sort_unstable();
        held.ports.dedup();
        held
    }

    /// What is in `self` and not in `other`.
    pub fn without(&self, other: &Held) -> Held {
        Held {
            ips: self.ips.iter().filter(|ip| !other.ips.contains(ip)).copied().collect(),
            ports: self.ports.iter().filter(|port| !other.ports.contains(port)).copied().collect(),
        }
    }
}

fn type_of(service: &Document) -> &str {
    service["spec"]["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP")
}

fn is_headless(service: &Document) -> bool {
    service["spec"]["clusterIP"] == "None" || service["spec"]["clusterIPs"][0] == "None"
}

pub fn needs_cluster_ip(service: &Document) -> bool {
    matches!(type_of(service), "ClusterIP" | "NodePort" | "LoadBalancer") && !is_headless(service)
}

pub fn needs_node_ports(service: &Document) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

pub fn needs_health_check_port(service: &Document) -> bool {
    type_of(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// A port that is set: absent and 0 are not.
pub fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

pub fn cluster_ips(service: &Document) -> Vec<String> {
    strings(&service["spec"]["clusterIPs"])
}

pub fn families(service: &Document) -> Vec<String> {
    strings(&service["spec"]["ipFamilies"])
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}

/// Makes `clusterIP` and `clusterIPs` agree, keeps what the old Service holds, sets families and policy.
/// `configured` are the families that have a range, the primary one first.
pub fn prepare(service: &mut Document, old: Option<&Document>, configured: &[&str]) -> Result<(), Vec<FieldError>> {
    if type_of(service) == "ExternalName" {
        return Ok(());
    }
    let old = old.filter(|old| type_of(old) != "ExternalName");
    normalize(service, old);
    if let Some(old) = old {
        keep(service, old);
        let (now, then) = (cluster_ips(service), cluster_ips(old));
        if let (Some(new), Some(was)) = (now.first(), then.first())
            && new != was
        {
            return Err(vec![FieldError::invalid("spec.clusterIPs[0]", now.clone(), "may not change once set")]);
        }
    }
    set_families(service, old, configured)
}

fn normalize(service: &mut Document, old: Option<&Document>) {
    let spec = &service["spec"];
    let single = spec["clusterIP"].as_str().unwrap_or_default().to_string();
    let list = cluster_ips(service);
    let old_single = old.and_then(|old| old["spec"]["clusterIP"].as_str()).unwrap_or_default();
    if !single.is_empty() && list.is_empty() {
        service["spec"]["clusterIPs"] = vec![single].into();
    } else if single.is_empty() && !list.is_empty() && old.is_none() {
        service["spec"]["clusterIP"] = list[0].clone().into();
    } else if old.is_some() && single != old_single && old.is_some_and(|old| cluster_ips(old) == list) && !single.is_empty() {
        // A client that knows only the single field changed it.
        service["spec"]["clusterIPs"] = vec![single].into();
    }
}

/// What an update need not repeat.
fn keep(service: &mut Document, old: &Document) {
    if needs_cluster_ip(old) && needs_cluster_ip(service) && cluster_ips(service).is_empty() {
        service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    if needs_node_ports(old) && needs_node_ports(service) {
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let mut used: Vec<u16> = Held::of(service).ports;
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port_number(&port["nodePort"]).is_some() {
                continue;
            }
            let same = before.iter().find(|b| b["port"] == port["port"] && protocol(b) == protocol(port));
            if let Some(number) = same.and_then(|b| port_number(&b["nodePort"])).filter(|n| !used.contains(n)) {
                port["nodePort"] = number.into();
                used.push(number);
            }
        }
    }
    let health = &old["spec"]["healthCheckNodePort"];
    if needs_health_check_port(old)
        && needs_health_check_port(service)
        && port_number(&service["spec"]["healthCheckNodePort"]).is_none()
        && port_number(health).is_some()
    {
        service["spec"]["healthCheckNodePort"] = health.clone();
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if service["spec"].get(field).is_none_or(Value::is_null) && old["spec"][field] != Value::Null {
            service["spec"][field] = old["spec"][field].clone();
        }
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn set_families(service: &mut Document, old: Option<&Document>, configured: &[&str]) -> Result<(), Vec<FieldError>> {
    const PATH: &str = "spec.ipFamilies";
    let headless = is_headless(service);
    let selectorless = headless && service["spec"]["selector"].as_object().is_none_or(|s| s.is_empty());
    let mut families = families(service);
    let mut ips = cluster_ips(service);
    for (i, family) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(&family.as_str()) {
            return Err(vec![FieldError::not_supported(format!("{PATH}[{i}]"), family.clone(), &["IPv4", "IPv6"])]);
        }
        if families[..i].contains(family) {
            return Err(vec![FieldError::duplicate(format!("{PATH}[{i}]"), family.clone())]);
        }
        if !configured.contains(&family.as_str()) && !selectorless {
            return Err(vec![FieldError::invalid(format!("{PATH}[{i}]"), family.clone(), "not configured on this cluster")]);
        }
    }
    let family_of = |ip: &str| match ip.parse::<IpAddr>() {
        Ok(ip) => Some(if ip.is_ipv4() { "IPv4" } else { "IPv6" }),
        Err(_) => None,
    };
    // Addresses that were asked for name their families.
    if !headless {
        for (i, ip) in ips.iter().enumerate() {
            let Some(family) = family_of(ip) else {
                return Err(vec![FieldError::invalid(
                    format!("spec.clusterIPs[{i}]"),
                    ip.clone(),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                )]);
            };
            match families.get(i) {
                None => families.push(family.to_string()),
                Some(named) if named != family => {
                    let text = format!("expected an {named} value as indicated by `ipFamilies[{i}]`");
                    return Err(vec![FieldError::invalid(format!("spec.clusterIPs[{i}]"), ip.clone(), text)]);
                }
                Some(_) => {}
            }
        }
    }
    let policy = service["spec"]["ipFamilyPolicy"].as_str().map(str::to_string);
    let policy = match policy {
        Some(policy) => policy,
        None if selectorless => "RequireDualStack".to_string(),
        None if families.len() == 2 && old.is_none() => {
            let text = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
            return Err(vec![FieldError::invalid("spec.ipFamilyPolicy", "SingleStack", text)]);
        }
        None => "SingleStack".to_string(),
    };
    if policy == "RequireDualStack" && configured.len() < 2 && !selectorless {
        let text = "this cluster is not configured for dual-stack services";
        return Err(vec![FieldError::invalid("spec.ipFamilyPolicy", policy, text)]);
    }
    if families.is_empty() {
        families.extend(configured.first().map(|f| f.to_string()));
    }
    match policy.as_str() {
        "SingleStack" => {
            if families.len() == 2 {
                let before = old.map(self::families).unwrap_or_default();
                if before != families {
                    let text = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
                    return Err(vec![FieldError::invalid("spec.ipFamilyPolicy", "SingleStack", text)]);
                }
                // Back to one family: the second address goes.
                families.truncate(1);
                ips.truncate(1);
            }
        }
        _ => {
            let both = selectorless || configured.len() == 2;
            if families.len() == 1 && both {
                let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
                families.push(other.to_string());
            }
        }
    }
    service["spec"]["ipFamilies"] = families.into();
    service["spec"]["ipFamilyPolicy"] = policy.into();
    if headless {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = vec!["None"].into();
    } else if !ips.is_empty() {
        service["spec"]["clusterIPs"] = ips.into();
    }
    Ok(())
}
