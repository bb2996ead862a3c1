//! Job: runs pods until enough of them succeeded.

mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use xebec_loops::meta::{controller_reference, deleting};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, Selector, clock, ignore_not_found};

use crate::owned::claim_all;
use crate::replicas::{BURST, PodWriter, pod_from_template};
use crate::setup::{Setup, wake_controller};
use plan::{FINALIZER, INDEX, INDEX_FAILURES, NewPod, Plan};

pub(crate) use plan::is_finished;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    jobs: Arc<Cache<Job>>,
    pods: Arc<Cache<Pod>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        jobs: setup.cache::<Job>(),
        pods: setup.cache::<Pod>(),
        recorder: setup.recorder("job-controller"),
    };
    let Controller { jobs, pods, .. } = controller.clone();
    let queue = setup.control_loop("job", &jobs, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_controller(&pods, &queue, "Job");
    register_orphans(setup, &jobs, &pods);
}

/// Pods whose Job is gone lose the finalizer that waits for its counting.
fn register_orphans(setup: &mut Setup, jobs: &Arc<Cache<Job>>, pods: &Arc<Cache<Pod>>) {
    let (client, jobs, cache) = (setup.client.clone(), jobs.clone(), pods.clone());
    setup.control_loop("job-orphan-pods", pods, 2, move |key| {
        let (client, jobs, cache) = (client.clone(), jobs.clone(), cache.clone());
        async move {
            let Some(pod) = cache.get(&key).filter(|p| p.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)) else {
                return Ok(Outcome::Done);
            };
            let owner = xebec_loops::meta::controller_of(&pod.metadata).filter(|o| o.kind == "Job");
            if let Some(owner) = owner {
                let job_key = Key::new(&*key.namespace, &*owner.name);
                if jobs.get(&job_key).is_some_and(|j| j.metadata.uid.as_deref() == Some(&owner.uid)) {
                    return Ok(Outcome::Done);
                }
                let api: Api<Job> = Api::namespaced(client.clone(), &key.namespace);
                if api.get_opt(&owner.name).await?.is_some_and(|j| j.metadata.uid.as_deref() == Some(&owner.uid)) {
                    return Ok(Outcome::Done);
                }
            }
            release(&client, &cache, &pod).await?;
            Ok(Outcome::Done)
        }
    });
}

async fn release(client: &kube::Client, cache: &Cache<Pod>, pod: &Pod) -> Result<(), Error> {
    let key = Key::of(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let patch = json!({ "metadata": { "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
    match ignore_not_found(api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)? {
        Some(changed) if !changed.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) && !deleting(&changed.metadata) => {
            cache.observe(changed);
        }
        _ => {}
    }
    Ok(())
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(job) = self.jobs.get(&key) else { return Ok(Outcome::Done) };
        let Some(spec) = &job.spec else { return Ok(Outcome::Done) };
        let managed = spec.managed_by.as_deref().is_none_or(|m| m == "kubernetes.io/job-controller");
        if deleting(&job.metadata) || !managed {
            return Ok(Outcome::Done);
        }
        let selector = Selector::from_label_selector(spec.selector.as_ref());
        let pods = claim_all(&self.client, &self.pods, &*job, &selector).await?;
        let plan = plan::plan(&job, &pods, &clock::now());
        // The status first: what is released below must be in the stored list of uncounted pods.
        let changed = job.status.as_ref() != Some(&plan.status);
        if changed {
            let mut changed = (*job).clone();
            changed.status = Some(plan.status.clone());
            let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
            self.jobs.observe(api.replace_status(&key.name, &PostParams::default(), &changed).await?);
            for (warning, reason, text) in &plan.events {
                let type_ = if *warning { EventType::Warning } else { EventType::Normal };
                self.recorder.event(&*job, type_, reason, text.clone());
            }
        }
        self.execute(&job, &plan).await?;
        Ok(plan.again.map_or(Outcome::Done, |s| Outcome::Again(Duration::from_secs_f64(s.max(0.1)))))
    }

    async fn execute(&self, job: &Job, plan: &Plan) -> Result<(), Error> {
        let writer = PodWriter { client: &self.client, pods: &self.pods, recorder: &self.recorder, owner: job };
        for pod in &plan.release {
            release(&self.client, &self.pods, pod).await?;
        }
        for pod in &plan.delete {
            writer.delete(pod).await?;
        }
        for new in plan.create.iter().take(BURST) {
            writer.create(&pod_of(job, new)).await?;
        }
        Ok(())
    }
}

fn pod_of(job: &Job, new: &NewPod) -> Pod {
    let key = Key::of(job);
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pod_from_template(&template, &key.namespace, &key.name, controller_reference(job));
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
    let Some(index) = new.index else { return pod };
    pod.metadata.generate_name = Some(format!("{}-{index}-", key.name));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(INDEX_FAILURES.into(), failures.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", key.name));
    let from_annotation: EnvVar = serde_json::from_value(json!({ "name": "JOB_COMPLETION_INDEX",
        "valueFrom": { "fieldRef": { "fieldPath": format!("metadata.annotations['{INDEX}']") } } }))
    .unwrap_or_default();
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == from_annotation.name) {
            env.push(from_annotation.clone());
        }
    }
    pod
}
