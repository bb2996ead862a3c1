//! Where a proxied request goes: pure functions from the objects and the request to a target or a refusal.

use std::net::IpAddr;

use serde_json::Value;
use xebec_api::status::{self, ApiError};

use crate::request_info::Query;

/// The kubelet's port when its Node does not say another.
const KUBELET_PORT: u64 = 10250;

/// Who is spoken to and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    Http,
    /// The node's kubelet: its certificate must be the cluster's, and it is shown the server's client certificate.
    Kubelet,
    /// A pod or Service behind `https:`: nothing is known of its certificate, as upstream it is not verified.
    HttpsUnverified,
}

/// One backend request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
    /// With a leading slash, encoded; the query behind `?` if there is one.
    pub path_and_query: String,
}

/// The kubelet of a node, `nodes.status.addresses` in kube-apiserver's order of preference.
pub fn kubelet(node: &Value) -> Result<(String, u16), ApiError> {
    const PREFERRED: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Names need a resolver the server may not have; an address always works. The rest keeps upstream's order.
    let rank = |kind: &str| match kind {
        "InternalIP" => Some(0),
        other => PREFERRED.iter().position(|p| *p == other).map(|i| i + 1),
    };
    let best = addresses
        .iter()
        .filter_map(|a| Some((rank(a["type"].as_str()?)?, a["address"].as_str()?)))
        .min_by_key(|(rank, _)| *rank)
        .ok_or_else(|| {
            status::internal(&format!("no preferred addresses found; known addresses of node {name}: {}", node["status"]["addresses"]))
        })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p != 0).unwrap_or(KUBELET_PORT);
    Ok((best.1.to_string(), u16::try_from(port).unwrap_or_default()))
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// The container a request means: the one it names, else the default of the annotation, else the only one.
pub fn container(pod: &Value, asked: &str) -> Result<String, ApiError> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (containers, init, ephemeral) = (names(pod, "containers"), names(pod, "initContainers"), names(pod, "ephemeralContainers"));
    if asked.is_empty() {
        if let [only] = containers.as_slice() {
            return Ok((*only).to_string());
        }
        let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str().unwrap_or_default();
        if containers.contains(&annotated) {
            return Ok(annotated.to_string());
        }
        let mut message = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", containers.join(" "));
        if !init.is_empty() {
            message += &format!(" or one of the init containers: [{}]", init.join(" "));
        }
        return Err(status::bad_request(message));
    }
    if containers.iter().chain(&init).chain(&ephemeral).any(|name| *name == asked) {
        return Ok(asked.to_string());
    }
    Err(status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
}

/// `name`, `name:port` or `scheme:name:port`, `net.SplitSchemeNamePort` upstream.
pub fn split_name(text: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme @ ("" | "http" | "https"), name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (!name.is_empty()).then_some((scheme, name, port))
}

fn enc(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn segment(text: &str) -> String {
    // Names are DNS labels or subdomains: nothing but these ever needs no encoding.
    text.chars()
        .flat_map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { vec![c] } else { enc(&c.to_string()).chars().collect() })
        .collect()
}

