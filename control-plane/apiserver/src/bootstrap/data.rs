//! The other objects a cluster starts with.

use serde_json::{Value, json};

use super::Params;

pub(super) const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// All of them as (storage prefix, document without uid and time).
pub(super) fn documents(params: &Params) -> Vec<(&'static str, Value)> {
    let mut out: Vec<(&'static str, Value)> = Vec::new();
    for name in NAMESPACES {
        out.push((
            "namespaces",
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }),
        ));
    }
    for (name, value, description) in [
        ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        out.push((
            "priorityclasses",
            json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name, "generation": 1},
                "value": value, "globalDefault": false, "description": description, "preemptionPolicy": "PreemptLowerPriority",
            }),
        ));
    }
    out.push((
        "servicecidrs",
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": params.service_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>()},
        }),
    ));
    let mut authentication = json!({"client-ca-file": params.client_ca_pem});
    if !params.front_proxy_ca_pem.is_empty() {
        authentication["requestheader-client-ca-file"] = params.front_proxy_ca_pem.clone().into();
        for (key, value) in [
            ("allowed-names", "[\"front-proxy-client\"]"),
            ("extra-headers-prefix", "[\"X-Remote-Extra-\"]"),
            ("group-headers", "[\"X-Remote-Group\"]"),
            ("username-headers", "[\"X-Remote-User\"]"),
        ] {
            authentication[format!("requestheader-{key}")] = value.into();
        }
    }
    out.push((
        "configmaps",
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": authentication,
        }),
    ));
    out.extend(flow_control());
    out
}

/// The flow-control objects that must exist; requests are not queued by them.
fn flow_control() -> Vec<(&'static str, Value)> {
    const API: &str = "flowcontrol.apiserver.k8s.io/v1";
    let meta = |name: &str| json!({"name": name, "generation": 1, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}});
    let everything = |groups: &[&str]| {
        let subjects: Vec<Value> = groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect();
        json!([{
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    vec![
        (
            "prioritylevelconfigurations",
            json!({"apiVersion": API, "kind": "PriorityLevelConfiguration", "metadata": meta("exempt"),
            "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}}),
        ),
        (
            "prioritylevelconfigurations",
            json!({"apiVersion": API, "kind": "PriorityLevelConfiguration", "metadata": meta("catch-all"),
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}}),
        ),
        (
            "flowschemas",
            json!({"apiVersion": API, "kind": "FlowSchema", "metadata": meta("exempt"),
            "spec": {"priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1, "rules": everything(&["system:masters"])}}),
        ),
        (
            "flowschemas",
            json!({"apiVersion": API, "kind": "FlowSchema", "metadata": meta("catch-all"),
            "spec": {"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 10000,
                "distinguisherMethod": {"type": "ByUser"}, "rules": everything(&["system:unauthenticated", "system:authenticated"])}}),
        ),
    ]
}

/// The `kubernetes` Service with its Endpoints and EndpointSlices, as (storage prefix, document).
pub(super) fn kubernetes_service(params: &Params, servers: &[std::net::IpAddr]) -> Vec<(&'static str, Value)> {
    let families: Vec<&str> = params.service_ips.iter().take(1).map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let ips: Vec<String> = params.service_ips.iter().take(1).map(ToString::to_string).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": ips.first(), "clusterIPs": ips, "internalTrafficPolicy": "Cluster", "ipFamilies": families,
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": params.port}],
        },
        "status": {"loadBalancer": {}},
    });
    let port = json!([{"name": "https", "port": params.port, "protocol": "TCP"}]);
    let mut out = vec![("services/specs", service)];
    if servers.is_empty() {
        return out;
    }
    let addresses: Vec<Value> = servers.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    out.push((
        "services/endpoints",
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": addresses, "ports": port}],
        }),
    ));
    let of_family = |ipv4: bool| servers.iter().filter(|ip| ip.is_ipv4() == ipv4).map(ToString::to_string).collect::<Vec<_>>();
    let primary = servers[0].is_ipv4();
    for ipv4 in [primary, !primary] {
        let addresses = of_family(ipv4);
        if addresses.is_empty() {
            continue;
        }
        let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
        let name = if ipv4 == primary { "kubernetes" } else { "kubernetes-secondary" };
        out.push((
            "endpointslices",
            json!({
                "addressType": if ipv4 { "IPv4" } else { "IPv6" }, "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "default", "generation": 1, "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "endpoints": endpoints, "ports": port,
            }),
        ));
    }
    out
}
