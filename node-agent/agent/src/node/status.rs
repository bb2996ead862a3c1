//! The Node's status from facts, and the patch that writes it. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSwapStatus, NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use serde_json::{Value, json};

use super::machine::Machine;
use crate::{KUBELET_VERSION, health::Runtime};

/// kubelet's nodeStatusMaxImages.
const MAX_IMAGES: usize = 50;
/// kubelet's default hard eviction threshold `memory.available<100Mi`, which allocatable leaves out.
const RESERVED_MEMORY: u64 = 100 << 20;

/// Everything the status is made of.
pub(crate) struct Inputs<'a> {
    pub node_name: &'a str,
    pub node_ips: &'a [IpAddr],
    pub kubelet_port: u16,
    pub max_pods: usize,
    pub machine: &'a Machine,
    pub runtime: &'a Runtime,
    /// Empty: ready.
    pub problems: &'a [String],
    pub now: Timestamp,
}

/// Labels that kubelet registers a Node with, and `extra`.
pub(crate) fn labels(node_name: &str, extra: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = extra.clone();
    let well_known = [
        ("kubernetes.io/hostname", node_name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    labels.extend(well_known.map(|(name, value)| (name.to_owned(), value.to_owned())));
    labels
}

/// The status after `previous`: times of transitions that did not happen are kept, and so is what others wrote.
pub(crate) fn status(inputs: &Inputs<'_>, previous: &NodeStatus) -> NodeStatus {
    let (capacity, allocatable) = resources(inputs.machine, inputs.max_pods);
    NodeStatus {
        addresses: Some(addresses(inputs)),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(inputs, previous.conditions.as_deref().unwrap_or_default())),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: inputs.kubelet_port.into() }) }),
        images: Some(images(&inputs.runtime.images)),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: inputs.machine.boot_id.clone(),
            container_runtime_version: inputs.runtime.version.clone(),
            kernel_version: inputs.machine.kernel_version.clone(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: inputs.machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: inputs.machine.os_image.clone(),
            swap: Some(NodeSwapStatus { capacity: Some(inputs.machine.swap as i64) }),
            system_uuid: inputs.machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        ..previous.clone()
    }
}

fn addresses(inputs: &Inputs<'_>) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let mut addresses: Vec<_> = inputs.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", inputs.node_name.to_owned()));
    addresses
}

type Resources = BTreeMap<String, Quantity>;

/// Capacity and allocatable, in the units kubelet writes.
fn resources(machine: &Machine, max_pods: usize) -> (Resources, Resources) {
    let huge_bytes: u64 = machine.huge_pages.iter().map(|(size, pages)| size * pages).sum();
    let kib = |bytes: u64| format!("{}Ki", bytes / 1024);
    let common = || {
        let mut common = Resources::new();
        common.insert("cpu".to_owned(), Quantity(machine.cpus.to_string()));
        common.insert("pods".to_owned(), Quantity(max_pods.to_string()));
        for (size, pages) in &machine.huge_pages {
            let (name, unit) = match size {
                size if size % (1 << 30) == 0 => (size >> 30, "Gi"),
                size => (size >> 20, "Mi"),
            };
            let bytes = size * pages;
            let quantity = if bytes == 0 { "0".to_owned() } else { format!("{}Mi", bytes >> 20) };
            common.insert(format!("hugepages-{name}{unit}"), Quantity(quantity));
        }
        common
    };
    let (mut capacity, mut allocatable) = (common(), common());
    capacity.insert("memory".to_owned(), Quantity(kib(machine.memory)));
    let memory = machine.memory.saturating_sub(RESERVED_MEMORY + huge_bytes);
    allocatable.insert("memory".to_owned(), Quantity(kib(memory)));
    capacity.insert("ephemeral-storage".to_owned(), Quantity(kib(machine.storage)));
    // The default hard eviction threshold `nodefs.available<10%`; kubelet writes bytes here.
    allocatable.insert("ephemeral-storage".to_owned(), Quantity((machine.storage / 10 * 9).to_string()));
    (capacity, allocatable)
}

fn conditions(inputs: &Inputs<'_>, previous: &[NodeCondition]) -> Vec<NodeCondition> {
    let ready = inputs.problems.is_empty();
    let message = match inputs.problems {
        [] => "kubelet is posting ready status".to_owned(),
        [only] => only.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let sufficient = |text: &str| text.to_owned();
    let wanted = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", sufficient("kubelet has sufficient memory available")),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", sufficient("kubelet has no disk pressure")),
        ("PIDPressure", "False", "KubeletHasSufficientPID", sufficient("kubelet has sufficient PID available")),
        ("Ready", if ready { "True" } else { "False" }, if ready { "KubeletReady" } else { "KubeletNotReady" }, message),
    ];
    // Conditions of others (node problem detectors, NetworkUnavailable) are theirs to change.
    let mut conditions: Vec<NodeCondition> =
        previous.iter().filter(|old| !wanted.iter().any(|(type_, ..)| old.type_ == *type_)).cloned().collect();
    conditions.extend(wanted.into_iter().map(|(type_, status, reason, message)| {
        let since = previous.iter().find(|old| old.type_ == type_ && old.status == status).and_then(|old| old.last_transition_time.clone());
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(seconds(inputs.now))),
            last_transition_time: Some(since.unwrap_or_else(|| Time(seconds(inputs.now)))),
        }
    }));
    conditions
}

