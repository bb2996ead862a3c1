//! Requests and limits: QoS class, cgroup values, what a pod takes from its node.

use std::collections::BTreeMap;

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{self, Amount};
use crate::spec;

/// CFS period in microseconds.
pub const CPU_PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1000;
/// Pods from this priority on are critical to the node (`system-*-critical`).
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
    /// The pod's cgroup below `kubepods`.
    pub fn cgroup(self, uid: &str) -> String {
        match self {
            Qos::Guaranteed => format!("pod{uid}"),
            Qos::Burstable => format!("burstable/pod{uid}"),
            Qos::BestEffort => format!("besteffort/pod{uid}"),
        }
    }
}

pub fn qos(pod: &Pod) -> Qos {
    let spec = spec::spec(pod);
    let lists: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        // Pod-level resources decide alone (KEP-2837).
        Some(r) if r.requests.is_some() || r.limits.is_some() => vec![Some(r)],
        _ => spec.containers.iter().chain(spec::init_containers(pod)).map(|c| c.resources.as_ref()).collect(),
    };
    let mut any = false;
    let mut guaranteed = !lists.is_empty();
    for resources in lists {
        for resource in ["cpu", "memory"] {
            let request = resources.and_then(|r| quantity::get(r.requests.as_ref(), resource)).filter(|a| a.0 > 0);
            let limit = resources.and_then(|r| quantity::get(r.limits.as_ref(), resource)).filter(|a| a.0 > 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

pub fn cpu_shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}
/// Microseconds a period; zero means no limit.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * CPU_PERIOD / 1000).max(MIN_QUOTA) }
}

fn request(container: &Container, resource: &str) -> Option<Amount> {
    let r = container.resources.as_ref()?;
    quantity::get(r.requests.as_ref(), resource).or_else(|| quantity::get(r.limits.as_ref(), resource))
}
fn limit(container: &Container, resource: &str) -> Option<Amount> {
    container.resources.as_ref().and_then(|r| quantity::get(r.limits.as_ref(), resource)).filter(|a| a.0 > 0)
}

/// What CRI gets for one container. `memory_capacity` in bytes scales the OOM score.
pub fn container_resources(pod: &Pod, container: &Container, memory_capacity: i64) -> LinuxContainerResources {
    let cpu_limit = limit(container, "cpu").map_or(0, Amount::milli);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_quota(cpu_limit),
        cpu_shares: cpu_shares(request(container, "cpu").map_or(0, Amount::milli)),
        memory_limit_in_bytes: limit(container, "memory").map_or(0, Amount::value),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..Default::default()
    }
}

fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if spec::spec(pod).priority.unwrap_or(0) >= SYSTEM_CRITICAL_PRIORITY {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = request(container, "memory").map_or(0, Amount::value);
            let score = 1000 - (1000i128 * i128::from(request) / i128::from(memory_capacity.max(1))) as i64;
            // Between the guaranteed and the best-effort ones.
            score.clamp(3, 999)
        }
    }
}

/// A pod's own cgroup. Zero means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    pub cpu_shares: i64,
    pub cpu_quota: i64,
    pub memory_limit: i64,
}

pub fn pod_cgroup(pod: &Pod) -> PodCgroup {
    let limits = |resource: &str| -> Option<Amount> {
        let own = spec::spec(pod).resources.as_ref().and_then(|r| quantity::get(r.limits.as_ref(), resource));
        let every = || {
            let all = spec::spec(pod).containers.iter().chain(spec::init_containers(pod));
            let complete = all.clone().all(|c| limit(c, resource).is_some());
            complete.then(|| total(pod, |c| limit(c, resource).unwrap_or_default()))
        };
        own.or_else(every)
    };
    let cpu = pod_requests(pod).get("cpu").copied().unwrap_or_default();
    PodCgroup {
        cpu_shares: cpu_shares(cpu.milli()),
        cpu_quota: cpu_quota(limits("cpu").map_or(0, Amount::milli)),
        memory_limit: limits("memory").map_or(0, Amount::value),
    }
}

