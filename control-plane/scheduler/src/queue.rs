//! Pods that wait: ready ones by priority, failed ones until their back-off ends, hopeless ones until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::plugins::Plugin;
use crate::pod_info::PodInfo;

const BACKOFF_START: Duration = Duration::from_secs(1);
const BACKOFF_LIMIT: Duration = Duration::from_secs(10);
/// Longest a pod waits for a change before it is tried anyway.
const PATIENCE: Duration = Duration::from_secs(300);

/// A pod that waits for a node.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Tries so far.
    pub attempts: u32,
    /// Who objected in the last try; empty if it failed for another reason.
    pub rejected_by: BTreeSet<Plugin>,
    since: Instant,
    order: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    Backoff(Instant),
    Unschedulable,
    Gated,
}

/// What changed in the cluster that may let a pod fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A node is new or changed.
    Node,
    /// A pod left a node.
    PodGone,
    /// A pod came to a node, or one there changed its labels.
    PodPlaced,
    /// Namespace labels changed.
    Namespace,
}

impl Wake {
    fn may_help(self, plugin: Plugin) -> bool {
        match self {
            Wake::Node => true,
            Wake::PodGone => {
                matches!(plugin, Plugin::NodePorts | Plugin::NodeResourcesFit | Plugin::PodTopologySpread | Plugin::InterPodAffinity)
            }
            Wake::PodPlaced => matches!(plugin, Plugin::PodTopologySpread | Plugin::InterPodAffinity),
            Wake::Namespace => plugin == Plugin::InterPodAffinity,
        }
    }
}

/// Every pod that waits.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    backoff: BTreeSet<(Instant, String)>,
    orders: u64,
}

