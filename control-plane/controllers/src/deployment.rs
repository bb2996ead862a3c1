//! Deployment: moves pods from one template to the next by sizing ReplicaSets.

mod hash;
mod plan;
mod status;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use xebec_loops::meta::{controller_of, deleting, is_controlled_by, uid};
use xebec_loops::pod::is_terminal;
use xebec_loops::{
    Cache, Error, EventType, Key, Outcome, Queue, Recorder, Selector, api_already_exists, api_message, api_namespace_terminating, clock,
    ignore_not_found,
};

pub(crate) use hash::template_hash;
pub(crate) use view::scaled;

use crate::owned::claim_all;
use crate::setup::{Setup, sides, wake_controller};
use plan::{Step, plan};
use status::{News, status};
use view::{View, wanted};

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    deployments: Arc<Cache<Deployment>>,
    sets: Arc<Cache<ReplicaSet>>,
    pods: Arc<Cache<Pod>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        deployments: setup.cache::<Deployment>(),
        sets: setup.cache::<ReplicaSet>(),
        pods: setup.cache::<Pod>(),
        recorder: setup.recorder("deployment-controller"),
    };
    let (deployments, sets, pods) = (controller.deployments.clone(), controller.sets.clone(), controller.pods.clone());
    let queue = setup.control_loop("deployment", &deployments, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&sets, &queue, "Deployment");
    wake_adopters(&sets, deployments, &queue);
    // Recreate waits for the last old pod to be gone.
    let to = queue;
    pods.on_change(move |c| {
        let Some(old) = c.old.filter(|_| c.new.is_none_or(|n| is_terminal(n))) else { return };
        let namespace = old.metadata.namespace.clone().unwrap_or_default();
        let Some(owner) = controller_of(&old.metadata).filter(|o| o.kind == "ReplicaSet") else { return };
        let set = sets.get(&Key::new(namespace.clone(), owner.name.clone()));
        if let Some(owner) = set.as_ref().and_then(|s| controller_of(&s.metadata)) {
            to.add(Key::new(namespace, owner.name.clone()));
        }
    });
}

fn wake_adopters(sets: &Arc<Cache<ReplicaSet>>, deployments: Arc<Cache<Deployment>>, queue: &Arc<Queue<Key>>) {
    let to = queue.clone();
    sets.on_change(move |c| {
        for set in sides(c).filter(|s| controller_of(&s.metadata).is_none() && s.metadata.labels.is_some()) {
            for d in deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or_default()) {
                if selector_of(&d).matches(set.metadata.labels.as_ref()) {
                    to.add(Key::of(&*d));
                }
            }
        }
    });
}

