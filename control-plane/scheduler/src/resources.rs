//! What pods ask for and nodes offer, as numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use xebec_loops::quantity::amount;

/// CPU counted for scoring when a container asks for none, thousandths.
const DEFAULT_CPU: i64 = 100;
/// Memory counted for scoring when a container asks for none, bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of every kind of resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local disk.
    pub ephemeral_storage: i64,
    /// Pods; only nodes offer these.
    pub pods: i64,
    /// Huge pages and extended resources.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list.
    pub fn from_list(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut r = Resources::default();
        for (name, quantity) in list.into_iter().flatten() {
            let q = amount(quantity);
            match name.as_str() {
                "cpu" => r.cpu = q.milli(),
                "memory" => r.memory = q.value(),
                "ephemeral-storage" => r.ephemeral_storage = q.value(),
                "pods" => r.pods = q.value(),
                other => {
                    r.other.insert(other.to_owned(), q.value());
                }
            }
        }
        r
    }

    /// Adds in place.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Subtracts in place.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    /// Keeps the larger of each.
    pub fn max(&mut self, other: &Resources) {
        self.combine(other, Ord::max);
    }

    fn combine(&mut self, other: &Resources, f: fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, other.cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = f(self.pods, other.pods);
        for (name, value) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = f(*mine, *value);
        }
    }

    /// Whether a pod that asks for this asks for nothing.
    pub fn is_zero(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.other.values().all(|v| *v == 0)
    }
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::from_list(resources.and_then(|r| r.requests.as_ref()))
}

/// What a pod needs at its worst moment: all containers with all sidecars, or one init container with the sidecars
/// started before it; pod-level requests (KEP-2837) win; plus the runtime's overhead.
pub fn pod_requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    worst_moment(spec, |c| requests(c.resources.as_ref()))
}

/// CPU and memory counted for scoring: as [`pod_requests`], with a small default for containers that ask for none.
pub fn pod_requests_for_scoring(pod: &Pod) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    let r = worst_moment(spec, |c| {
        let mut r = requests(c.resources.as_ref());
        let asked = c.resources.as_ref().and_then(|x| x.requests.as_ref());
        if asked.is_none_or(|a| !a.contains_key("cpu")) {
            r.cpu = DEFAULT_CPU;
        }
        if asked.is_none_or(|a| !a.contains_key("memory")) {
            r.memory = DEFAULT_MEMORY;
        }
        r
    });
    (r.cpu, r.memory)
}

fn worst_moment(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    for c in &spec.containers {
        total.add(&of(c));
    }
    let (mut sidecars, mut init) = (Resources::default(), Resources::default());
    for c in spec.init_containers.iter().flatten() {
        let mut now = of(c);
        if c.restart_policy.as_deref() == Some("Always") {
            total.add(&now);
            sidecars.add(&now);
            now = sidecars.clone();
        } else {
            now.add(&sidecars);
        }
        init.max(&now);
    }
    total.max(&init);
    if let Some(pod_level) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let level = Resources::from_list(Some(pod_level));
        for name in pod_level.keys() {
            match name.as_str() {
                "cpu" => total.cpu = level.cpu,
                "memory" => total.memory = level.memory,
                "ephemeral-storage" => total.ephemeral_storage = level.ephemeral_storage,
                other => {
                    total.other.insert(other.to_owned(), level.other.get(other).copied().unwrap_or(0));
                }
            }
        }
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_from;
    use serde_json::json;

    #[test]
    fn init_containers_and_sidecars_count_at_their_worst_moment() {
        let c = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (init, main, overhead, want) in [
            (json!([]), json!([c("a", "1"), c("b", "500m")]), json!({}), 1500),
            (json!([c("i", "2")]), json!([c("a", "1")]), json!({}), 2000),
            (json!([c("i", "1"), c("j", "1500m")]), json!([c("a", "1")]), json!({}), 1500),
            (json!([sidecar("1")]), json!([c("a", "1")]), json!({}), 2000),
            (json!([sidecar("1"), c("i", "3")]), json!([c("a", "1")]), json!({}), 4000),
            (json!([c("i", "3"), sidecar("1")]), json!([c("a", "1")]), json!({}), 3000),
            (json!([]), json!([c("a", "1")]), json!({"cpu": "250m"}), 1250),
        ] {
            let pod = pod_from(json!({"spec": {"initContainers": init, "containers": main, "overhead": overhead}}));
            assert_eq!(pod_requests(&pod).cpu, want, "{init} {main} {overhead}");
        }
    }

    #[test]
    fn pod_level_requests_replace_the_sum() {
        let pod = pod_from(json!({"spec": {
            "resources": {"requests": {"cpu": "3"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]}}));
        let r = pod_requests(&pod);
        assert_eq!((r.cpu, r.memory), (3000, 1 << 20));
    }

    #[test]
    fn scoring_counts_a_default_for_silent_containers() {
        let pod = pod_from(json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}}));
        assert_eq!(pod_requests_for_scoring(&pod), (1100, 2 * DEFAULT_MEMORY));
        assert!(pod_requests(&pod).memory == 0);
    }
}