impl Queue {
    /// Takes in a new or changed pod. A changed pod is tried again, as the change may let it fit.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let gated = pod.pod.spec.as_ref().is_some_and(|s| s.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()));
        let old = self.remove(&pod.uid);
        let (attempts, order) = old.as_ref().map_or((0, None), |o| (o.attempts, Some(o.order)));
        let order = order.unwrap_or_else(|| {
            self.orders += 1;
            self.orders
        });
        let place = match old.as_ref().map(|o| o.place) {
            _ if gated => Place::Gated,
            Some(Place::Backoff(until)) => Place::Backoff(until),
            _ => Place::Active,
        };
        let rejected_by = old.map(|o| o.rejected_by).unwrap_or_default();
        self.insert(Waiting { pod, attempts, rejected_by, since: now, order, place });
    }

    /// Replaces what is known of a waiting pod without trying it again.
    pub fn refresh(&mut self, pod: Arc<PodInfo>) {
        if let Some(w) = self.pods.get_mut(&pod.uid)
            && w.pod.priority == pod.priority
        {
            w.pod = pod;
        }
    }

    /// The waiting pod with this uid.
    pub fn get(&self, uid: &str) -> Option<&Waiting> {
        self.pods.get(uid)
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Waiting> {
        let w = self.pods.remove(uid)?;
        match w.place {
            Place::Active => {
                self.active.remove(&(Reverse(w.pod.priority), w.order, uid.to_owned()));
            }
            Place::Backoff(until) => {
                self.backoff.remove(&(until, uid.to_owned()));
            }
            Place::Unschedulable | Place::Gated => {}
        }
        Some(w)
    }

    /// The most important ready pod. Pods in back-off are taken when nothing else is ready (KEP-5142), unless they
    /// failed for a reason other than not fitting.
    pub fn pop(&mut self, now: Instant) -> Option<Waiting> {
        self.release(now);
        let uid = match self.active.first() {
            Some((_, _, uid)) => uid.clone(),
            None => self.backoff.iter().map(|(_, uid)| uid).find(|u| !self.pods[*u].rejected_by.is_empty())?.clone(),
        };
        let mut waiting = self.remove(&uid)?;
        waiting.attempts += 1;
        Some(waiting)
    }

    /// Gives back a pod that fits nowhere: it waits for a change.
    pub fn unschedulable(&mut self, mut waiting: Waiting, rejected_by: BTreeSet<Plugin>, now: Instant) {
        waiting.rejected_by = rejected_by;
        waiting.since = now;
        waiting.place = Place::Unschedulable;
        self.insert(waiting);
    }

    /// Gives back a pod whose try failed for another reason: it is tried again after its back-off.
    pub fn failed(&mut self, mut waiting: Waiting, now: Instant) {
        waiting.rejected_by.clear();
        waiting.since = now;
        waiting.place = Place::Backoff(now + backoff(waiting.attempts));
        self.insert(waiting);
    }

    /// Something changed: pods that it may help become ready, or wait out their back-off first.
    pub fn wake(&mut self, wake: Wake, now: Instant) {
        self.move_where(now, |w| w.rejected_by.is_empty() || w.rejected_by.iter().any(|p| wake.may_help(*p)));
    }

    /// When [`Queue::pop`] should be asked again, though nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(at, _)| *at);
        let waiting = self.pods.values().filter(|w| w.place == Place::Unschedulable);
        let patience = waiting.map(|w| w.since + PATIENCE).min();
        backoff.into_iter().chain(patience).min()
    }

    fn release(&mut self, now: Instant) {
        while let Some((at, uid)) = self.backoff.first().cloned() {
            if at > now {
                break;
            }
            if let Some(mut w) = self.remove(&uid) {
                w.place = Place::Active;
                self.insert(w);
            }
        }
        self.move_where(now, |w| now.duration_since(w.since) >= PATIENCE);
    }

    fn move_where(&mut self, now: Instant, which: impl Fn(&Waiting) -> bool) {
        let moving: Vec<String> =
            self.pods.iter().filter(|(_, w)| w.place == Place::Unschedulable && which(w)).map(|(uid, _)| uid.clone()).collect();
        for uid in moving {
            if let Some(mut w) = self.remove(&uid) {
                let until = w.since + backoff(w.attempts);
                w.place = if until > now { Place::Backoff(until) } else { Place::Active };
                self.insert(w);
            }
        }
    }

    fn insert(&mut self, w: Waiting) {
        let uid = w.pod.uid.clone();
        match w.place {
            Place::Active => {
                self.active.insert((Reverse(w.pod.priority), w.order, uid.clone()));
            }
            Place::Backoff(until) => {
                self.backoff.insert((until, uid.clone()));
            }
            Place::Unschedulable | Place::Gated => {}
        }
        self.pods.insert(uid, w);
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_START.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_info;
    use serde_json::json;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(pod_info(json!({"metadata": {"uid": uid}, "spec": {"priority": priority, "containers": []}})))
    }

    fn popped(q: &mut Queue, now: Instant) -> Option<String> {
        q.pop(now).map(|w| w.pod.uid.clone())
    }

    #[test]
    fn priority_first_then_age() {
        let (mut q, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            q.add(pod(uid, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut q, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_hopeless_pod_waits_for_a_change_that_may_help() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.add(pod("a", 0), now);
        let w = q.pop(now).unwrap();
        q.unschedulable(w, [Plugin::NodeResourcesFit].into(), now);
        assert_eq!(popped(&mut q, now), None);
        q.wake(Wake::PodPlaced, now);
        assert_eq!(popped(&mut q, now), None);
        q.wake(Wake::PodGone, now);
        assert_eq!(popped(&mut q, now), Some("a".into()), "nothing else is ready, so back-off is not waited for");
    }

    #[test]
    fn back_off_yields_to_ready_pods_and_patience_ends() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.add(pod("a", 9), now);
        let w = q.pop(now).unwrap();
        q.unschedulable(w, [Plugin::NodeResourcesFit].into(), now);
        q.wake(Wake::Node, now);
        q.add(pod("b", 0), now);
        assert_eq!(popped(&mut q, now), Some("b".into()));
        let w = q.pop(now).unwrap();
        q.unschedulable(w, [Plugin::TaintToleration].into(), now);
        assert_eq!(popped(&mut q, now + PATIENCE / 2), None);
        assert_eq!(popped(&mut q, now + PATIENCE), Some("a".into()));
    }

    #[test]
    fn failures_wait_out_their_back_off() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.add(pod("a", 0), now);
        let w = q.pop(now).unwrap();
        q.failed(w, now);
        assert_eq!(popped(&mut q, now), None);
        assert_eq!(q.next_deadline(), Some(now + BACKOFF_START));
        assert_eq!(popped(&mut q, now + BACKOFF_START), Some("a".into()));
    }

    #[test]
    fn gated_pods_wait_until_the_gates_are_gone() {
        let (mut q, now) = (Queue::default(), Instant::now());
        let spec = json!({"containers": [], "schedulingGates": [{"name": "x"}]});
        q.add(Arc::new(pod_info(json!({"metadata": {"uid": "a"}, "spec": spec}))), now);
        q.wake(Wake::Node, now);
        assert_eq!(popped(&mut q, now + PATIENCE), None);
        q.add(pod("a", 0), now);
        assert_eq!(popped(&mut q, now), Some("a".into()));
    }
}