fn selector_of(deployment: &Deployment) -> Selector {
    Selector::from_label_selector(deployment.spec.as_ref().map(|s| &s.selector))
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(Outcome::Done) };
        let selector = selector_of(&deployment);
        if selector.is_everything() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*deployment, EventType::Warning, "SelectingAll", text);
            return Ok(Outcome::Done);
        }
        let sets = claim_all(&self.client, &self.sets, &*deployment, &selector).await?;
        let Some(view) = View::new(deployment, sets) else { return Ok(Outcome::Done) };
        let mut news = News::None;
        let mut failure = None;
        if !deleting(&view.deployment.metadata) {
            for step in plan(&view, self.has_old_pods(&view)) {
                match self.execute(&view, step).await {
                    Ok(told) => news = told.unwrap_or(news),
                    Err(error) => {
                        if let (Error::Api(e), false) = (&error, error.is_conflict()) {
                            news = News::Failed(api_message(e));
                        }
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        let again = self.write_status(&key, &news).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(again.map_or(Outcome::Done, |s| Outcome::Again(Duration::from_secs_f64(s.max(1.0))))),
        }
    }

    fn has_old_pods(&self, view: &View) -> bool {
        let namespace = view.deployment.metadata.namespace.as_deref().unwrap_or_default();
        let pods = self.pods.in_namespace(namespace);
        pods.iter().any(|p| !is_terminal(p) && view.old.iter().any(|s| is_controlled_by(&p.metadata, uid(&s.metadata))))
    }

    async fn execute(&self, view: &View, step: Step) -> Result<Option<News>, Error> {
        let deployment = &view.deployment;
        let key = Key::of(&**deployment);
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        match step {
            Step::Create(set) => return self.create(view, &api, *set).await,
            Step::Update { set, to } => {
                let (from, size) = (wanted(&set), wanted(&to));
                let name = set.metadata.name.clone().unwrap_or_default();
                self.sets.observe(api.replace(&name, &PostParams::default(), &to).await?);
                if from != size {
                    let direction = if size > from { "up" } else { "down" };
                    let text = format!("Scaled {direction} replica set {name} from {from} to {size}");
                    self.recorder.event(&**deployment, EventType::Normal, "ScalingReplicaSet", text);
                }
            }
            Step::Delete(set) => {
                let exactly = Preconditions { uid: set.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::background() };
                let set_key = Key::of(&*set);
                if let Some(answer) = ignore_not_found(api.delete(&set_key.name, &params).await)? {
                    match answer.left() {
                        Some(left) if deleting(&left.metadata) => self.sets.observe(left),
                        _ => self.sets.observe_gone(&set_key, uid(&set.metadata)),
                    }
                }
            }
            Step::SetRevision(revision) => {
                let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
                let patch = json!({ "metadata": { "annotations": { view::REVISION: revision } } });
                self.deployments.observe(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?);
            }
        }
        Ok(None)
    }

    async fn create(&self, view: &View, api: &Api<ReplicaSet>, set: ReplicaSet) -> Result<Option<News>, Error> {
        let deployment = &view.deployment;
        let name = set.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                let size = wanted(&created);
                self.sets.observe(created);
                if size > 0 {
                    let text = format!("Scaled up replica set {name} from 0 to {size}");
                    self.recorder.event(&**deployment, EventType::Normal, "ScalingReplicaSet", text);
                }
                Ok(Some(News::Created(name)))
            }
            Err(error) if api_namespace_terminating(&error) => Ok(None),
            Err(error) if api_already_exists(&error) => {
                let there = api.get(&name).await?;
                let template = there.spec.as_ref().and_then(|s| s.template.as_ref());
                let same = template.is_some_and(|t| hash::same_template(t, &view.spec.template));
                if is_controlled_by(&there.metadata, uid(&deployment.metadata)) && same {
                    self.sets.observe(there);
                    return Ok(None);
                }
                // The name belongs to another template: count the collision, so that the next hash differs.
                let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1;
                let mut changed = (**deployment).clone();
                changed.status.get_or_insert_default().collision_count = Some(collisions);
                let key = Key::of(&**deployment);
                let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
                self.deployments.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
                Err(Error::Retry(format!("replica set name {name} is taken by another template")))
            }
            Err(error) => {
                let text = format!("Failed to create new replica set \"{name}\": {}", api_message(&error));
                self.recorder.event(&**deployment, EventType::Warning, "ReplicaSetCreateError", text);
                Err(error.into())
            }
        }
    }

    /// Writes the status as the caches have it now, after this run's steps.
    async fn write_status(&self, key: &Key, news: &News) -> Result<Option<f64>, Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(None) };
        let owner = uid(&deployment.metadata).to_owned();
        let sets = self.sets.in_namespace(&key.namespace);
        let sets = sets.into_iter().filter(|s| is_controlled_by(&s.metadata, &owner)).collect();
        let Some(view) = View::new(deployment.clone(), sets) else { return Ok(None) };
        let (status, again) = status(&view, news, &clock::now());
        if deployment.status.as_ref() != Some(&status) {
            let mut changed = (*deployment).clone();
            changed.status = Some(status);
            let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
            self.deployments.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        Ok(again)
    }
}
