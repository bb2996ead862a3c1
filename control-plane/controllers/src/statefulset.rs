//! StatefulSet: pods with stable names, storage and order.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use xebec_loops::meta::{controller_of, controller_reference, deleting, is_controlled_by, uid};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, Selector, api_already_exists, api_message, clock};

use crate::history::{self, Found, Owner};
use crate::owned::claim_all;
use crate::replicas::PodWriter;
use crate::setup::{Setup, sides, wake_controller};
use plan::{Revision, Step, ordinal, revision_of};

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    sets: Arc<Cache<StatefulSet>>,
    pods: Arc<Cache<Pod>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    revisions: Arc<Cache<ControllerRevision>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        sets: setup.cache::<StatefulSet>(),
        pods: setup.cache::<Pod>(),
        claims: setup.cache::<PersistentVolumeClaim>(),
        revisions: setup.cache::<ControllerRevision>(),
        recorder: setup.recorder("statefulset-controller"),
    };
    let Controller { sets, pods, .. } = controller.clone();
    let queue = setup.control_loop("statefulset", &sets, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&pods, &queue, "StatefulSet");
    pods.on_change(move |c| {
        for pod in sides(c).filter(|p| controller_of(&p.metadata).is_none() && p.metadata.labels.is_some()) {
            for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if ordinal(&set, pod).is_some() && selector_of(&set).matches(pod.metadata.labels.as_ref()) {
                    queue.add(Key::of(&*set));
                }
            }
        }
    });
}

fn selector_of(set: &StatefulSet) -> Selector {
    Selector::from_label_selector(set.spec.as_ref().map(|s| &s.selector))
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let owner = Owner {
            namespace: &key.namespace,
            name: &key.name,
            reference: controller_reference(&*set),
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0),
        };
        if deleting(&set.metadata) {
            return Ok(Outcome::Done);
        }
        let history = match history::sync(&self.client, &self.revisions, &owner).await? {
            Found::History(history) => history,
            Found::Collision => return self.count_collision(&key, owner.collisions + 1).await,
        };
        let pods: Vec<Arc<Pod>> = claim_all(&self.client, &self.pods, &*set, &selector_of(&set))
            .await?
            .into_iter()
            .filter(|p| ordinal(&set, p).is_some())
            .collect();
        let name_of = |r: &ControllerRevision| r.metadata.name.clone().unwrap_or_default();
        let update = Revision { name: name_of(&history.update), template: spec.template.clone() };
        let known = set.status.as_ref().and_then(|s| s.current_revision.clone());
        let current = known
            .and_then(|n| history.old.iter().find(|r| name_of(r) == n))
            .map_or_else(|| update.clone(), |r| Revision { name: name_of(r), template: history::template_of(r).unwrap_or_default() });
        let now = clock::now();
        let worked = self.execute(&set, plan::plan(&set, &pods, &current, &update, &now)).await;
        let mine: Vec<Arc<Pod>> =
            self.pods.in_namespace(&key.namespace).into_iter().filter(|p| is_controlled_by(&p.metadata, uid(&set.metadata))).collect();
        let status = plan::status(&set, &mine, &current.name, &update.name, &now);
        if set.status.as_ref() != Some(&status) {
            let mut changed = (*set).clone();
            changed.status = Some(status.clone());
            let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
            self.sets.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        worked?;
        let mut live: BTreeSet<String> = mine.iter().map(|p| revision_of(p).to_owned()).collect();
        live.insert(current.name);
        let limit = spec.revision_history_limit.unwrap_or(10);
        history::truncate(&self.client, &self.revisions, &history.old, &live, limit).await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let unripe = min_ready > 0 && status.ready_replicas.unwrap_or(0) > status.available_replicas.unwrap_or(0);
        Ok(if unripe { Outcome::Again(Duration::from_secs(min_ready.unsigned_abs().into())) } else { Outcome::Done })
    }

    async fn execute(&self, set: &StatefulSet, steps: Vec<Step>) -> Result<(), Error> {
        let key = Key::of(set);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for step in steps {
            match step {
                Step::Create(pod, claims) => {
                    for claim in &claims {
                        self.create_claim(set, &key, claim, &pod).await?;
                    }
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    match api.create(&PostParams::default(), &pod).await {
                        Ok(created) => {
                            self.pods.observe(created);
                            let text = format!("create Pod {name} in StatefulSet {} successful", key.name);
                            self.recorder.event(set, EventType::Normal, "SuccessfulCreate", text);
                        }
                        Err(error) if xebec_loops::api_namespace_terminating(&error) => return Ok(()),
                        Err(error) => {
                            let text = format!("create Pod {name} in StatefulSet {} failed error: {}", key.name, api_message(&error));
                            self.recorder.event(set, EventType::Warning, "FailedCreate", text);
                            return Err(error.into());
                        }
                    }
                }
                Step::Delete(pod, why) => {
                    if let Some((reason, text)) = why {
                        self.recorder.event(set, EventType::Warning, reason, text);
                    }
                    let silent = PodWriter { client: &self.client, pods: &self.pods, recorder: &self.recorder, owner: set };
                    silent.delete_as(&pod, |name| format!("delete Pod {name} in StatefulSet {} successful", key.name)).await?;
                }
            }
        }
        Ok(())
    }

    async fn create_claim(&self, set: &StatefulSet, key: &Key, claim: &PersistentVolumeClaim, pod: &Pod) -> Result<(), Error> {
        if self.claims.get(&Key::of(claim)).is_some() {
            return Ok(());
        }
        let name = claim.metadata.name.clone().unwrap_or_default();
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), claim).await {
            Ok(created) => {
                self.claims.observe(created);
                let text = format!("create Claim {name} Pod {pod_name} in StatefulSet {} success", key.name);
                self.recorder.event(set, EventType::Normal, "SuccessfulCreate", text);
                Ok(())
            }
            Err(error) if api_already_exists(&error) => Ok(()),
            Err(error) => {
                let text =
                    format!("create Claim {name} for Pod {pod_name} in StatefulSet {} failed error: {}", key.name, api_message(&error));
                self.recorder.event(set, EventType::Warning, "FailedCreate", text);
                Err(error.into())
            }
        }
    }

    async fn count_collision(&self, key: &Key, collisions: i32) -> Result<Outcome, Error> {
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({ "status": { "collisionCount": collisions } }));
        self.sets.observe(api.patch_status(&key.name, &PatchParams::default(), &patch).await?);
        Err(Error::Retry("revision name is taken by another template".into()))
    }
}
