//! Whether this node takes a pod that was bound to it: the scheduler may have been wrong, or not asked.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::memory::Ended;
use crate::quantity::{self, Amount};
use crate::resources;
use crate::spec;

/// sysctls that are namespaced and harmless (kubelet's safe set).
const SAFE_SYSCTLS: [&str; 13] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.vs.conn_reuse_mode",
];

/// `Some` is why the pod is refused. `others` are the pods that run here already.
pub fn refuse(pod: &Pod, node: Option<&Node>, others: &[&Pod], max_pods: usize, unsafe_sysctls: &[String]) -> Option<Ended> {
    let rejected = |reason: &str, message: String| {
        Some(Ended { reason: reason.into(), message: format!("Pod was rejected: {message}"), rejected: true })
    };
    if let Some(name) = forbidden_sysctl(pod, unsafe_sysctls) {
        return rejected("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowlisted"));
    }
    if others.len() >= max_pods {
        let message = format!("Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {max_pods}", others.len());
        return rejected("OutOfpods", message);
    }
    let node = node?;
    if let Some(os) = spec::spec(pod).os.as_ref().filter(|os| os.name != "linux") {
        return rejected(
            "PodOSNotSupported",
            format!("pod.Spec.OS.Name {:?} doesn't match the node's operating system \"linux\"", os.name),
        );
    }
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    for (resource, wanted) in resources::pod_requests(pod) {
        let Some(capacity) = quantity::get(allocatable, &resource) else { continue };
        let used = Amount(others.iter().map(|p| resources::pod_requests(p).get(&resource).map_or(0, |a| a.0)).sum());
        if wanted.0 > 0 && used.0 + wanted.0 > capacity.0 {
            let shown = |a: Amount| if resource == "cpu" { a.milli() } else { a.value() };
            let message = format!(
                "Node didn't have enough resource: {resource}, requested: {}, used: {}, capacity: {}",
                shown(wanted),
                shown(used),
                shown(capacity)
            );
            return rejected(&format!("OutOf{resource}"), message);
        }
    }
    if !matches_node(pod, node) {
        return rejected("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into());
    }
    if host_ports(pod).iter().any(|port| others.iter().any(|o| host_ports(o).iter().any(|p| collide(p, port)))) {
        return rejected("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into());
    }
    None
}

fn forbidden_sysctl<'a>(pod: &'a Pod, allowed: &[String]) -> Option<&'a str> {
    let asked = spec::spec(pod).security_context.as_ref()?.sysctls.as_ref()?;
    let known = |name: &str| {
        let name = name.replace('/', ".");
        let listed = allowed.iter().any(|p| match p.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *p,
        });
        // A host-network or host-IPC pod would set the node's own.
        let shared = (name.starts_with("net.") && spec::host_network(pod))
            || (name.starts_with("kernel.") && spec::spec(pod).host_ipc.unwrap_or(false));
        (SAFE_SYSCTLS.contains(&name.as_str()) || listed) && !shared
    };
    asked.iter().map(|s| s.name.as_str()).find(|name| !known(name))
}

/// A host port: address, protocol, number.
type HostPort = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let any = |ip: Option<&str>| ip.filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0").to_owned();
    spec::containers(pod)
        .iter()
        .flat_map(|(_, c)| c.ports.iter().flatten())
        .filter_map(|p| {
            Some((any(p.host_ip.as_deref()), p.protocol.clone().unwrap_or_else(|| "TCP".into()), p.host_port.filter(|n| *n > 0)?))
        })
        .collect()
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.2 == b.2 && a.1 == b.1 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}

fn matches_node(pod: &Pod, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let spec = spec::spec(pod);
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(required) = required else { return true };
    let name = node.metadata.name.as_deref().unwrap_or("");
    required.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements selects nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement(r, Some(name)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |greater: bool| match (value.and_then(number), values.first().and_then(|v| number(v))) {
        (Some(have), Some(bound)) => {
            if greater {
                have > bound
            } else {
                have < bound
            }
        }
        (Some(_) | None, _) => false,
    };
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }
    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}}))
        .unwrap()
    }
    fn reason(spec: Value, others: &[&Pod]) -> Option<String> {
        refuse(&pod(spec), Some(&node()), others, 3, &["kernel.msg*".into()]).map(|e| e.reason)
    }
    fn cpu(amount: &str) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
    }

    #[test]
    fn resources_are_counted() {
        let other = pod(cpu("1500m"));
        assert_eq!(reason(cpu("500m"), &[&other]), None);
        assert_eq!(reason(cpu("600m"), &[&other]).as_deref(), Some("OutOfcpu"));
        let message = refuse(&pod(cpu("600m")), Some(&node()), &[&other], 3, &[]).unwrap().message;
        assert_eq!(message, "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000");
        let small = pod(json!({"containers": []}));
        assert_eq!(reason(cpu("1m"), &[&small, &small, &small]).as_deref(), Some("OutOfpods"));
    }

    #[test]
    fn affinity_and_selector() {
        let affinity = |terms: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let expression = |op: &str, values: Value| json!([{"matchExpressions": [{"key": "size", "operator": op, "values": values}]}]);
        assert_eq!(reason(json!({"containers": [], "nodeSelector": {"zone": "a"}}), &[]), None);
        assert_eq!(reason(json!({"containers": [], "nodeSelector": {"zone": "b"}}), &[]).as_deref(), Some("NodeAffinity"));
        for (terms, fits) in [
            (expression("In", json!(["5"])), true),
            (expression("NotIn", json!(["5"])), false),
            (expression("Gt", json!(["4"])), true),
            (expression("Lt", json!(["5"])), false),
            (expression("Exists", json!([])), true),
            (json!([{}]), false),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]), true),
        ] {
            assert_eq!(reason(affinity(terms.clone()), &[]).is_none(), fits, "{terms}");
        }
    }

    #[test]
    fn sysctls_and_ports() {
        let sysctl = |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        assert_eq!(reason(sysctl("net.ipv4.tcp_syncookies"), &[]), None);
        assert_eq!(reason(sysctl("kernel.msgmax"), &[]), None);
        assert_eq!(reason(sysctl("kernel.shmmax"), &[]).as_deref(), Some("SysctlForbidden"));
        let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]});
        let other = pod(port("10.0.0.1"));
        assert_eq!(reason(port(""), &[&other]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(port("10.0.0.2"), &[&other]), None);
    }
}