/// metav1.Time has whole seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The largest images first.
fn images(images: &[xebec_pods::Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<_> = images.iter().collect();
    sorted.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    sorted
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage { names: Some(image.names.clone()), size_bytes: Some(image.size_bytes as i64) })
        .collect()
}

/// Whether there is more to tell than that the node still lives.
pub(crate) fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    still(old) != still(new)
}

/// The strategic merge patch from `old` to `new`: what changed, and every condition's heartbeat.
pub(crate) fn patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let value = |status: &NodeStatus| serde_json::to_value(status).unwrap_or_default();
    let (old, new) = (value(old), value(new));
    let mut changed = serde_json::Map::new();
    for (field, value) in new.as_object().into_iter().flatten() {
        if old.get(field) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        // The merge key of addresses is their type, which several may share.
        if let ("addresses", Value::Array(list)) = (field.as_str(), &mut value) {
            list.push(json!({"$patch": "replace"}));
        }
        changed.insert(field.clone(), value);
    }
    json!({"status": changed})
}

/// As the Go runtime spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn make(problems: &[&str], second: i64, previous: &NodeStatus) -> NodeStatus {
        let machine =
            Machine { cpus: 2, memory: 1 << 30, storage: 10 << 30, huge_pages: vec![(2 << 20, 0), (1 << 30, 0)], ..Machine::default() };
        let problems: Vec<String> = problems.iter().map(|text| (*text).to_owned()).collect();
        let inputs = Inputs {
            node_name: "a",
            node_ips: &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            kubelet_port: 10250,
            max_pods: 110,
            machine: &machine,
            runtime: &Runtime::default(),
            problems: &problems,
            now: at(second),
        };
        status(&inputs, previous)
    }

    fn condition<'a>(status: &'a NodeStatus, type_: &str) -> &'a NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == type_).unwrap()
    }

    #[test]
    fn readiness_tells_kubelets_reasons() {
        let none = NodeStatus::default();
        let ready = make(&[], 1, &none);
        let ready = condition(&ready, "Ready");
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("True", Some("KubeletReady")));
        let not = make(&["one", "two"], 1, &none);
        let not = condition(&not, "Ready");
        assert_eq!(
            (not.status.as_str(), not.reason.as_deref(), not.message.as_deref()),
            ("False", Some("KubeletNotReady"), Some("[one, two]"))
        );
    }

    #[test]
    fn a_transition_time_changes_with_the_status_only() {
        let first = make(&["down"], 1, &NodeStatus::default());
        let second = make(&["still down"], 2, &first);
        assert_eq!(condition(&second, "Ready").last_transition_time, Some(Time(at(1))));
        assert_eq!(condition(&second, "Ready").last_heartbeat_time, Some(Time(at(2))));
        let third = make(&[], 3, &second);
        assert_eq!(condition(&third, "Ready").last_transition_time, Some(Time(at(3))));
        assert_eq!(condition(&third, "PIDPressure").last_transition_time, Some(Time(at(1))));
    }

    #[test]
    fn only_a_heartbeat_is_no_difference() {
        let first = make(&[], 1, &NodeStatus::default());
        assert!(!differs(&first, &make(&[], 100, &first)));
        assert!(differs(&first, &make(&["down"], 100, &first)));
    }

    #[test]
    fn conditions_of_others_stay() {
        let others = vec![NodeCondition { type_: "KernelDeadlock".to_owned(), ..NodeCondition::default() }];
        let previous = NodeStatus { conditions: Some(others), ..NodeStatus::default() };
        let new = make(&[], 1, &previous);
        assert_eq!(condition(&new, "KernelDeadlock"), &previous.conditions.unwrap()[0]);
        assert_eq!(new.conditions.unwrap().len(), 5);
    }

    #[test]
    fn allocatable_leaves_out_the_eviction_thresholds() {
        let status = make(&[], 1, &NodeStatus::default());
        let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
        let of = |resources: &Resources, name: &str| resources[name].0.clone();
        assert_eq!((of(&capacity, "memory"), of(&allocatable, "memory")), ("1048576Ki".into(), "946176Ki".into()));
        assert_eq!((of(&capacity, "ephemeral-storage"), of(&allocatable, "ephemeral-storage")), ("10485760Ki".into(), "9663676416".into()));
        assert_eq!((of(&capacity, "hugepages-2Mi"), of(&capacity, "hugepages-1Gi")), ("0".into(), "0".into()));
        assert_eq!((of(&capacity, "cpu"), of(&capacity, "pods")), ("2".into(), "110".into()));
    }

    #[test]
    fn the_patch_holds_what_changed() {
        let first = make(&[], 1, &NodeStatus::default());
        let second = make(&[], 2, &first);
        let fields = |patch: Value| patch["status"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(patch(&first, &second)), ["conditions"]);
        let whole = patch(&NodeStatus::default(), &first);
        assert_eq!(whole["status"]["addresses"][3], json!({"$patch": "replace"}));
    }
}
