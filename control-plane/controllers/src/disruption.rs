//! Pod disruption budgets: how many pods may be evicted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, PostParams};
use xebec_loops::clock::{self, seconds_between};
use xebec_loops::meta::{controller_of, deleting};
use xebec_loops::pod::{is_ready, is_terminal};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, Selector};

use crate::deployment::scaled;
use crate::setup::{Setup, sides};

/// After this an eviction that was granted but did not happen is given back.
const GRANT_SECONDS: f64 = 120.0;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    budgets: Arc<Cache<PodDisruptionBudget>>,
    pods: Arc<Cache<Pod>>,
    sets: Arc<Cache<ReplicaSet>>,
    deployments: Arc<Cache<Deployment>>,
    stateful: Arc<Cache<StatefulSet>>,
    controllers: Arc<Cache<ReplicationController>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        budgets: setup.cache::<PodDisruptionBudget>(),
        pods: setup.cache::<Pod>(),
        sets: setup.cache::<ReplicaSet>(),
        deployments: setup.cache::<Deployment>(),
        stateful: setup.cache::<StatefulSet>(),
        controllers: setup.cache::<ReplicationController>(),
        recorder: setup.recorder("controllermanager"),
    };
    let Controller { budgets, pods, .. } = controller.clone();
    let queue = setup.control_loop("disruption", &budgets, 2, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    pods.on_change(move |c| {
        for pod in sides(c) {
            for budget in budgets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if selector_of(&budget).matches(pod.metadata.labels.as_ref()) {
                    queue.add(Key::of(&*budget));
                }
            }
        }
    });
}

fn selector_of(budget: &PodDisruptionBudget) -> Selector {
    Selector::from_label_selector(budget.spec.as_ref().and_then(|s| s.selector.as_ref()))
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(budget) = self.budgets.get(&key).filter(|b| !deleting(&b.metadata)) else { return Ok(Outcome::Done) };
        let selector = selector_of(&budget);
        let pods: Vec<Arc<Pod>> =
            self.pods.in_namespace(&key.namespace).into_iter().filter(|p| selector.matches(p.metadata.labels.as_ref())).collect();
        let now = clock::now();
        let (status, again) = match self.expected(&budget, &pods) {
            Ok((expected, desired)) => status(&budget, &pods, expected, desired, &now),
            Err(text) => {
                self.recorder.event(
                    &*budget,
                    EventType::Warning,
                    "CalculateExpectedPodCountFailed",
                    format!("Failed to calculate the number of expected pods: {text}"),
                );
                let mut status = budget.status.clone().unwrap_or_default();
                status.disruptions_allowed = Some(0);
                set_condition(&mut status, &budget, false, "SyncFailed", &text, &now);
                (status, None)
            }
        };
        if budget.status.as_ref() != Some(&status) {
            let mut changed = (*budget).clone();
            changed.status = Some(status);
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
            self.budgets.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        Ok(again.map_or(Outcome::Done, |s| Outcome::Again(Duration::from_secs_f64(s))))
    }

    /// How many pods there should be, and how many of them must stay healthy.
    fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<(i32, i32), String> {
        let spec = budget.spec.clone().unwrap_or_default();
        match (&spec.max_unavailable, &spec.min_available) {
            (Some(max), _) => {
                let expected = self.scales(pods)?;
                Ok((expected, (expected - scaled(max, expected, true)).max(0)))
            }
            (None, Some(IntOrString::Int(min))) => Ok((pods.len() as i32, *min)),
            (None, Some(min)) => {
                let expected = self.scales(pods)?;
                Ok((expected, scaled(min, expected, true)))
            }
            (None, None) => Ok((pods.len() as i32, 0)),
        }
    }

    /// The sum of the replicas that the pods' controllers want.
    fn scales(&self, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let mut by_owner: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else {
                return Err(format!("found no controller ref for pod \"{name}\""));
            };
            let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone());
            let found = match owner.kind.as_str() {
                "ReplicaSet" => self.sets.get(&key).map(|s| self.scale_of_set(&s, &key.namespace)),
                "StatefulSet" => {
                    self.stateful.get(&key).and_then(|s| Some((s.metadata.uid.clone()?, s.spec.as_ref()?.replicas.unwrap_or(1))))
                }
                "ReplicationController" => {
                    self.controllers.get(&key).and_then(|s| Some((s.metadata.uid.clone()?, s.spec.as_ref()?.replicas.unwrap_or(1))))
                }
                kind => return Err(format!("{} does not implement the scale subresource", kind.to_lowercase())),
            };
            if let Some((uid, replicas)) = found {
                by_owner.insert(uid, replicas);
            }
        }
        Ok(by_owner.values().sum())
    }

    /// A set of a Deployment stands for the whole Deployment.
    fn scale_of_set(&self, set: &ReplicaSet, namespace: &str) -> (String, i32) {
        let deployment = controller_of(&set.metadata)
            .filter(|o| o.kind == "Deployment")
            .and_then(|o| self.deployments.get(&Key::new(namespace, o.name.clone())));
        match deployment {
            Some(d) => (d.metadata.uid.clone().unwrap_or_default(), d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)),
            None => (set.metadata.uid.clone().unwrap_or_default(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)),
        }
    }
}

fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    desired: i32,
    now: &Time,
) -> (PodDisruptionBudgetStatus, Option<f64>) {
    let mut status = budget.status.clone().unwrap_or_default();
    // Evictions that were granted and are still to happen count as done.
    let mut granted = status.disrupted_pods.take().unwrap_or_default();
    granted.retain(|name, at| {
        let there = pods.iter().any(|p| p.metadata.name.as_ref() == Some(name) && !deleting(&p.metadata));
        there && seconds_between(at, now) < GRANT_SECONDS
    });
    let again = granted.values().map(|at| GRANT_SECONDS - seconds_between(at, now)).reduce(f64::min).map(|s| s.max(1.0));
    let healthy = pods
        .iter()
        .filter(|p| {
            is_ready(p)
                && !is_terminal(p)
                && !deleting(&p.metadata)
                && !granted.contains_key(p.metadata.name.as_deref().unwrap_or_default())
        })
        .count() as i32;
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    status.disrupted_pods = (!granted.is_empty()).then_some(granted);
    status.current_healthy = Some(healthy);
    status.desired_healthy = Some(desired);
    status.expected_pods = Some(expected);
    status.disruptions_allowed = Some(allowed);
    status.observed_generation = budget.metadata.generation;
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    set_condition(&mut status, budget, allowed > 0, reason, "", now);
    (status, again)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    value: bool,
    reason: &str,
    message: &str,
    now: &Time,
) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if value { "True" } else { "False" };
    let old = conditions.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = old.filter(|c| c.status == value).map_or_else(|| now.clone(), |c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn granted_evictions_count_until_they_happen_or_expire() {
        let pod = |name: &str, ready: &str| -> Arc<Pod> {
            Arc::new(
                from_value(
                    json!({"metadata": {"name": name}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}),
                )
                .unwrap(),
            )
        };
        let pods = [pod("a", "True"), pod("b", "True"), pod("c", "True"), pod("d", "False")];
        let budget = |at: &str| -> PodDisruptionBudget {
            from_value(json!({"metadata": {"generation": 2}, "status": {"disruptedPods": {"a": at}, "currentHealthy": 0,
                "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}}))
            .unwrap()
        };
        let now: Time = from_value(json!("2024-01-01T00:10:00Z")).unwrap();
        let (fresh, again) = status(&budget("2024-01-01T00:09:00Z"), &pods, 4, 2, &now);
        assert_eq!((fresh.current_healthy, fresh.disruptions_allowed, again), (Some(2), Some(0), Some(60.0)));
        let (expired, again) = status(&budget("2024-01-01T00:01:00Z"), &pods, 4, 2, &now);
        assert_eq!((expired.current_healthy, expired.disruptions_allowed, again), (Some(3), Some(1), None));
        assert_eq!(expired.conditions.unwrap()[0].reason, "SufficientPods");
        assert_eq!(status(&budget("2024-01-01T00:01:00Z"), &[], 0, 0, &now).0.disruptions_allowed, Some(0));
    }
}
