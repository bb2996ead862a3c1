//! DefaultPreemption: which pods of lower priority must go so that a pod fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use xebec_loops::Selector;
use xebec_loops::meta::deleting;

use crate::cluster::{Cluster, NodeInfo};
use crate::plugins::{Prepared, View, filter};
use crate::pod_info::PodInfo;
use crate::schedule::{Diagnosis, not_available};

/// What preemption found.
#[derive(Clone, Debug)]
pub enum Preemption {
    /// Delete these and wait for room on this node.
    Evict {
        /// The node.
        node: String,
        /// Who has to go.
        victims: Vec<Arc<PodInfo>>,
    },
    /// It does not help; the text goes into the event.
    Useless(String),
}

struct Candidate<'a> {
    node: &'a NodeInfo,
    victims: Vec<Arc<PodInfo>>,
    /// Victims whose disruption budget has nothing left.
    violations: usize,
}

/// Looks for the node where the fewest and least important pods have to go.
pub fn preempt(cluster: &Cluster, pod: &PodInfo, diagnosis: &Diagnosis, budgets: &[Arc<PodDisruptionBudget>]) -> Preemption {
    let policy = pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Preemption::Useless("not eligible due to preemptionPolicy=Never.".into());
    }
    if waits_for_victims(cluster, pod, diagnosis) {
        return Preemption::Useless("not eligible due to a terminating pod on the nominated node.".into());
    }
    let mut candidates = Vec::new();
    let mut reasons = Vec::new();
    for node in cluster.existing_nodes() {
        let helpful = diagnosis.rejections.get(&node.name).is_none_or(|r| r.resolvable);
        if !helpful {
            reasons.push("Preemption is not helpful for scheduling");
            continue;
        }
        match victims_on(cluster, node, pod, budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => reasons.push(reason),
        }
    }
    match candidates.into_iter().min_by(compare) {
        Some(best) => Preemption::Evict { node: best.node.name.clone(), victims: best.victims },
        None => Preemption::Useless(not_available(cluster.existing, reasons.into_iter())),
    }
}

/// A pod that has preempted already waits while its victims on that node are on their way out.
fn waits_for_victims(cluster: &Cluster, pod: &PodInfo, diagnosis: &Diagnosis) -> bool {
    let Some(nominated) = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()) else { return false };
    if diagnosis.rejections.get(nominated).is_some_and(|r| !r.resolvable) {
        return false;
    }
    let pods = cluster.nodes.get(nominated).into_iter().flat_map(|n| n.pods.values());
    pods.into_iter().any(|p| p.priority < pod.priority && deleting(&p.pod.metadata))
}

fn victims_on<'a>(
    cluster: &'a Cluster,
    node: &'a NodeInfo,
    pod: &PodInfo,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate<'a>, &'static str> {
    let mut potential: Vec<Arc<PodInfo>> = node.pods.values().filter(|p| p.priority < pod.priority).cloned().collect();
    if potential.is_empty() {
        return Err("No preemption victims found for incoming pod");
    }
    let mut without = node.clone();
    for p in &potential {
        without.remove(&p.uid);
    }
    let fits = |node: &NodeInfo| {
        let view = View { cluster, instead: Some(node) };
        let mut node = node.clone();
        for other in cluster.nominated.get(&node.name).into_iter().flat_map(|n| n.values()) {
            if other.uid != pod.uid && other.priority >= pod.priority {
                node.add(other.clone());
            }
        }
        filter(&node, pod, &Prepared::new(view, pod)).is_ok()
    };
    if !fits(&without) {
        return Err("Node affinity, taints or remaining pods keep the pod off the node even without victims");
    }
    // The most important, then the longest running, get their place back first; those that a budget protects before
    // the others.
    potential.sort_by(|a, b| importance(b, a));
    let (protected, free) = split_by_budget(&potential, budgets);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (group, counts) in [(protected, true), (free, false)] {
        for p in group {
            without.add(p.clone());
            if !fits(&without) {
                without.remove(&p.uid);
                violations += usize::from(counts);
                victims.push(p);
            }
        }
    }
    victims.sort_by(|a, b| importance(b, a));
    Ok(Candidate { node, victims, violations })
}

fn started(pod: &PodInfo) -> Option<&Time> {
    pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref())
}

/// Greater is more important: priority, then an earlier start.
fn importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> std::cmp::Ordering {
    let by_start = match (started(a), started(b)) {
        (Some(a), Some(b)) => b.cmp(a),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => std::cmp::Ordering::Equal,
    };
    a.priority.cmp(&b.priority).then(by_start).then_with(|| b.uid.cmp(&a.uid))
}

