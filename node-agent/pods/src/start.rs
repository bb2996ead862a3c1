//! Starting one container: image, environment, mounts, create, start, postStart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};

use crate::backoff::KUBELET;
use crate::container;
use crate::env::{self, Sources};
use crate::execute::{later, rpc_message};
use crate::hooks;
use crate::hosts;
use crate::memory::{Waiting, backoff_key};
use crate::observe::Observed;
use crate::recorder::Level;
use crate::spec::{self, Kind};
use crate::volumes;
use crate::worker::Worker;

/// Until a container whose configuration cannot be made is tried again.
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(5);
/// A start waits that long for the first list of Services.
const SERVICES_WAIT: Duration = Duration::from_secs(5);

/// A container's waiting reason and message.
struct Refused {
    reason: &'static str,
    message: String,
}

impl Worker {
    pub(crate) async fn start(&self, pod: &Pod, observed: &Observed, name: &str, kind: Kind, restart_count: i32) {
        let Some((_, spec)) = spec::container(pod, name) else { return };
        let secrets = self.pull_secrets(pod).await;
        let image = match self.node.images.ensure(&self.node.cri, &self.node.recorder, pod, kind, &spec, &secrets).await {
            Ok(image) => image,
            Err(failed) => {
                let mut memory = self.memory.lock();
                memory.waiting.insert(name.to_owned(), failed.waiting);
                memory.retry_at.insert(name.to_owned(), failed.retry_at);
                return;
            }
        };
        // Counted now: whatever fails from here on is a start that failed.
        if let Some((_, finished_at)) = observed.latest(name).and_then(|c| c.exited()) {
            let now = Timestamp::now();
            let event = Timestamp::from_nanosecond(i128::from(finished_at)).unwrap_or(now);
            self.memory.lock().crash_backoff.next(KUBELET, &backoff_key(name, &spec::container_hash(&spec)), event, now);
        }
        match self.create_and_start(pod, observed, &spec, kind, restart_count, image).await {
            Ok(()) => {
                let mut memory = self.memory.lock();
                memory.waiting.remove(name);
                memory.retry_at.remove(name);
            }
            Err(refused) => {
                let mut memory = self.memory.lock();
                memory.waiting.insert(name.to_owned(), Waiting { reason: refused.reason.into(), message: refused.message });
                memory.retry_at.insert(name.to_owned(), later(CONFIG_RETRY));
            }
        }
    }

    async fn create_and_start(
        &self,
        pod: &Pod,
        observed: &Observed,
        container: &Container,
        kind: Kind,
        restart_count: i32,
        image: crate::images::Image,
    ) -> Result<(), Refused> {
        let event = |level, reason, message: String| self.node.recorder.container(pod, kind, &container.name, level, reason, message);
        let sandbox = observed.ready_sandbox().ok_or_else(|| Refused { reason: "ContainerCreating", message: String::new() })?;
        let config_error = |message: String| {
            event(Level::Warning, "Failed", format!("Error: {message}"));
            Refused { reason: "CreateContainerConfigError", message }
        };
        let config = self.container_config(pod, observed, container, restart_count, image).await.map_err(config_error)?;
        let sandbox_config = self.sandbox_config(pod, sandbox.attempt).map_err(config_error)?;
        fs::create_dir_all(self.node.log_directory(pod).join(&container.name)).map_err(|e| config_error(e.to_string()))?;
        let request = cri_api::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.node.cri.create_container(request).await.map_err(|e| {
            let message = rpc_message(&e);
            event(Level::Warning, "Failed", format!("Error: {message}"));
            Refused { reason: "CreateContainerError", message: bare(&message) }
        })?;
        let id = created.container_id;
        self.node.owners.lock().insert(id.clone(), self.uid.clone());
        event(Level::Normal, "Created", "Container created".into());
        self.node.cri.start_container(cri_api::StartContainerRequest { container_id: id.clone() }).await.map_err(|e| {
            let message = rpc_message(&e);
            event(Level::Warning, "Failed", format!("Error: {message}"));
            Refused { reason: "RunContainerError", message: bare(&message) }
        })?;
        event(Level::Normal, "Started", "Container started".into());
        let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        if let Some(hook) = hook {
            let target =
                hooks::Target { cri: &self.node.cri, pod, container_id: &id, name: &container.name, pod_ip: self.pod_ip(pod, observed) };
            if let Err(message) = hooks::run(&target, hook).await {
                event(Level::Warning, "FailedPostStartHook", format!("PostStartHook failed: {message}"));
                event(Level::Normal, "Killing", "FailedPostStartHook".into());
                if let Err(error) = self.node.cri.stop_container(&id, Duration::from_secs(spec::grace_seconds(pod) as u64)).await {
                    tracing::warn!(pod = %spec::full_name(pod), container = container.name, %error, "container not stopped after its postStart hook failed");
                }
                return Err(Refused { reason: "PostStartHookError", message });
            }
        }
        Ok(())
    }

