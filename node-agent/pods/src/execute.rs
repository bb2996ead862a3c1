//! Executes a plan's steps. Every step can be cut off at any point and tried again.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use kube::api::{Api, DeleteParams, Preconditions};

use crate::error::Error;
use crate::hooks;
use crate::labels;
use crate::objects::api_message;
use crate::observe::{Container, Observed};
use crate::plan::Step;
use crate::recorder::Level;
use crate::resources;
use crate::sandbox;
use crate::spec::{self, Kind};
use crate::volumes;
use crate::worker::Worker;

/// A container always gets that long between SIGTERM and SIGKILL.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// How long processes may take to leave a cgroup after their container is gone.
const CGROUP_TRIES: u32 = 20;
const CGROUP_PAUSE: Duration = Duration::from_millis(50);

impl Worker {
    /// Runs the steps in order. What fails is remembered and planned again.
    pub(crate) async fn execute(&self, pod: &Pod, observed: &Observed, steps: &[Step]) {
        for step in steps {
            match step {
                Step::SetUp { sandbox } => self.set_up(pod, *sandbox).await,
                Step::Start { name, kind, restart_count } => self.start(pod, observed, name, *kind, *restart_count).await,
                Step::Kill { id, name, kind, message, grace } => {
                    let Some(container) = observed.containers.iter().find(|c| c.id == *id) else { continue };
                    self.node.recorder.container(pod, *kind, name, Level::Normal, "Killing", message.clone());
                    self.stop_container(pod, observed, container, grace.unwrap_or_else(|| spec::grace_seconds(pod))).await;
                }
                Step::StopPod { grace } => self.stop_pod(pod, observed, *grace).await,
                Step::RemoveContainer { id, log_path } => self.remove_container(id, log_path).await,
                Step::RemoveSandbox { id } => self.remove_sandbox(id).await,
                Step::TearDown => self.tear_down(pod).await,
                Step::DeleteFromApi => self.delete_from_api(pod).await,
                Step::Forget => self.forget(pod, observed).await,
            }
        }
    }

