//! ReplicaSet and its elder, ReplicationController: keep a number of pods running.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use kube::Resource;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xebec_loops::meta::{controller_of, controller_reference, deleting, is_controlled_by, uid};
use xebec_loops::pod::{is_active, is_terminal};
use xebec_loops::{Cache, Error, Key, Outcome, Recorder, Selector, clock};

use crate::owned::claim_all;
use crate::replicas::{BURST, PodWriter, choose_to_delete, counts, pod_from_template};
use crate::setup::{Setup, sides, wake_controller};

/// What both kinds have in common.
trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
    const KIND: &'static str;
    const COMPONENT: &'static str;
    const LOOP: &'static str;

    fn selector(&self) -> Selector;
    /// Replicas, minReadySeconds, template.
    fn wanted(&self) -> (i32, i32, PodTemplateSpec);
    fn status(&self) -> Option<ReplicaSetStatus>;
    fn set_status(&mut self, status: &ReplicaSetStatus) -> Result<(), Error>;
}

impl Replicated for ReplicaSet {
    const KIND: &'static str = "ReplicaSet";
    const COMPONENT: &'static str = "replicaset-controller";
    const LOOP: &'static str = "replicaset";

    fn selector(&self) -> Selector {
        Selector::from_label_selector(self.spec.as_ref().map(|s| &s.selector))
    }

    fn wanted(&self) -> (i32, i32, PodTemplateSpec) {
        let spec = self.spec.clone().unwrap_or_default();
        (spec.replicas.unwrap_or(1), spec.min_ready_seconds.unwrap_or(0), spec.template.unwrap_or_default())
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn set_status(&mut self, status: &ReplicaSetStatus) -> Result<(), Error> {
        self.status = Some(status.clone());
        Ok(())
    }
}

impl Replicated for ReplicationController {
    const KIND: &'static str = "ReplicationController";
    const COMPONENT: &'static str = "replication-controller";
    const LOOP: &'static str = "replicationcontroller";

    fn selector(&self) -> Selector {
        Selector::from_map(self.spec.as_ref().and_then(|s| s.selector.as_ref()))
    }

    fn wanted(&self) -> (i32, i32, PodTemplateSpec) {
        let spec = self.spec.clone().unwrap_or_default();
        (spec.replicas.unwrap_or(1), spec.min_ready_seconds.unwrap_or(0), spec.template.unwrap_or_default())
    }

    /// The fields have the same names in both kinds; only ReplicaSets count terminating pods.
    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.as_ref().and_then(|s| serde_json::from_value(serde_json::to_value(s).ok()?).ok())
    }

    fn set_status(&mut self, status: &ReplicaSetStatus) -> Result<(), Error> {
        self.status = Some(serde_json::from_value(serde_json::to_value(status)?)?);
        Ok(())
    }
}

struct Controller<K> {
    client: kube::Client,
    sets: Arc<Cache<K>>,
    pods: Arc<Cache<Pod>>,
    recorder: Recorder,
}

/// Registers the loops of both kinds.
pub fn register(setup: &mut Setup) {
    register_kind::<ReplicaSet>(setup);
    register_kind::<ReplicationController>(setup);
}

fn register_kind<K: Replicated>(setup: &mut Setup) {
    let controller = Arc::new(Controller {
        client: setup.client.clone(),
        sets: setup.cache::<K>(),
        pods: setup.cache::<Pod>(),
        recorder: setup.recorder(K::COMPONENT),
    });
    let (sets, pods) = (controller.sets.clone(), controller.pods.clone());
    let queue = setup.control_loop(K::LOOP, &sets, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&pods, &queue, K::KIND);
    // An orphan wakes every set that may adopt it.
    pods.on_change(move |c| {
        for pod in sides(c).filter(|p| controller_of(&p.metadata).is_none() && p.metadata.labels.is_some()) {
            for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if set.selector().matches(pod.metadata.labels.as_ref()) {
                    queue.add(Key::of(&*set));
                }
            }
        }
    });
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Outcome::Done) };
        let (_, min_ready, _) = set.wanted();
        let mine = claim_all(&self.client, &self.pods, &*set, &set.selector()).await?;
        let active: Vec<Arc<Pod>> = mine.iter().filter(|p| is_active(p)).cloned().collect();
        let terminating = mine.iter().filter(|p| deleting(&p.metadata) && !is_terminal(p)).count() as i32;
        let managed = if deleting(set.meta()) { Ok(()) } else { self.manage(&set, &active).await };

        // What the cache knows now includes the pods just made.
        let namespace = key.namespace.as_str();
        let now_active: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(namespace)
            .into_iter()
            .filter(|p| is_active(p) && is_controlled_by(&p.metadata, uid(set.meta())))
            .collect();
        let status = status_of(&*set, &now_active, terminating, managed.as_ref().err(), &clock::now());
        let mut changed = (*set).clone();
        changed.set_status(&status)?;
        if set.status() != changed.status() {
            let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
            self.sets.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        managed?;
        let unripe = status.ready_replicas.unwrap_or(0) > status.available_replicas.unwrap_or(0);
        if min_ready > 0 && unripe {
            return Ok(Outcome::Again(Duration::from_secs(min_ready.unsigned_abs().into())));
        }
        Ok(Outcome::Done)
    }

    async fn manage(&self, set: &K, active: &[Arc<Pod>]) -> Result<(), Error> {
        let (replicas, _, template) = set.wanted();
        let want = usize::try_from(replicas).unwrap_or(0);
        let writer = PodWriter { client: &self.client, pods: &self.pods, recorder: &self.recorder, owner: set };
        let key = Key::of(set);
        if active.len() < want {
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
    fn related(&self, set: &K) -> Vec<Arc<Pod>> {
        let namespace = set.meta().namespace.as_deref().unwrap_or_default();
        let family: Vec<String> = match controller_of(set.meta()) {
            None => vec![uid(set.meta()).to_owned()],
            Some(owner) => self
                .sets
                .in_namespace(namespace)
                .iter()
                .filter(|s| is_controlled_by(s.meta(), &owner.uid))
                .map(|s| uid(s.meta()).to_owned())
                .collect(),
        };
        let in_family = |p: &Arc<Pod>| controller_of(&p.metadata).is_some_and(|o| family.contains(&o.uid));
        self.pods.in_namespace(namespace).into_iter().filter(|p| is_active(p) && in_family(p)).collect()
    }
}

fn status_of<K: Replicated>(
    set: &K,
    active: &[Arc<Pod>],
    terminating: i32,
    failure: Option<&Error>,
    now: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> ReplicaSetStatus {
    let (replicas, min_ready, template) = set.wanted();
    let labels = template.metadata.and_then(|m| m.labels).unwrap_or_default();
    let c = counts(active, &labels, min_ready, now);
    let mut conditions = set.status().and_then(|s| s.conditions).unwrap_or_default();
    let had = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(error) if !had => {
            let reason = if c.replicas < replicas { "FailedCreate" } else { "FailedDelete" };
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
        observed_generation: set.meta().generation,
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