/// Sum over what runs at once; an init container counts with the sidecars before it.
fn total(pod: &Pod, of: impl Fn(&Container) -> Amount) -> Amount {
    let mut sidecars = 0;
    let mut peak = 0;
    for container in spec::init_containers(pod) {
        let amount = of(container).0;
        if spec::is_sidecar(container) {
            sidecars += amount;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + amount);
        }
    }
    let regular: i128 = spec::spec(pod).containers.iter().map(|c| of(c).0).sum();
    Amount(peak.max(sidecars + regular))
}

/// What the pod takes from the node's allocatable.
pub fn pod_requests(pod: &Pod) -> BTreeMap<String, Amount> {
    let spec = spec::spec(pod);
    let mut names: Vec<&String> = Vec::new();
    for container in spec.containers.iter().chain(spec::init_containers(pod)) {
        if let Some(r) = &container.resources {
            names.extend(r.requests.iter().flatten().map(|(k, _)| k));
            names.extend(r.limits.iter().flatten().map(|(k, _)| k));
        }
    }
    names.sort();
    names.dedup();
    let mut out: BTreeMap<String, Amount> =
        names.into_iter().map(|n| (n.clone(), total(pod, |c| request(c, n).unwrap_or_default()))).collect();
    for (name, value) in spec.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
        out.insert(name.clone(), parse(value));
    }
    for (name, value) in spec.overhead.iter().flatten() {
        out.entry(name.clone()).or_default().0 += parse(value).0;
    }
    out
}

fn parse(quantity: &Quantity) -> Amount {
    Amount::parse(&quantity.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }
    fn with(resources: Value) -> Value {
        json!({"name": "c", "resources": resources})
    }

    #[test]
    fn qos_classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        for (containers, class) in [
            (json!([with(json!({}))]), Qos::BestEffort),
            (json!([with(full.clone())]), Qos::Guaranteed),
            (json!([with(full), with(json!({}))]), Qos::Burstable),
            (json!([with(json!({"requests": {"cpu": "1"}}))]), Qos::Burstable),
            (json!([with(json!({"limits": {"cpu": "1"}}))]), Qos::Burstable),
            (json!([with(json!({"requests": {"cpu": "0"}}))]), Qos::BestEffort),
        ] {
            assert_eq!(qos(&pod(json!({"containers": containers}))), class, "{containers}");
        }
    }

    #[test]
    fn cgroup_values() {
        assert_eq!((cpu_shares(0), cpu_shares(1000), cpu_shares(250)), (2, 1024, 256));
        assert_eq!((cpu_quota(0), cpu_quota(5), cpu_quota(1500)), (0, 1000, 150_000));
        let limited = pod(json!({"containers": [
            with(json!({"limits": {"cpu": "500m", "memory": "64Mi"}})), with(json!({"limits": {"cpu": "1", "memory": "64Mi"}}))]}));
        assert_eq!(pod_cgroup(&limited), PodCgroup { cpu_shares: 1536, cpu_quota: 150_000, memory_limit: 128 << 20 });
        let half = pod(json!({"containers": [with(json!({"limits": {"memory": "64Mi"}})), with(json!({}))]}));
        assert_eq!(pod_cgroup(&half).memory_limit, 0);
    }

    #[test]
    fn init_containers_and_sidecars_count_at_their_peak() {
        let cpu = |v: &str| json!({"requests": {"cpu": v}});
        let p = pod(json!({"initContainers": [
            {"name": "i", "resources": cpu("5")}, {"name": "s", "restartPolicy": "Always", "resources": cpu("1")},
            {"name": "j", "resources": cpu("3")}], "containers": [with(cpu("2"))], "overhead": {"cpu": "1"}}));
        assert_eq!(pod_requests(&p)["cpu"].value(), 6);
    }

    #[test]
    fn oom_scores() {
        let burst = pod(json!({"containers": [with(json!({"requests": {"memory": "1Gi"}}))]}));
        let c = &spec::spec(&burst).containers[0];
        assert_eq!(oom_score_adj(&burst, c, 4 << 30), 750);
        assert_eq!(oom_score_adj(&burst, c, 1 << 30), 3);
    }
}