/// The kubelet path of `pods/exec` and `pods/attach` (`streamParams` upstream).
pub fn stream_path(verb: &str, pod: &Value, container: &str, query: &Query) -> Result<String, ApiError> {
    const FLAGS: [(&str, &str); 4] = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let mut pairs = Vec::new();
    for (ours, kubelets) in FLAGS {
        if query.flag(ours) {
            pairs.push(format!("{kubelets}=1"));
        }
    }
    if !FLAGS[..3].iter().any(|(ours, _)| query.flag(ours)) {
        return Err(status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if verb == "exec" {
        pairs.extend(query.all("command").map(|word| format!("command={}", enc(word))));
    }
    Ok(format!("/{verb}/{}/{}?{}", pod_path(pod), segment(container), pairs.join("&")))
}

/// The kubelet path of `pods/portforward`.
pub fn port_forward_path(pod: &Value, query: &Query) -> String {
    let ports: Vec<String> = query.all("ports").map(|p| format!("port={}", enc(p))).collect();
    match ports.is_empty() {
        true => format!("/portForward/{}", pod_path(pod)),
        false => format!("/portForward/{}?{}", pod_path(pod), ports.join("&")),
    }
}

/// The kubelet path of `pods/log` (`LogLocation` upstream).
pub fn log_path(pod: &Value, container: &str, query: &Query) -> Result<String, ApiError> {
    let mut pairs = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            pairs.push(format!("{flag}=true"));
        }
    }
    for (number, least) in [("sinceSeconds", 1), ("tailLines", 0), ("limitBytes", 1)] {
        let text = query.get(number);
        if text.is_empty() {
            continue;
        }
        let value: i64 = text.parse().map_err(|_| status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
        if value < least {
            let bound = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            let error = xebec_api::status::FieldError::invalid(number, value, bound);
            return Err(status::invalid_kind("", "PodLogOptions", pod["metadata"]["name"].as_str().unwrap_or_default(), &[error]));
        }
        pairs.push(format!("{number}={value}"));
    }
    for text in ["sinceTime", "stream"] {
        if query.has(text) && !query.get(text).is_empty() {
            pairs.push(format!("{text}={}", enc(query.get(text))));
        }
    }
    if query.has("sinceTime") && query.has("sinceSeconds") {
        let error = xebec_api::status::FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified");
        return Err(status::invalid_kind("", "PodLogOptions", pod["metadata"]["name"].as_str().unwrap_or_default(), &[error]));
    }
    let path = format!("/containerLogs/{}/{}", pod_path(pod), segment(container));
    Ok(if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) })
}

fn pod_path(pod: &Value) -> String {
    let part = |field: &str| segment(pod["metadata"][field].as_str().unwrap_or_default());
    format!("{}/{}", part("namespace"), part("name"))
}

