//! Which nodes get a pod of a DaemonSet, which pods go.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xebec_loops::meta::{deleting, label};
use xebec_loops::placement::{selector_allows, tolerates_all};
use xebec_loops::pod::{is_available, is_ready, is_terminal, node_name, phase};

use crate::deployment::scaled;
use crate::history::HASH_LABEL;

/// What to do.
#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that lack their pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
    /// Ended pods that are replaced.
    pub failed: Vec<Arc<Pod>>,
}

/// The template for pods of the set: tolerations that every daemon has, the hash label.
pub fn pod_template(set: &DaemonSet, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.to_owned());
    let spec = template.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    let mut add = |key: &str, effect: &str| {
        let key = format!("node.kubernetes.io/{key}");
        let t = Toleration { key: Some(key), operator: Some("Exists".into()), effect: Some(effect.into()), ..Default::default() };
        if !tolerations.contains(&t) {
            tolerations.push(t);
        }
    };
    add("not-ready", "NoExecute");
    add("unreachable", "NoExecute");
    for key in ["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
        add(key, "NoSchedule");
    }
    if host_network {
        add("network-unavailable", "NoSchedule");
    }
    template
}

/// Pins a template to one node; the scheduler then does the binding.
pub fn pinned(mut template: PodTemplateSpec, node: &str) -> PodTemplateSpec {
    let by_name = NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.to_owned()]) };
    let spec = template.spec.get_or_insert_default();
    let affinity = spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_with(NodeAffinity::default);
    // Whatever the template requires was looked at when the node was chosen; only the name remains.
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![by_name]), match_expressions: None }] });
    template
}

/// The node a pod is on or is meant for.
pub fn target_node(pod: &Pod) -> Option<&str> {
    if let Some(node) = node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|f| f.key == "metadata.name" && f.operator == "In");
    named.next()?.values.as_ref()?.first().map(String::as_str)
}

/// Whether a pod of the set should start on the node, and whether one that is there may stay.
fn should(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let named = spec.node_name.as_deref().is_none_or(|n| n.is_empty() || n == name);
    if !named || !selector_allows(spec, name, node.metadata.labels.as_ref()) {
        return (false, false);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let stay = tolerates_all(tolerations, taints, &["NoExecute"]);
    (stay && tolerates_all(tolerations, taints, &["NoSchedule"]), stay)
}

fn is_hash(pod: &Pod, hash: &str) -> bool {
    label(&pod.metadata, HASH_LABEL) == Some(hash)
}

/// Looks at every node.
pub fn plan(set: &DaemonSet, template: &PodTemplateSpec, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: &Time) -> Plan {
    let mut plan = Plan::default();
    let spec = template.spec.clone().unwrap_or_default();
    let by_node = by_node(pods);
    let (max_unavailable, max_surge) = bounds(set, nodes, &spec);
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let here = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        let (run, stay) = should(&spec, node);
        if !stay {
            plan.delete.extend(here.iter().filter(|p| !deleting(&p.metadata)).cloned());
            continue;
        }
        let mut alive: Vec<&Arc<Pod>> = Vec::new();
        for pod in here {
            match (deleting(&pod.metadata), is_terminal(pod)) {
                (true, _) => alive.push(pod),
                (false, true) => plan.failed.push(pod.clone()),
                (false, false) => alive.push(pod),
            }
        }
        if run && here.is_empty() {
            plan.create.push(name.to_owned());
        }
        // Of several pods the oldest stays; during a surge one old and one new.
        let mut running: Vec<&Arc<Pod>> = alive.into_iter().filter(|p| !deleting(&p.metadata)).collect();
        running.sort_by_key(|p| (p.metadata.creation_timestamp.clone(), p.metadata.name.clone()));
        if max_surge > 0 {
            let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| is_hash(p, hash));
            plan.delete
                .extend(new.iter().chain(old.iter()).enumerate().filter(|(i, _)| *i != 0 && *i != new.len()).map(|(_, p)| (*p).clone()));
        } else {
            plan.delete.extend(running.iter().skip(1).map(|p| (*p).clone()));
        }
    }
    let known = |n: &str| nodes.iter().any(|x| x.metadata.name.as_deref() == Some(n));
    // Pods meant for a node that went before they were bound; bound ones are the pod collector's.
    let stranded = pods.iter().filter(|p| node_name(p).is_none() && !deleting(&p.metadata) && target_node(p).is_none_or(|n| !known(n)));
    plan.delete.extend(stranded.cloned());
    if set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.type_.as_deref()) != Some("OnDelete") {
        roll(set, &spec, nodes, &by_node, hash, (max_unavailable, max_surge), now, &mut plan);
    }
    plan
}

fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<&str, Vec<Arc<Pod>>> {
    let mut by_node: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target_node(pod) {
            by_node.entry(node).or_default().push(pod.clone());
        }
    }
    by_node
}

fn bounds(set: &DaemonSet, nodes: &[Arc<Node>], spec: &PodSpec) -> (i32, i32) {
    let desired = nodes.iter().filter(|n| should(spec, n).0).count() as i32;
    let rolling = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).map_or(0, |v| scaled(v, desired, true));
    let one = IntOrString::Int(1);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&one), desired, true);
    // Both zero would stop every update; upstream allows one then.
    (if surge == 0 && unavailable == 0 { 1 } else { unavailable }, surge)
}

/// Replaces pods of older templates, as many at a time as allowed.
#[expect(clippy::too_many_arguments, reason = "one call, all of it is the state that is looked at")]
fn roll(
    set: &DaemonSet,
    spec: &PodSpec,
    nodes: &[Arc<Node>],
    by_node: &BTreeMap<&str, Vec<Arc<Pod>>>,
    hash: &str,
    (max_unavailable, max_surge): (i32, i32),
    now: &Time,
    plan: &mut Plan,
) {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let available = |p: &Pod| is_available(p, min_ready, now) && !deleting(&p.metadata);
    let (mut unavailable, mut surging) = (0, 0);
    let (mut at_once, mut candidates, mut surge_nodes) = (Vec::new(), Vec::new(), Vec::new());
    for node in nodes.iter().filter(|n| should(spec, n).0) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let here = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        let staying = |p: &&Arc<Pod>| !deleting(&p.metadata) && !is_terminal(p);
        let new = here.iter().filter(staying).find(|p| is_hash(p, hash));
        let old = here.iter().filter(staying).find(|p| !is_hash(p, hash));
        match (new, old) {
            (None, None) => unavailable += 1,
            (Some(new), None) => unavailable += i32::from(!available(new)),
            (None, Some(old)) if max_surge > 0 => {
                if available(old) {
                    candidates.push(name.to_owned())
                } else {
                    surge_nodes.push(name.to_owned())
                }
            }
            (None, Some(old)) => {
                if available(old) {
                    candidates.push(name.to_owned());
                } else {
                    unavailable += 1;
                    at_once.push(old.clone());
                }
            }
            (Some(new), Some(old)) => {
                if available(new) || !available(old) {
                    at_once.push(old.clone())
                } else {
                    surging += 1
                }
            }
        }
    }
    if max_surge > 0 {
        let room = usize::try_from(max_surge - surging).unwrap_or(0);
        surge_nodes.extend(candidates.into_iter().take(room));
        plan.create.extend(surge_nodes);
    } else {
        let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
        let chosen = candidates.iter().take(room).filter_map(|n| by_node.get(n.as_str()));
        at_once.extend(chosen.flat_map(|pods| pods.iter().filter(|p| !is_hash(p, hash) && !deleting(&p.metadata)).cloned()));
    }
    for pod in at_once {
        if !plan.delete.iter().any(|p| p.metadata.uid == pod.metadata.uid) {
            plan.delete.push(pod);
        }
    }
}