/// Pods whose eviction would break a budget, and the rest.
fn split_by_budget(pods: &[Arc<PodInfo>], budgets: &[Arc<PodDisruptionBudget>]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: BTreeMap<usize, i32> =
        budgets.iter().enumerate().map(|(i, b)| (i, b.status.as_ref().map_or(0, |s| s.disruptions_allowed.unwrap_or(0)))).collect();
    pods.iter().cloned().partition(|pod| {
        let mut violates = false;
        for (i, budget) in budgets.iter().enumerate() {
            let selector = Selector::from_label_selector(budget.spec.as_ref().and_then(|s| s.selector.as_ref()));
            let speaks_of_it = budget.metadata.namespace.as_deref() == Some(&pod.namespace)
                && !selector.is_everything()
                && selector.matches(pod.pod.metadata.labels.as_ref());
            let disrupted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            if !speaks_of_it || disrupted.is_some_and(|d| d.contains_key(&pod.name)) {
                continue;
            }
            if let Some(n) = left.get_mut(&i) {
                *n -= 1;
                violates |= *n < 0;
            }
        }
        violates
    })
}

/// Smaller is the better choice: fewest budget violations, lowest highest priority, lowest sum of priorities, fewest
/// victims, latest start of the most important victim.
fn compare(a: &Candidate<'_>, b: &Candidate<'_>) -> std::cmp::Ordering {
    let highest = |c: &Candidate<'_>| c.victims.first().map_or(i32::MIN, |v| v.priority);
    // As upstream, shifted so that more victims of negative priority do not look better.
    let sum = |c: &Candidate<'_>| c.victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum::<i64>();
    let earliest = |c: &Candidate<'_>| {
        let top = highest(c);
        c.victims.iter().filter(|v| v.priority == top).filter_map(|v| started(v).cloned()).min()
    };
    a.violations
        .cmp(&b.violations)
        .then_with(|| highest(a).cmp(&highest(b)))
        .then_with(|| sum(a).cmp(&sum(b)))
        .then_with(|| a.victims.len().cmp(&b.victims.len()))
        .then_with(|| earliest(b).cmp(&earliest(a)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Decision, schedule};
    use crate::testing::{cluster_of, node_with, pod_info};
    use serde_json::json;

    fn pod(name: &str, cpu: &str, priority: i32) -> PodInfo {
        pod_info(json!({"metadata": {"name": name, "uid": name, "labels": {"app": name}}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
    }

    fn node(name: &str, pods: Vec<PodInfo>) -> NodeInfo {
        node_with(name, json!({"cpu": "2", "memory": "8Gi", "pods": "110"}), pods)
    }

    fn run(cluster: &Cluster, pod: &PodInfo, budgets: &[Arc<PodDisruptionBudget>]) -> Result<(String, Vec<String>), String> {
        let Decision::Unschedulable(d) = schedule(cluster, pod, 0, 0) else { panic!("it fits without preemption") };
        match preempt(cluster, pod, &d, budgets) {
            Preemption::Evict { node, victims } => Ok((node, victims.iter().map(|v| v.name.clone()).collect())),
            Preemption::Useless(text) => Err(text),
        }
    }

    #[test]
    fn evicts_no_more_than_needed_and_the_least_important() {
        let cluster = cluster_of(vec![node("a", vec![pod("low", "1", 1), pod("mid", "1", 5)])]);
        assert_eq!(run(&cluster, &pod("p", "1", 9), &[]), Ok(("a".into(), vec!["low".into()])));
        assert_eq!(run(&cluster, &pod("p", "2", 9), &[]), Ok(("a".into(), vec!["mid".into(), "low".into()])));
    }

    #[test]
    fn chooses_the_node_whose_victims_matter_least() {
        let cluster = cluster_of(vec![node("a", vec![pod("x", "2", 5)]), node("b", vec![pod("y", "2", 3)])]);
        assert_eq!(run(&cluster, &pod("p", "2", 9), &[]), Ok(("b".into(), vec!["y".into()])));
    }

    #[test]
    fn equals_are_not_evicted_and_the_text_says_so() {
        let cluster = cluster_of(vec![node("a", vec![pod("x", "2", 9)])]);
        assert_eq!(
            run(&cluster, &pod("p", "1", 9), &[]),
            Err("0/1 nodes are available: 1 No preemption victims found for incoming pod.".into())
        );
        assert_eq!(
            run(&cluster, &pod("p", "3", 99), &[]),
            Err("0/1 nodes are available: 1 Preemption is not helpful for scheduling.".into())
        );
    }

    #[test]
    fn a_budget_turns_the_choice() {
        let cluster = cluster_of(vec![node("a", vec![pod("x", "2", 3)]), node("b", vec![pod("y", "2", 5)])]);
        let budget: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "b"},
            "spec": {"selector": {"matchLabels": {"app": "x"}}}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}))
        .unwrap();
        assert_eq!(run(&cluster, &pod("p", "2", 9), &[Arc::new(budget)]), Ok(("b".into(), vec!["y".into()])));
    }
}
