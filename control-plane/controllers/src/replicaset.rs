//! ReplicaSet: keeps a number of pods running.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use xebec_loops::meta::{controller_of, controller_reference, deleting, is_controlled_by, uid};
use xebec_loops::pod::{is_active, is_terminal};
use xebec_loops::{Cache, Error, Key, Outcome, Recorder, Selector, clock};

use crate::owned::claim_all;
use crate::replicas::{BURST, PodWriter, choose_to_delete, counts, pod_from_template};
use crate::setup::{Setup, sides, wake_controller};

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    sets: Arc<Cache<ReplicaSet>>,
    pods: Arc<Cache<Pod>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        sets: setup.cache::<ReplicaSet>(),
        pods: setup.cache::<Pod>(),
        recorder: setup.recorder("replicaset-controller"),
    };
    let (sets, pods) = (controller.sets.clone(), controller.pods.clone());
    let queue = setup.control_loop("replicaset", &sets, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&pods, &queue, "ReplicaSet");
    // An orphan wakes every set that may adopt it.
    pods.on_change(move |c| {
        for pod in sides(c).filter(|p| controller_of(&p.metadata).is_none() && p.metadata.labels.is_some()) {
            for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if selector_of(&set).matches(pod.metadata.labels.as_ref()) {
                    queue.add(Key::of(&*set));
                }
            }
        }
    });
}

fn selector_of(set: &ReplicaSet) -> Selector {
    Selector::from_label_selector(set.spec.as_ref().map(|s| &s.selector))
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let mine = claim_all(&self.client, &self.pods, &*set, &selector_of(&set)).await?;
        let active: Vec<Arc<Pod>> = mine.iter().filter(|p| is_active(p)).cloned().collect();
        let terminating = mine.iter().filter(|p| deleting(&p.metadata) && !is_terminal(p)).count() as i32;
        let managed = if deleting(&set.metadata) { Ok(()) } else { self.manage(&set, &active).await };

        // What the cache knows now includes the pods just made.
        let namespace = key.namespace.as_str();
        let now_active: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(namespace)
            .into_iter()
            .filter(|p| is_active(p) && is_controlled_by(&p.metadata, uid(&set.metadata)))
            .collect();
        let status = status_of(&set, &now_active, terminating, managed.as_ref().err(), &clock::now());
        if set.status.as_ref() != Some(&status) {
            let mut changed = (*set).clone();
            changed.status = Some(status.clone());
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
            self.sets.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        managed?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let unripe = status.ready_replicas.unwrap_or(0) > status.available_replicas.unwrap_or(0);
        if min_ready > 0 && unripe {
            return Ok(Outcome::Again(Duration::from_secs(min_ready.unsigned_abs().into())));
        }
        Ok(Outcome::Done)
    }

    async fn manage(&self, set: &ReplicaSet, active: &[Arc<Pod>]) -> Result<(), Error> {
        let Some(spec) = &set.spec else { return Ok(()) };
        let want = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let writer = PodWriter { client: &self.client, pods: &self.pods, recorder: &self.recorder, owner: set };
        let key = Key::of(set);
        if active.len() < want {
            let template = spec.template.clone().unwrap_or_default();
            let pod = pod_from_template(&template, &key.namespace, &key.name, controller_reference(set));
            let missing = (want - active.len()).min(BURST);
            writer.create_many(&pod, missing).await.map_err(|(_, e)| e)?;
        } else if active.len() > want {
            let surplus = (active.len() - want).min(BURST);
            let chosen = choose_to_delete(active, &self.related(set), surplus, &clock::now());
            let answers = futures::future::join_all(chosen.iter().map(|p| writer.delete(p))).await;
            answers.into_iter().collect::<Result<Vec<()>, Error>>()?;
        }
        Ok(())
    }

    /// Pods of every set that has the same owner, or of this one if it has none.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let family: Vec<String> = match controller_of(&set.metadata) {
            None => vec![uid(&set.metadata).to_owned()],
            Some(owner) => self
                .sets
                .in_namespace(namespace)
                .iter()
                .filter(|s| is_controlled_by(&s.metadata, &owner.uid))
                .map(|s| uid(&s.metadata).to_owned())
                .collect(),
        };
        let in_family = |p: &Arc<Pod>| controller_of(&p.metadata).is_some_and(|o| family.contains(&o.uid));
        self.pods.in_namespace(namespace).into_iter().filter(|p| is_active(p) && in_family(p)).collect()
    }
}

fn status_of(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: i32,
    failure: Option<&Error>,
    now: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let c = counts(active, &labels, spec.min_ready_seconds.unwrap_or(0), now);
    let mut conditions = set.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let had = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(error) if !had => {
            let reason = if c.replicas < spec.replicas.unwrap_or(1) { "FailedCreate" } else { "FailedDelete" };
            let message = match error {
                Error::Api(e) => xebec_loops::api_message(e),
                other => other.to_string(),
            };
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(now.clone()),
            });
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    let some = |n: i32| (n != 0).then_some(n);
    ReplicaSetStatus {
        replicas: c.replicas,
        fully_labeled_replicas: some(c.fully_labeled),
        ready_replicas: some(c.ready),
        available_replicas: some(c.available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn a_failure_is_a_condition_until_it_ends() {
        let now = from_value(json!("2024-01-01T00:00:00Z")).unwrap();
        let mut set: ReplicaSet = from_value(json!({"metadata": {"name": "a", "generation": 3},
            "spec": {"replicas": 1, "selector": {}, "template": {}}}))
        .unwrap();
        let failed = status_of(&set, &[], 0, Some(&Error::Retry("quota".into())), &now);
        let condition = &failed.conditions.as_ref().unwrap()[0];
        assert_eq!((condition.reason.as_deref(), condition.message.as_deref()), (Some("FailedCreate"), Some("quota")));
        set.status = Some(failed);
        let fine = status_of(&set, &[], 0, None, &now);
        assert_eq!((fine.conditions, fine.observed_generation), (None, Some(3)));
    }
}
