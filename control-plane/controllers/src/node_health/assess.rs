//! What a node's reports and conditions mean.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// Silence after which a node's state is unknown (kube-controller-manager's --node-monitor-grace-period).
pub const GRACE: Duration = Duration::from_secs(50);
/// The same for a node that never reported (--node-startup-grace-period).
pub const STARTUP_GRACE: Duration = Duration::from_secs(60);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions a kubelet reports, with the taint that a True one means.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// When a node last showed a sign of life, by this process' own clock: the node's may be wrong.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    at: Instant,
    reported: Option<Time>,
    renewed: Option<MicroTime>,
    ever: bool,
}

impl Heartbeat {
    /// A node just met.
    pub fn new(now: Instant) -> Self {
        Heartbeat { at: now, reported: None, renewed: None, ever: false }
    }

    /// Takes in what the node's status and lease say now.
    pub fn see(&mut self, node: &Node, lease: Option<&Lease>, now: Instant) {
        let ready = find(node, "Ready").filter(|c| c.reason.as_deref() != Some("NodeStatusNeverUpdated"));
        let reported = ready.and_then(|c| c.last_heartbeat_time.clone());
        let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.clone());
        self.ever |= ready.is_some();
        if reported != self.reported || renewed > self.renewed {
            self.at = now;
            self.reported = reported;
            self.renewed = renewed.or(self.renewed.take());
        }
    }

    /// Whether it has been quiet for too long.
    pub fn is_silent(&self, now: Instant) -> bool {
        now.duration_since(self.at) > if self.ever { GRACE } else { STARTUP_GRACE }
    }
}

fn find<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// A condition's status.
pub fn condition_status<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    find(node, type_).map(|c| c.status.as_str())
}

/// The conditions that a silent node should have and has not yet.
pub fn silent_conditions(node: &Node, now: &Time) -> Option<Vec<NodeCondition>> {
    let changed: Vec<NodeCondition> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(|type_| {
            let old = find(node, type_);
            if old.is_some_and(|c| c.status == "Unknown") {
                return None;
            }
            let (reason, message) = match old {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            let created = node.metadata.creation_timestamp.clone();
            Some(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: old.map_or(created, |c| c.last_heartbeat_time.clone()),
                last_transition_time: Some(now.clone()),
            })
        })
        .collect();
    (!changed.is_empty()).then_some(changed)
}

/// The taints a node should have: its own, and those its conditions and cordon mean.
pub fn wanted_taints(node: &Node, have: &[Taint], any_ready: bool, now: &Time) -> Vec<Taint> {
    let ready = condition_status(node, "Ready");
    let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    // (key, effect, whether it should be there)
    let mut rules: Vec<(&str, &str, bool)> =
        PRESSURES.iter().map(|(condition, key)| (*key, "NoSchedule", condition_status(node, condition) == Some("True"))).collect();
    // A node without a Ready condition has not reported yet: its kubelet's own taint, if any, stays as it is.
    if ready.is_some() {
        rules.push((NOT_READY, "NoSchedule", ready == Some("False")));
        rules.push((NOT_READY, "NoExecute", ready == Some("False") && any_ready));
    }
    rules.push((UNREACHABLE, "NoSchedule", ready == Some("Unknown")));
    rules.push((UNREACHABLE, "NoExecute", ready == Some("Unknown") && any_ready));
    rules.push((UNSCHEDULABLE, "NoSchedule", unschedulable));
    let is = |t: &Taint, key: &str, effect: &str| t.key == key && t.effect == effect;
    let mut want: Vec<Taint> = have.iter().filter(|t| !rules.iter().any(|(k, e, wanted)| !wanted && is(t, k, e))).cloned().collect();
    for (key, effect, _) in rules.iter().filter(|(k, e, wanted)| *wanted && !have.iter().any(|t| is(t, k, e))) {
        want.push(Taint { key: (*key).into(), effect: (*effect).into(), time_added: Some(now.clone()), value: None });
    }
    want
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn node(conditions: Value, spec: Value) -> Node {
        from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}})).unwrap()
    }

    fn ready(status: &str, beat: &str) -> Value {
        json!([{"type": "Ready", "status": status, "lastHeartbeatTime": format!("2024-01-01T00:00:{beat}Z")}])
    }

    #[test]
    fn status_and_lease_are_signs_of_life() {
        let start = Instant::now();
        let after = |s: u64| start + Duration::from_secs(s);
        let mut h = Heartbeat::new(start);
        h.see(&node(ready("True", "00"), json!({})), None, start);
        assert!(!h.is_silent(after(50)) && h.is_silent(after(51)));
        h.see(&node(ready("True", "10"), json!({})), None, after(40));
        assert!(!h.is_silent(after(90)));
        let lease: Lease = from_value(json!({"spec": {"renewTime": "2024-01-01T00:00:00.000000Z"}})).unwrap();
        h.see(&node(ready("True", "10"), json!({})), Some(&lease), after(80));
        assert!(!h.is_silent(after(130)) && h.is_silent(after(131)));
        h.see(&node(ready("True", "10"), json!({})), Some(&lease), after(131));
        assert!(h.is_silent(after(131)), "nothing new is no sign of life");
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let now = xebec_loops::clock::now();
        let mut n = node(ready("True", "00"), json!({}));
        let c = silent_conditions(&n, &now).unwrap();
        assert_eq!(c.len(), 4);
        assert_eq!((c[0].status.as_str(), c[0].reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
        assert_eq!(c[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        n.status.as_mut().unwrap().conditions = Some(c);
        assert_eq!(silent_conditions(&n, &now), None);
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now = xebec_loops::clock::now();
        let own: Taint = from_value(json!({"key": "mine", "effect": "NoSchedule"})).unwrap();
        let keys = |conditions: Value, spec: Value, any_ready: bool| -> Vec<String> {
            let want = wanted_taints(&node(conditions, spec), std::slice::from_ref(&own), any_ready, &now);
            want.iter().map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect)).collect()
        };
        assert_eq!(keys(ready("True", "00"), json!({}), true), ["mine:NoSchedule"]);
        assert_eq!(keys(ready("False", "00"), json!({}), true), ["mine:NoSchedule", "not-ready:NoSchedule", "not-ready:NoExecute"]);
        assert_eq!(keys(ready("Unknown", "00"), json!({}), true), ["mine:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"]);
        assert_eq!(keys(ready("Unknown", "00"), json!({}), false), ["mine:NoSchedule", "unreachable:NoSchedule"]);
        assert_eq!(keys(ready("True", "00"), json!({"unschedulable": true}), true), ["mine:NoSchedule", "unschedulable:NoSchedule"]);
        assert_eq!(
            keys(json!([{"type": "DiskPressure", "status": "True"}]), json!({}), true),
            ["mine:NoSchedule", "disk-pressure:NoSchedule"]
        );
    }

    #[test]
    fn taints_go_when_the_reason_goes() {
        let now = xebec_loops::clock::now();
        let sick = node(ready("False", "00"), json!({}));
        let taints = wanted_taints(&sick, &[], true, &now);
        assert_eq!(wanted_taints(&sick, &taints, true, &now), taints);
        assert_eq!(wanted_taints(&node(ready("True", "01"), json!({})), &taints, true, &now), []);
    }
}