/// exec and attach need a pod that still runs.
pub fn check_not_completed(pod: &Value) -> Result<(), ApiError> {
    match pod["status"]["phase"].as_str() {
        Some(phase @ ("Succeeded" | "Failed")) => {
            Err(status::bad_request(format!("cannot exec into a container in a completed pod; current phase is {phase}")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Scheme, address and port of `pods/NAME/proxy` (`ResourceLocation` upstream). Without a port, the first one the pod declares.
pub fn pod(pod: &Value, scheme: &str, port: &str) -> Result<(Scheme, String, u16), ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let declared = || pod["spec"]["containers"].as_array().into_iter().flatten().flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let number = match port {
        "" => declared().find_map(|p| p["containerPort"].as_u64()).unwrap_or(if scheme == "https" { 443 } else { 80 }),
        text => match text.parse() {
            Ok(number) => number,
            Err(_) => declared()
                .find(|p| p["name"] == text)
                .and_then(|p| p["containerPort"].as_u64())
                .ok_or_else(|| status::bad_request(format!("invalid pod request {name:?}: no port named {text:?}")))?,
        },
    };
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    Ok((transport(scheme), proxyable(ip, name)?, port_number(number)?))
}

/// Scheme, address and port of `services/NAME/proxy`: a ready endpoint of the port, by `seed`.
pub fn service(service: &Value, slices: &[Value], scheme: &str, port: &str, seed: usize) -> Result<(Scheme, String, u16), ApiError> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wanted = match (port, ports) {
        ("", [only]) => only["name"].as_str().unwrap_or_default(),
        ("", _) => "",
        (text, _) => ports
            .iter()
            .find(|p| p["name"] == text || p["port"].as_u64().is_some_and(|number| number.to_string() == text))
            .map(|p| p["name"].as_str().unwrap_or_default())
            .ok_or_else(|| status::service_unavailable(format!("no service port {text:?} found for service {name:?}")))?,
    };
    let mut found = Vec::new();
    for slice in slices {
        let Some(number) = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == wanted)
            .and_then(|p| p["port"].as_u64())
        else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"].as_bool().unwrap_or(true) {
                found.extend(endpoint["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).map(|ip| (ip, number)));
            }
        }
    }
    if found.is_empty() {
        return Err(status::service_unavailable(format!("no endpoints available for service {name:?}")));
    }
    let (ip, number) = found[seed % found.len()];
    Ok((transport(scheme), proxyable(ip, name)?, port_number(number)?))
}

fn transport(scheme: &str) -> Scheme {
    if scheme == "https" { Scheme::HttpsUnverified } else { Scheme::Http }
}

fn port_number(number: u64) -> Result<u16, ApiError> {
    u16::try_from(number).ok().filter(|p| *p != 0).ok_or_else(|| status::bad_request(format!("invalid port {number}")))
}

/// A status is written by nodes: it must not lead the server to itself or to link-local addresses.
fn proxyable(ip: &str, name: &str) -> Result<String, ApiError> {
    let parsed: IpAddr = ip.parse().map_err(|_| status::bad_request(format!("address not allowed: {name} has no address yet")))?;
    let forbidden = parsed.is_loopback()
        || parsed.is_unspecified()
        || parsed.is_multicast()
        || match parsed {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
    if forbidden { Err(status::bad_request("address not allowed")) } else { Ok(parsed.to_string()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn two() -> Value {
        json!({"metadata": {"namespace": "ns", "name": "p"}, "status": {"podIP": "10.0.0.7"}, "spec": {
            "containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}, {"name": "b"}], "initContainers": [{"name": "i"}]}})
    }

    #[test]
    fn a_container_must_be_named_when_there_are_several() {
        let error = container(&two(), "").unwrap_err();
        assert_eq!(error.message, "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]");
        assert_eq!(container(&two(), "i").unwrap(), "i");
        assert_eq!(container(&two(), "x").unwrap_err().message, "container x is not valid for pod p");
        let mut annotated = two();
        annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(container(&annotated, "").unwrap(), "b");
    }

    #[test]
    fn kubelet_paths() {
        let query = Query::parse("container=a&stdin=true&stdout=1&tty=false&command=sh&command=-c&command=echo%20%22x%26y%22");
        assert_eq!(
            stream_path("exec", &two(), "a", &query).unwrap(),
            "/exec/ns/p/a?input=1&output=1&command=sh&command=%2Dc&command=echo%20%22x%26y%22"
        );
        assert!(stream_path("attach", &two(), "a", &Query::parse("tty=true")).is_err());
        assert_eq!(port_forward_path(&two(), &Query::parse("ports=80")), "/portForward/ns/p?port=80");
        let query = Query::parse("follow=true&tailLines=5&previous=false");
        assert_eq!(log_path(&two(), "a", &query).unwrap(), "/containerLogs/ns/p/a?follow=true&tailLines=5");
        assert_eq!(log_path(&two(), "a", &Query::parse("tailLines=-1")).unwrap_err().code, 422);
        assert_eq!(log_path(&two(), "a", &Query::parse("limitBytes=x")).unwrap_err().code, 400);
    }

    #[test]
    fn names_with_scheme_and_port() {
        assert_eq!(split_name("p"), Some(("", "p", "")));
        assert_eq!(split_name("p:80"), Some(("", "p", "80")));
        assert_eq!(split_name("https:p:web"), Some(("https", "p", "web")));
        assert_eq!(split_name("https:p:"), Some(("https", "p", "")));
        assert_eq!(split_name("ftp:p:1"), None);
        assert_eq!(split_name(":80"), None);
    }

    #[test]
    fn pods_and_services() {
        assert_eq!(pod(&two(), "", "").unwrap(), (Scheme::Http, "10.0.0.7".into(), 8080));
        assert_eq!(pod(&two(), "https", "web").unwrap(), (Scheme::HttpsUnverified, "10.0.0.7".into(), 8080));
        let mut own = two();
        own["status"]["podIP"] = json!("127.0.0.1");
        assert_eq!(pod(&own, "", "").unwrap_err().message, "address not allowed");
        let svc = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}});
        let slice = json!({"ports": [{"name": "web", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.8"], "conditions": {"ready": false}}, {"addresses": ["10.0.0.9"], "conditions": {"ready": true}}]});
        for port in ["", "80", "web"] {
            assert_eq!(service(&svc, std::slice::from_ref(&slice), "", port, 3).unwrap(), (Scheme::Http, "10.0.0.9".into(), 8080));
        }
        assert_eq!(service(&svc, &[], "", "", 0).unwrap_err().code, 503);
        assert_eq!(service(&svc, &[slice], "", "81", 0).unwrap_err().message, "no service port \"81\" found for service \"s\"");
    }

    #[test]
    fn a_kubelet_is_found_by_its_internal_address() {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}}}});
        assert_eq!(kubelet(&node).unwrap(), ("192.0.2.1".into(), 10251));
        assert_eq!(kubelet(&json!({"metadata": {"name": "n"}})).unwrap_err().code, 500);
    }
}
