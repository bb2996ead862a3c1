//! A pod with everything the plugins want to know about it, computed once.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};
use xebec_loops::Selector;
use xebec_loops::meta::uid;
use xebec_loops::selector::{Operator, Requirement};

use crate::cluster::Cluster;
use crate::resources::{Resources, pod_requests, pod_requests_for_scoring};

/// A pod, digested.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The pod as the API has it.
    pub pod: Arc<Pod>,
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.priority`.
    pub priority: i32,
    /// What it needs.
    pub requests: Resources,
    /// CPU (thousandths) and memory (bytes) for scoring.
    pub scoring: (i64, i64),
    /// Ports it takes on the node.
    pub ports: BTreeSet<HostPort>,
    /// Required and preferred inter-pod terms.
    pub terms: Terms,
    /// Topology spread constraints.
    pub spread: Vec<Spread>,
}

/// A port on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The port.
    pub port: i32,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The address it is bound on; "0.0.0.0" is every address.
    pub ip: String,
}

impl HostPort {
    /// Whether both cannot be bound on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// Inter-pod affinity terms of one pod.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Required affinity.
    pub affinity: Vec<Term>,
    /// Required anti-affinity.
    pub anti: Vec<Term>,
    /// Preferred affinity with positive weights, preferred anti-affinity with negative ones.
    pub preferred: Vec<(i64, Term)>,
}

impl Terms {
    /// Whether there is any term.
    pub fn any(&self) -> bool {
        !(self.affinity.is_empty() && self.anti.is_empty() && self.preferred.is_empty())
    }
}

/// Which pods a term speaks of, and what "near" means.
#[derive(Clone, Debug)]
pub struct Term {
    /// Pods by label.
    pub selector: Selector,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label, besides those by name.
    pub namespace_selector: Selector,
    /// The node label whose equal values make a place.
    pub topology_key: String,
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod, own_namespace: &str) -> Self {
        let mut selector = Selector::from_label_selector(term.label_selector.as_ref());
        require_label_keys(&mut selector, pod, term.match_label_keys.as_deref(), true);
        require_label_keys(&mut selector, pod, term.mismatch_label_keys.as_deref(), false);
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        Term {
            selector,
            namespaces,
            namespace_selector: Selector::from_label_selector(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term speaks of this pod.
    pub fn matches(&self, pod: &PodInfo, cluster: &Cluster) -> bool {
        let in_namespace = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.is_everything()
            || self.namespace_selector.matches(cluster.namespaces.get(&pod.namespace));
        in_namespace && self.selector.matches(pod.pod.metadata.labels.as_ref())
    }
}

/// The API server folds `matchLabelKeys` into the selector of new pods; a repeated requirement does no harm.
fn require_label_keys(selector: &mut Selector, pod: &Pod, keys: Option<&[String]>, equal: bool) {
    let Selector::All(all) = selector else { return };
    for key in keys.unwrap_or_default() {
        let Some(value) = pod.metadata.labels.as_ref().and_then(|l| l.get(key)) else { continue };
        let values = vec![value.clone()];
        let operator = if equal { Operator::In(values) } else { Operator::NotIn(values) };
        all.push(Requirement { key: key.clone(), operator });
    }
}

/// One topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Largest difference allowed.
    pub max_skew: i64,
    /// The node label that makes domains.
    pub topology_key: String,
    /// `DoNotSchedule` rather than `ScheduleAnyway`.
    pub hard: bool,
    /// Pods that are counted, in the pod's namespace.
    pub selector: Selector,
    /// With fewer domains than this the least filled one counts as empty.
    pub min_domains: i64,
    /// Whether nodes that the pod's node affinity excludes are left out.
    pub honor_affinity: bool,
    /// Whether nodes with taints the pod does not tolerate are left out.
    pub honor_taints: bool,
}

impl Spread {
    fn new(c: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let mut selector = Selector::from_label_selector(c.label_selector.as_ref());
        require_label_keys(&mut selector, pod, c.match_label_keys.as_deref(), true);
        Spread {
            max_skew: i64::from(c.max_skew),
            topology_key: c.topology_key.clone(),
            hard: c.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl PodInfo {
    /// Digests a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let mut terms = Terms::default();
        if let Some(affinity) = &spec.affinity {
            let term = |t: &PodAffinityTerm| Term::new(t, &pod, &namespace);
            if let Some(a) = &affinity.pod_affinity {
                terms.affinity.extend(a.required_during_scheduling_ignored_during_execution.iter().flatten().map(term));
                for w in a.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                    terms.preferred.push((i64::from(w.weight), term(&w.pod_affinity_term)));
                }
            }
            if let Some(a) = &affinity.pod_anti_affinity {
                terms.anti.extend(a.required_during_scheduling_ignored_during_execution.iter().flatten().map(term));
                for w in a.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                    terms.preferred.push((-i64::from(w.weight), term(&w.pod_affinity_term)));
                }
            }
        }
        PodInfo {
            uid: uid(&pod.metadata).to_owned(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: pod_requests(&pod),
            scoring: pod_requests_for_scoring(&pod),
            ports: host_ports(&pod),
            spread: spec.topology_spread_constraints.iter().flatten().map(|c| Spread::new(c, &pod)).collect(),
            terms,
            namespace,
            pod,
        }
    }
}

fn host_ports(pod: &Pod) -> BTreeSet<HostPort> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    // Ordinary init containers end before others start; a sidecar keeps its ports.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some(HostPort { port, protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip })
        })
        .collect()
}
