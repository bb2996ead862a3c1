//! DaemonSet: one pod on every node that fits.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use xebec_loops::meta::{controller_reference, deleting, label};
use xebec_loops::pod::phase;
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, Selector, clock};

use crate::history::{self, Found, HASH_LABEL, Owner};
use crate::owned::claim_all;
use crate::replicas::{BURST, PodWriter, pod_from_template};
use crate::setup::{Setup, wake_controller};

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    sets: Arc<Cache<DaemonSet>>,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    revisions: Arc<Cache<ControllerRevision>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        sets: setup.cache::<DaemonSet>(),
        pods: setup.cache::<Pod>(),
        nodes: setup.cache::<Node>(),
        revisions: setup.cache::<ControllerRevision>(),
        recorder: setup.recorder("daemonset-controller"),
    };
    let Controller { sets, pods, nodes, revisions, .. } = controller.clone();
    let queue = setup.control_loop("daemonset", &sets, 2, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&pods, &queue, "DaemonSet");
    wake_controller(&revisions, &queue, "DaemonSet");
    nodes.on_change(move |c| {
        let relevant = match (c.old, c.new) {
            (Some(old), Some(new)) => {
                let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
                old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
            }
            _ => true,
        };
        if relevant {
            sets.keys().into_iter().for_each(|k| queue.add(k));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let selector = Selector::from_label_selector(Some(&spec.selector));
        if selector.is_everything() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*set, EventType::Warning, "SelectingAll", text);
            return Ok(Outcome::Done);
        }
        if deleting(&set.metadata) {
            return Ok(Outcome::Done);
        }
        let owner = Owner {
            namespace: &key.namespace,
            name: &key.name,
            reference: controller_reference(&*set),
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0),
        };
        let history = match history::sync(&self.client, &self.revisions, &owner).await? {
            Found::History(history) => history,
            Found::Collision => return self.count_collision(&key, &set).await,
        };
        let hash = history::hash_of(&history.update);
        let template = plan::pod_template(&set, &hash);
        let (nodes, now) = (self.nodes.list(), clock::now());
        let pods = claim_all(&self.client, &self.pods, &*set, &selector).await?;
        let plan = plan::plan(&set, &template, &nodes, &pods, &hash, &now);
        let worked = self.execute(&set, &template, plan).await;

        let pods: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|p| xebec_loops::meta::is_controlled_by(&p.metadata, &owner.reference.uid))
            .collect();
        let status = plan::status(&set, &template, &nodes, &pods, &hash, &now);
        if set.status.as_ref() != Some(&status) {
            let mut changed = (*set).clone();
            changed.status = Some(status.clone());
            let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
            self.sets.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
        }
        worked?;
        let live: BTreeSet<String> = pods.iter().filter_map(|p| label(&p.metadata, HASH_LABEL).map(str::to_owned)).collect();
        let limit = spec.revision_history_limit.unwrap_or(10);
        history::truncate(&self.client, &self.revisions, &history.old, &live, limit).await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let unripe = min_ready > 0 && status.number_ready > status.number_available.unwrap_or(0);
        Ok(if unripe { Outcome::Again(Duration::from_secs(min_ready.unsigned_abs().into())) } else { Outcome::Done })
    }

    async fn execute(
        &self,
        set: &DaemonSet,
        template: &k8s_openapi::api::core::v1::PodTemplateSpec,
        plan: plan::Plan,
    ) -> Result<(), Error> {
        let key = Key::of(set);
        let writer = PodWriter { client: &self.client, pods: &self.pods, recorder: &self.recorder, owner: set };
        let any_failed = !plan.failed.is_empty();
        for pod in &plan.failed {
            let (name, node) = (pod.metadata.name.as_deref().unwrap_or_default(), plan::target_node(pod).unwrap_or_default());
            if phase(pod) == "Failed" {
                let text = format!("Found failed daemon pod {}/{name} on node {node}, will try to kill it", key.namespace);
                self.recorder.event(set, EventType::Warning, "FailedDaemonPod", text);
            } else {
                let text = format!("Found succeeded daemon pod {}/{name} on node {node}, will try to delete it", key.namespace);
                self.recorder.event(set, EventType::Normal, "SucceededDaemonPod", text);
            }
        }
        for pod in plan.delete.iter().chain(&plan.failed).take(BURST) {
            writer.delete(pod).await?;
        }
        for node in plan.create.iter().take(BURST) {
            let pinned = plan::pinned(template.clone(), node);
            writer.create(&pod_from_template(&pinned, &key.namespace, &key.name, controller_reference(set))).await?;
        }
        if any_failed {
            // Back-off: a pod that fails at once is not made anew at once.
            return Err(Error::Retry("deleted failed daemon pods".into()));
        }
        Ok(())
    }

    async fn count_collision(&self, key: &Key, set: &DaemonSet) -> Result<Outcome, Error> {
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1;
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({ "status": { "collisionCount": collisions } }));
        self.sets.observe(api.patch_status(&key.name, &PatchParams::default(), &patch).await?);
        Err(Error::Retry("revision name is taken by another template".into()))
    }
}