    async fn container_config(
        &self,
        pod: &Pod,
        observed: &Observed,
        container: &Container,
        restart_count: i32,
        image: crate::images::Image,
    ) -> Result<cri_api::ContainerConfig, String> {
        let ips = observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
        let place = self.node.place(pod, &ips);
        let sources = self.sources(pod, container).await?;
        // A list that does not come must not hold the pod for ever: it then starts without links.
        let _ = tokio::time::timeout(SERVICES_WAIT, self.node.services.wait_until_ready()).await;
        let services = self.node.services.state();
        let variables = env::service_variables(pod, services.iter().map(Arc::as_ref));
        let env = env::environment(pod, container, &sources, &variables, &place)?;
        let mut mounts = volumes::container_mounts(&self.node.config.data_dir, pod, container, &self.volumes.lock(), &env)?;
        mounts.extend(self.hosts_mount(pod, container, &place.pod_ips)?);
        mounts.extend(self.termination_mount(container)?);
        let target = spec::ephemeral_target(pod, &container.name).and_then(|t| observed.latest(t)).map(|c| c.id.clone());
        let inputs = container::Inputs {
            restart_count,
            image_ref: image.reference,
            image_user: image.user,
            env,
            mounts,
            memory_capacity: self.node.memory_capacity(),
            target_id: target.as_deref(),
        };
        container::config(pod, container, inputs)
    }

    async fn sources(&self, pod: &Pod, container: &Container) -> Result<Sources, String> {
        let (config_maps, secrets) = env::references(container);
        let namespace = spec::namespace(pod);
        let objects = &self.node.objects;
        let maps = join_all(config_maps.into_iter().map(|name| async move {
            let found = objects.config_map(namespace, &name).await;
            found.map(|f| (name, f.map(|m| m.as_ref().clone())))
        }));
        let secrets = join_all(secrets.into_iter().map(|name| async move {
            let found = objects.secret(namespace, &name).await;
            found.map(|f| (name, f.map(|s| s.as_ref().clone())))
        }));
        let (maps, secrets) = tokio::join!(maps, secrets);
        Ok(Sources { config_maps: maps.into_iter().collect::<Result<_, _>>()?, secrets: secrets.into_iter().collect::<Result<_, _>>()? })
    }

    async fn pull_secrets(&self, pod: &Pod) -> Vec<Secret> {
        let mut found = Vec::new();
        for reference in spec::spec(pod).image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty()) {
            match self.node.objects.secret(spec::namespace(pod), &reference.name).await {
                Ok(Some(secret)) => found.push(secret.as_ref().clone()),
                Ok(None) | Err(_) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.node.recorder.pod(pod, Level::Warning, "FailedToRetrieveImagePullSecret", message);
                }
            }
        }
        found
    }

    /// The pod's hosts file, unless the container mounts its own.
    fn hosts_mount(&self, pod: &Pod, container: &Container, ips: &[String]) -> Result<Option<cri_api::Mount>, String> {
        let own = container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == "/etc/hosts");
        if own || ips.is_empty() {
            return Ok(None);
        }
        let host = spec::host_name(pod, &self.node.config.cluster_domain)?;
        let node_hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = hosts::hosts_file(pod, ips, &host, &node_hosts);
        let dir = volumes::pod_dir(&self.node.config.data_dir, &self.uid);
        let path = dir.join("etc-hosts");
        let written = fs::create_dir_all(&dir).and_then(|()| {
            // In place: containers that run hold a mount of this very file.
            if fs::read_to_string(&path).is_ok_and(|old| old == text) { Ok(()) } else { fs::write(&path, text) }
        });
        written
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Some(file_mount("/etc/hosts", path)))
    }

    /// A fresh file for the termination message of this instance.
    fn termination_mount(&self, container: &Container) -> Result<Option<cri_api::Mount>, String> {
        let target = container::termination_path(container);
        if target.is_empty() {
            return Ok(None);
        }
        let dir = volumes::pod_dir(&self.node.config.data_dir, &self.uid).join("containers").join(&container.name);
        let path = dir.join(format!("{:08x}", rand::random::<u32>()));
        let made = fs::create_dir_all(&dir).and_then(|()| fs::File::create_new(&path)).and_then(|file| {
            // Whatever user the container runs as may write it.
            file.set_permissions(fs::Permissions::from_mode(0o666))
        });
        made.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Some(file_mount(target, path)))
    }
}

fn file_mount(container_path: &str, host: PathBuf) -> cri_api::Mount {
    cri_api::Mount { container_path: container_path.to_owned(), host_path: host.to_string_lossy().into_owned(), ..Default::default() }
}

/// gRPC's description without the code before it, as the status shows it.
fn bare(message: &str) -> String {
    match message.split_once(" desc = ") {
        Some((_, text)) => text.to_owned(),
        None => message.to_owned(),
    }
}
