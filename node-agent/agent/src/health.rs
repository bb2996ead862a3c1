//! Whether the node can take pods, and why not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use xebec_dataplane::Dataplane;
use xebec_pods::PodManager;

use crate::{Config, Error};

/// How often containerd is asked while all is well.
const POLL: Duration = Duration::from_secs(5);
/// How often while something is missing: right after the start, when it is about to come, and later.
const POLL_STARTING: Duration = Duration::from_millis(50);
const POLL_NOT_READY: Duration = Duration::from_secs(1);
const STARTING: Duration = Duration::from_secs(30);

/// How long a node that was registered before may take to become ready before it says that it is not.
const SETTLE: Duration = Duration::from_secs(10);

/// What the parts of the agent know of each other.
pub(crate) struct Health {
    pods: RwLock<Option<Arc<PodManager>>>,
    /// What keeps the node from being ready, in words for an operator; empty when ready.
    pub problems: watch::Sender<Vec<String>>,
    /// The container runtime as `nodeInfo` names it, and the images it has.
    pub runtime: RwLock<Runtime>,
}

/// What containerd says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Runtime {
    /// `containerd://1.7.0`; empty before containerd answered.
    pub version: String,
    pub images: Vec<xebec_pods::Image>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            pods: RwLock::default(),
            problems: watch::Sender::new(vec!["container runtime is down".to_owned()]),
            runtime: RwLock::default(),
        }
    }
}

impl Health {
    /// Waits until the node is found ready, or for [`SETTLE`]: a restart of the agent alone must not show as a node that is not
    /// ready, for which the control plane takes the node's pods out of their Services.
    pub async fn settled(&self) {
        let mut problems = self.problems.subscribe();
        // Neither outcome is an error: the sender lives as long as this.
        let _ = tokio::time::timeout(SETTLE, problems.wait_for(Vec::is_empty)).await;
    }

    /// The pod manager once containerd has answered.
    pub fn pods(&self) -> Option<Arc<PodManager>> {
        self.pods.read().clone()
    }
}

/// Connects to containerd, runs the pod manager, and keeps [`Health`] current.
pub(crate) async fn watch(
    config: Arc<Config>,
    client: kube::Client,
    health: Arc<Health>,
    dataplane: Arc<Dataplane>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let started = Instant::now();
    let mut said = None;
    let pods = loop {
        let error = match PodManager::start(config.pods(), client.clone()).await {
            Ok(pods) => break pods,
            Err(error) => error,
        };
        let message = error.to_string();
        if said.as_ref() != Some(&message) {
            warn!("{message}");
            said = Some(message);
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause(false, started)) => {}
        }
    };
    *health.pods.write() = Some(pods.clone());
    let runs = pods.run(cancel.clone());
    let watches = poll(&pods, &health, &dataplane, &cancel);
    let (result, ()) = tokio::join!(runs, watches);
    Ok(result?)
}

fn pause(ready: bool, started: Instant) -> Duration {
    match ready {
        true => POLL,
        false if started.elapsed() < STARTING => POLL_STARTING,
        false => POLL_NOT_READY,
    }
}

async fn poll(pods: &Arc<PodManager>, health: &Health, dataplane: &Dataplane, cancel: &CancellationToken) {
    let started = Instant::now();
    loop {
        let problems = problems(pods, health, dataplane).await;
        let ready = problems.is_empty();
        let changed = health.problems.send_if_modified(|old| {
            let changed = *old != problems;
            *old = problems.clone();
            changed
        });
        if changed && ready {
            info!("node is ready");
        } else if changed {
            warn!("node is not ready: {}", problems.join("; "));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause(ready, started)) => {}
        }
    }
}

/// kubelet's wording where it has one.
async fn problems(pods: &Arc<PodManager>, health: &Health, dataplane: &Dataplane) -> Vec<String> {
    let mut problems = Vec::new();
    match pods.runtime().await {
        Ok(runtime) => {
            problems.extend(runtime.problems);
            let images = pods.images().await.unwrap_or_default();
            let runtime = Runtime { version: format!("{}://{}", runtime.name, runtime.version), images };
            if *health.runtime.read() != runtime {
                *health.runtime.write() = runtime;
            }
        }
        Err(error) => problems.push(format!("container runtime is down: {error}")),
    }
    if let Err(problem) = pods.healthy() {
        problems.push(problem);
    }
    let status = dataplane.status();
    if !status.ready {
        problems.push(match status.waiting_for.is_empty() {
            true => "dataplane is not ready".to_owned(),
            false => format!("dataplane is not ready: {}", status.waiting_for.join(", ")),
        });
    }
    problems
}