    async fn set_up(&self, pod: &Pod, attempt: Option<u32>) {
        let prepared = async {
            let place = self.node.place(pod, &[]);
            volumes::prepare(&self.node.objects, &self.node.config.data_dir, pod, &place).await
        };
        let sandbox = async {
            match attempt {
                Some(attempt) => self.run_sandbox(pod, attempt).await,
                None => Ok(()),
            }
        };
        let (prepared, sandbox) = tokio::join!(prepared, sandbox);
        let mut failed = false;
        match prepared {
            Ok(volumes) => {
                *self.volumes.lock() = volumes;
                self.memory.lock().volumes_ready = true;
            }
            Err(errors) => {
                failed = true;
                self.volume_errors(pod, &errors);
            }
        }
        if let Err(message) = sandbox {
            failed = true;
            self.node.recorder.pod(pod, Level::Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"));
        }
        let mut failures = self.sandbox_failures.lock();
        *failures = if failed { *failures + 1 } else { 0 };
        let mut memory = self.memory.lock();
        if failed {
            let delay = SignedDuration::from_millis((500i64 << (*failures).min(5)).min(10_000));
            memory.retry_at.insert(String::new(), later(delay));
        } else {
            memory.retry_at.remove("");
        }
    }

    async fn run_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(), String> {
        let log_directory = self.node.log_directory(pod);
        std::fs::create_dir_all(&log_directory).map_err(|e| format!("{}: {e}", log_directory.display()))?;
        let cgroup = resources::qos(pod).cgroup(&self.uid);
        self.node.cgroups.create_pod(&cgroup, resources::pod_cgroup(pod)).map_err(|e| e.to_string())?;
        let config = self.sandbox_config(pod, attempt)?;
        let runtime_handler = String::new();
        let answer = self.node.cri.run_pod_sandbox(cri_api::RunPodSandboxRequest { config: Some(config), runtime_handler }).await;
        let id = answer.map_err(|e| rpc_message(&e))?.pod_sandbox_id;
        self.node.owners.lock().insert(id, self.uid.clone());
        Ok(())
    }

    pub(crate) fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<cri_api::PodSandboxConfig, String> {
        let host = spec::host_name(pod, &self.node.config.cluster_domain)?;
        let inputs = sandbox::Inputs {
            attempt,
            hostname: host.kernel,
            dns: self.node.dns(pod),
            log_directory: self.node.log_directory(pod).to_string_lossy().into_owned(),
            kubepods: self.node.cgroups.kubepods(),
        };
        Ok(sandbox::config(pod, inputs))
    }

    /// Every container at once, sidecars after the others in reverse order, then the sandboxes; all
    /// of it within the grace.
    async fn stop_pod(&self, pod: &Pod, observed: &Observed, grace: i64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(grace.max(0) as u64);
        let mut sidecars = Vec::new();
        let mut others = Vec::new();
        for container in observed.containers.iter().filter(|c| c.may_run()) {
            let kind = spec::container(pod, &container.name).map_or(Kind::Regular, |(kind, _)| kind);
            self.node.recorder.container(
                pod,
                kind,
                &container.name,
                Level::Normal,
                "Killing",
                format!("Stopping container {}", container.name),
            );
            if kind == Kind::Sidecar { sidecars.push(container) } else { others.push(container) }
        }
        futures::future::join_all(others.into_iter().map(|c| self.stop_container(pod, observed, c, grace))).await;
        let order = |c: &&Container| spec::init_containers(pod).iter().position(|i| i.name == c.name);
        sidecars.sort_by_key(|c| std::cmp::Reverse(order(c)));
        for container in sidecars {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now()).as_secs() as i64;
            self.stop_container(pod, observed, container, left).await;
        }
        for sandbox in observed.sandboxes.iter().filter(|s| s.ready) {
            let request = cri_api::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(error) = self.node.cri.stop_pod_sandbox(request).await {
                let message = format!("error killing pod: failed to \"KillPodSandbox\" for \"{}\": {}", self.uid, rpc_message(&error));
                self.node.recorder.pod(pod, Level::Warning, "FailedKillPod", message);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// preStop, SIGTERM, SIGKILL, all within `grace` seconds (a container gets two at least).
    pub(crate) async fn stop_container(&self, pod: &Pod, observed: &Observed, container: &Container, grace: i64) {
        let started = tokio::time::Instant::now();
        let total = Duration::from_secs(grace.max(0) as u64);
        let from_spec = spec::container(pod, &container.name).and_then(|(_, c)| c.lifecycle.clone()).and_then(|l| l.pre_stop);
        let from_label = || container.pre_stop.as_deref().and_then(|text| serde_json::from_str::<LifecycleHandler>(text).ok());
        let hook = from_spec.or_else(from_label).filter(|_| grace > 0 && container.is_running());
        if let Some(hook) = hook.filter(|_| self.hooked.lock().insert(container.id.clone())) {
            let target = hooks::Target {
                cri: &self.node.cri,
                pod,
                container_id: &container.id,
                name: &container.name,
                pod_ip: self.pod_ip(pod, observed),
            };
            match tokio::time::timeout(total, hooks::run(&target, &hook)).await {
                Ok(Ok(())) => {}
                Ok(Err(message)) => {
                    let kind = spec::container(pod, &container.name).map_or(Kind::Regular, |(kind, _)| kind);
                    self.node.recorder.container(
                        pod,
                        kind,
                        &container.name,
                        Level::Warning,
                        "FailedPreStopHook",
                        format!("PreStopHook failed: {message}"),
                    );
                }
                Err(_) => {
                    tracing::warn!(pod = %spec::full_name(pod), container = container.name, "preStop hook did not end within the grace period")
                }
            }
        }
        let left = total.saturating_sub(started.elapsed()).max(MIN_GRACE);
        if let Err(error) = self.node.cri.stop_container(&container.id, left).await
            && !is_not_found(&error)
        {
            tracing::warn!(pod = %spec::full_name(pod), container = container.name, %error, "container not stopped");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn remove_container(&self, id: &str, log_path: &str) {
        match self.node.cri.remove_container(cri_api::RemoveContainerRequest { container_id: id.to_owned() }).await {
            Err(error) if !is_not_found(&error) => {
                tracing::warn!(id, %error, "container not removed");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return;
            }
            Ok(_) | Err(_) => {}
        }
        remove_logs(Path::new(log_path));
    }

    async fn remove_sandbox(&self, id: &str) {
        let request = cri_api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        if let Err(error) = self.node.cri.remove_pod_sandbox(request).await
            && !is_not_found(&error)
        {
            tracing::warn!(id, %error, "sandbox not removed");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Volumes and cgroup go; termination messages and logs stay until the pod is forgotten.
    async fn tear_down(&self, pod: &Pod) {
        let data_dir = self.node.config.data_dir.clone();
        let uid = self.uid.clone();
        let result = tokio::task::spawn_blocking(move || volumes::tear_down(&data_dir, &uid)).await;
        if let Ok(Err(error)) = result {
            tracing::warn!(pod = %spec::full_name(pod), %error, "volumes not removed");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        }
        remove_cgroup(&self.node.cgroups, &resources::qos(pod).cgroup(&self.uid)).await;
        let mut memory = self.memory.lock();
        memory.torn_down = true;
        memory.volumes_ready = false;
    }

    async fn delete_from_api(&self, pod: &Pod) {
        self.flush_status().await;
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), spec::namespace(pod));
        let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        match api.delete(spec::name(pod), &params).await {
            Ok(_) => self.memory.lock().deleted = true,
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => self.memory.lock().deleted = true,
            Err(error) => {
                tracing::warn!(pod = %spec::full_name(pod), error = api_message(&error), "final delete refused");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn forget(&self, pod: &Pod, observed: &Observed) {
        forget(&self.node, observed).await;
        let _ = std::fs::remove_dir_all(self.node.log_directory(pod));
        let data_dir = self.node.config.data_dir.clone();
        let uid = self.uid.clone();
        let _ = tokio::task::spawn_blocking(move || volumes::remove_pod_dir(&data_dir, &uid)).await;
    }
}

/// Removes all records of a pod from containerd.
pub(crate) async fn forget(node: &crate::node_state::NodeState, observed: &Observed) {
    for container in &observed.containers {
        let request = cri_api::RemoveContainerRequest { container_id: container.id.clone() };
        if let Err(error) = node.cri.remove_container(request).await
            && !is_not_found(&error)
        {
            tracing::warn!(id = container.id, %error, "container not removed");
        }
    }
    for sandbox in &observed.sandboxes {
        let request = cri_api::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        if let Err(error) = node.cri.remove_pod_sandbox(request).await
            && !is_not_found(&error)
        {
            tracing::warn!(id = sandbox.id, %error, "sandbox not removed");
        }
    }
}

/// Processes leave a moment after runc reports them dead.
pub(crate) async fn remove_cgroup(cgroups: &crate::cgroups::Cgroups, relative: &str) {
    for attempt in 1..=CGROUP_TRIES {
        match cgroups.remove_pod(relative) {
            Ok(()) => return,
            Err(error) if attempt == CGROUP_TRIES => tracing::warn!(cgroup = relative, %error, "pod cgroup not removed"),
            Err(_) => tokio::time::sleep(CGROUP_PAUSE).await,
        }
    }
}

/// A container's log and what rotation left of it.
fn remove_logs(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(name)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Cri { status, .. } if status.code() == tonic::Code::NotFound)
}

/// A CRI error as kubelet's events quote it.
pub(crate) fn rpc_message(error: &Error) -> String {
    match error {
        Error::Cri { status, .. } => format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
        other => other.to_string(),
    }
}

pub(crate) fn later(delay: SignedDuration) -> Timestamp {
    Timestamp::now().checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// The pod a record in containerd belongs to.
pub(crate) fn owner_uid(labels: &std::collections::HashMap<String, String>) -> Option<&String> {
    labels.get(labels::POD_UID)
}