/// The status.
pub fn status(
    set: &DaemonSet,
    template: &PodTemplateSpec,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: &Time,
) -> DaemonSetStatus {
    let spec = template.spec.clone().unwrap_or_default();
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let by_node = by_node(pods);
    let mut s = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|s| s.collision_count),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        ..Default::default()
    };
    let (mut available, mut updated) = (0, 0);
    for node in nodes {
        let here = by_node.get(node.metadata.name.as_deref().unwrap_or_default()).map(Vec::as_slice).unwrap_or_default();
        if !should(&spec, node).0 {
            s.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        s.desired_number_scheduled += 1;
        let oldest =
            here.iter().filter(|p| phase(p) != "Failed").min_by_key(|p| (p.metadata.creation_timestamp.clone(), p.metadata.name.clone()));
        let Some(_) = oldest else { continue };
        s.current_number_scheduled += 1;
        if let Some(ready) = here.iter().find(|p| is_ready(p)) {
            s.number_ready += 1;
            available += i32::from(is_available(ready, min_ready, now));
        }
        updated += i32::from(here.iter().any(|p| is_hash(p, hash)));
    }
    let some = |n: i32| (n != 0).then_some(n);
    s.number_available = some(available);
    s.number_unavailable = some(s.desired_number_scheduled - available);
    s.updated_number_scheduled = some(updated);
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn set(strategy: Value) -> DaemonSet {
        from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "d"}, "spec": {"selector": {}, "updateStrategy": strategy,
            "template": {"spec": {"containers": [], "nodeSelector": {"on": "yes"}}}}}))
        .unwrap()
    }

    fn node(name: &str, taint: Option<Value>) -> Arc<Node> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": name, "labels": {"on": "yes"}}, "spec": {"taints": taint.into_iter().collect::<Vec<_>>()}}),
            )
            .unwrap(),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": name, "uid": name, "labels": {HASH_LABEL: hash}}, "spec": {"containers": [], "nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}),
            )
            .unwrap(),
        )
    }

    fn run(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>) {
        let plan = plan(set, &pod_template(set, "new"), nodes, pods, "new", &xebec_loops::clock::now());
        (plan.create, plan.delete.iter().map(|p| p.metadata.name.clone().unwrap()).collect())
    }

    #[test]
    fn every_node_that_fits_gets_one() {
        let d = set(json!({}));
        let off: Node = from_value(json!({"metadata": {"name": "off"}})).unwrap();
        let nodes = [
            node("a", None),
            node("b", Some(json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}))),
            node("c", Some(json!({"key": "mine", "effect": "NoSchedule"}))),
            Arc::new(off),
        ];
        assert_eq!(run(&d, &nodes, &[]), (vec!["a".into(), "b".into()], vec![]));
        // A pod stays on a node it could not start on, but not where it may not stay.
        let pods =
            [pod("pa", "a", "new", true), pod("pc", "c", "new", true), pod("po", "off", "new", true), pod("extra", "a", "new", true)];
        assert_eq!(run(&d, &nodes, &pods), (vec!["b".into()], vec!["pa".into(), "po".into()]));
    }

    #[test]
    fn updates_keep_to_max_unavailable() {
        let d = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}));
        let nodes = [node("a", None), node("b", None), node("c", None)];
        let old = [pod("pa", "a", "old", true), pod("pb", "b", "old", true), pod("pc", "c", "old", true)];
        assert_eq!(run(&d, &nodes, &old), (vec![], vec!["pa".into()]));
        let next = [pod("na", "a", "new", false), old[1].clone(), old[2].clone()];
        assert_eq!(run(&d, &nodes, &next), (vec![], vec![]));
        let sick = [pod("na", "a", "new", false), pod("pb", "b", "old", false), old[2].clone()];
        assert_eq!(run(&d, &nodes, &sick), (vec![], vec!["pb".into()]), "what does not serve anyway is replaced at once");
        assert_eq!(run(&set(json!({"type": "OnDelete"})), &nodes, &old), (vec![], vec![]));
    }

    #[test]
    fn a_surge_starts_new_pods_first() {
        let d = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
        let nodes = [node("a", None), node("b", None)];
        let old = [pod("pa", "a", "old", true), pod("pb", "b", "old", true)];
        assert_eq!(run(&d, &nodes, &old), (vec!["a".into()], vec![]));
        let both = [old[0].clone(), pod("na", "a", "new", false), old[1].clone()];
        assert_eq!(run(&d, &nodes, &both), (vec![], vec![]));
        let ready = [old[0].clone(), pod("na", "a", "new", true), old[1].clone()];
        assert_eq!(run(&d, &nodes, &ready), (vec!["b".into()], vec!["pa".into()]));
    }
}
