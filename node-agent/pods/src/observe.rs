//! What containerd holds for one pod, as plain values.

use std::collections::HashMap;

use futures::future::{try_join, try_join_all};
use k8s_cri::v1 as cri_api;
use k8s_cri::v1::{ContainerState as CriState, PodSandboxState};
use parking_lot::Mutex;

use crate::cri::Cri;
use crate::error::Error;
use crate::labels;
use crate::termination;

/// A pod's sandboxes and containers, both newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub ready: bool,
    /// Empty for a host-network pod and for a sandbox that is not ready.
    pub ips: Vec<String>,
    pub host_network: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub restart_count: i32,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub run: Run,
    pub image: String,
    pub image_id: String,
    pub hash: String,
    pub log_path: String,
    pub pre_stop: Option<String>,
    pub ports: Option<String>,
    pub grace_seconds: Option<i64>,
}

/// Times are nanoseconds since the epoch, zero when there is none.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    Created,
    Running { started_at: i64 },
    Exited { started_at: i64, finished_at: i64, exit_code: i32, reason: String, message: String },
    Unknown,
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.run, Run::Running { .. })
    }
    /// Running, or in a state from which it may still be running.
    pub fn may_run(&self) -> bool {
        matches!(self.run, Run::Running { .. } | Run::Unknown)
    }
    /// Exit code and finish time of a container that ended.
    pub fn exited(&self) -> Option<(i32, i64)> {
        match &self.run {
            Run::Exited { exit_code, finished_at, .. } => Some((*exit_code, *finished_at)),
            Run::Created | Run::Running { .. } | Run::Unknown => None,
        }
    }
}

impl Observed {
    /// The sandbox the pod runs in, or ran in last.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|s| s.ready).or(self.sandboxes.first())
    }
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|s| s.ready)
    }
    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }
    /// All instances of a container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.name == name)
    }
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(|c| c.may_run())
    }
}

/// Parts that never change once seen, so that they are asked for once.
#[derive(Default)]
pub struct Cache {
    ips: Mutex<HashMap<String, Vec<String>>>,
    exited: Mutex<HashMap<String, Container>>,
}

/// Reads a pod's sandboxes and containers from containerd.
pub async fn observe(cri: &Cri, cache: &Cache, uid: &str) -> Result<Observed, Error> {
    let selector = HashMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
    let sandbox_filter = cri_api::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let container_filter = cri_api::ContainerFilter { label_selector: selector, ..Default::default() };
    let (sandboxes, containers) = try_join(
        cri.list_pod_sandbox(cri_api::ListPodSandboxRequest { filter: Some(sandbox_filter) }),
        cri.list_containers(cri_api::ListContainersRequest { filter: Some(container_filter) }),
    )
    .await?;
    let (mut sandboxes, containers) = try_join(
        try_join_all(sandboxes.items.into_iter().map(|s| read_sandbox(cri, cache, s))),
        try_join_all(containers.containers.into_iter().map(|c| read_container(cri, cache, c))),
    )
    .await?;
    let mut containers: Vec<Container> = containers.into_iter().flatten().collect();
    sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restart_count)));
    cache.exited.lock().retain(|id, _| containers.iter().any(|c| c.id == *id));
    cache.ips.lock().retain(|id, _| sandboxes.iter().any(|s| s.id == *id));
    Ok(Observed { sandboxes, containers })
}

async fn read_sandbox(cri: &Cri, cache: &Cache, listed: cri_api::PodSandbox) -> Result<Sandbox, Error> {
    let ready = listed.state == PodSandboxState::SandboxReady as i32;
    let mut sandbox = Sandbox {
        id: listed.id,
        attempt: listed.metadata.map_or(0, |m| m.attempt),
        created_at: listed.created_at,
        ready,
        ips: Vec::new(),
        host_network: false,
    };
    if !ready {
        return Ok(sandbox);
    }
    if let Some(ips) = cache.ips.lock().get(&sandbox.id) {
        sandbox.ips = ips.clone();
        sandbox.host_network = ips.is_empty();
        return Ok(sandbox);
    }
    let request = cri_api::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
    let status = match cri.pod_sandbox_status(request).await {
        Ok(answer) => answer.status,
        // Removed between the list and here.
        Err(Error::Cri { status, .. }) if status.code() == tonic::Code::NotFound => None,
        Err(e) => return Err(e),
    };
    let Some(status) = status else {
        sandbox.ready = false;
        return Ok(sandbox);
    };
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    sandbox.host_network = options.is_some_and(|o| o.network == cri_api::NamespaceMode::Node as i32);
    if let Some(network) = status.network {
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        sandbox.ips = all.filter(|ip| !ip.is_empty()).collect();
    }
    if sandbox.host_network {
        sandbox.ips.clear();
    }
    if sandbox.host_network || !sandbox.ips.is_empty() {
        cache.ips.lock().insert(sandbox.id.clone(), sandbox.ips.clone());
    }
    Ok(sandbox)
}

async fn read_container(cri: &Cri, cache: &Cache, listed: cri_api::Container) -> Result<Option<Container>, Error> {
    if let Some(known) = cache.exited.lock().get(&listed.id) {
        return Ok(Some(known.clone()));
    }
    let request = cri_api::ContainerStatusRequest { container_id: listed.id.clone(), verbose: false };
    let status = match cri.container_status(request).await {
        Ok(answer) => answer.status,
        Err(Error::Cri { status, .. }) if status.code() == tonic::Code::NotFound => None,
        Err(e) => return Err(e),
    };
    let Some(status) = status else { return Ok(None) };
    let container = convert(listed.pod_sandbox_id, status);
    if container.exited().is_some() {
        cache.exited.lock().insert(container.id.clone(), container.clone());
    }
    Ok(Some(container))
}

fn convert(sandbox_id: String, status: cri_api::ContainerStatus) -> Container {
    let annotation = |key: &str| status.annotations.get(key).cloned();
    let run = match CriState::try_from(status.state) {
        Ok(CriState::ContainerCreated) => Run::Created,
        Ok(CriState::ContainerRunning) => Run::Running { started_at: status.started_at },
        Ok(CriState::ContainerExited) => Run::Exited {
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: termination::message(&status),
        },
        Ok(CriState::ContainerUnknown) | Err(_) => Run::Unknown,
    };
    let metadata = status.metadata.clone().unwrap_or_default();
    let image = annotation(labels::USER_IMAGE).or_else(|| status.image.as_ref().map(|i| i.image.clone())).unwrap_or_default();
    Container {
        name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        restart_count: annotation(labels::RESTART_COUNT).and_then(|c| c.parse().ok()).unwrap_or(metadata.attempt as i32),
        hash: annotation(labels::CONTAINER_HASH).unwrap_or_default(),
        pre_stop: annotation(labels::PRE_STOP_HANDLER),
        ports: annotation(labels::CONTAINER_PORTS),
        grace_seconds: annotation(labels::TERMINATION_GRACE_PERIOD).and_then(|s| s.parse().ok()),
        id: status.id,
        sandbox_id,
        created_at: status.created_at,
        run,
        image,
        image_id: status.image_ref,
        log_path: status.log_path,
    }
}
