//! The Node object: registration, and status reports as kubelet makes them.

mod machine;
mod status;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{Config, health::Health};

/// kubelet's nodeStatusUpdateFrequency.
const UPDATE: Duration = Duration::from_secs(10);
/// kubelet's nodeStatusReportFrequency: an unchanged status is written this often.
const REPORT: Duration = Duration::from_secs(5 * 60);
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// A Node in the API.
pub(crate) struct Registered {
    pub uid: String,
    /// It was there before, from an earlier life of this agent.
    pub adopted: bool,
}

/// Creates the Node, or adopts the one of that name; tries until it succeeds. `None` if cancelled.
pub(crate) async fn register(config: &Config, client: &kube::Client, health: &Health, cancel: &CancellationToken) -> Option<Registered> {
    let api: Api<Node> = Api::all(client.clone());
    let mut pause = RETRY;
    let mut said = None;
    loop {
        match try_register(&api, config, health).await {
            Ok(registered) => {
                info!(node = config.node_name, adopted = registered.adopted, "node registered");
                return Some(registered);
            }
            Err(error) => {
                let message = error.to_string();
                if said.as_ref() != Some(&message) {
                    warn!("cannot register the node yet: {message}");
                    said = Some(message);
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
        }
    }
}

async fn try_register(api: &Api<Node>, config: &Config, health: &Health) -> Result<Registered, kube::Error> {
    let labels = status::labels(&config.node_name, &config.labels);
    let annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    let existing = match api.get_opt(&config.node_name).await? {
        Some(node) => node,
        None => {
            let mut node = Node::default();
            node.metadata.name = Some(config.node_name.clone());
            node.metadata.labels = Some(labels.clone());
            node.metadata.annotations = serde_json::from_value(annotations.clone()).ok();
            node.status = Some(current(config, health, &NodeStatus::default()));
            match api.create(&PostParams::default(), &node).await {
                Ok(node) => return Ok(Registered { uid: node.metadata.uid.unwrap_or_default(), adopted: false }),
                Err(kube::Error::Api(status)) if status.code == 409 => api.get(&config.node_name).await?,
                Err(error) => return Err(error),
            }
        }
    };
    let present = existing.metadata.labels.clone().unwrap_or_default();
    if labels.iter().any(|(name, value)| present.get(name) != Some(value)) {
        let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
        api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(Registered { uid: existing.metadata.uid.unwrap_or_default(), adopted: true })
}

fn current(config: &Config, health: &Health, previous: &NodeStatus) -> NodeStatus {
    let inputs = status::Inputs {
        node_name: &config.node_name,
        node_ips: &config.node_ips,
        kubelet_port: config.bind.port(),
        max_pods: config.max_pods,
        machine: &machine::read(&config.data_dir),
        runtime: &health.runtime.read(),
        problems: &health.problems.borrow(),
        now: jiff::Timestamp::now(),
    };
    status::status(&inputs, previous)
}

/// Writes the status when it changes, and every [`REPORT`] at the latest, until cancelled.
pub(crate) async fn report(config: &Arc<Config>, client: &kube::Client, health: &Health, cancel: &CancellationToken) {
    let api: Api<Node> = Api::all(client.clone());
    let mut problems = health.problems.subscribe();
    let mut reported: Option<tokio::time::Instant> = None;
    loop {
        problems.mark_unchanged();
        let due = reported.is_none_or(|at| at.elapsed() >= REPORT);
        let pause = match report_once(&api, config, health, due).await {
            Ok(wrote) => {
                if wrote {
                    debug!("node status written");
                    reported = Some(tokio::time::Instant::now());
                }
                UPDATE
            }
            Err(error) => {
                warn!(%error, "node status not written");
                RETRY
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            // The sender lives as long as the agent, so this fails never.
            _ = problems.changed() => {}
        }
    }
}

async fn report_once(api: &Api<Node>, config: &Config, health: &Health, due: bool) -> Result<bool, kube::Error> {
    let node = match api.get_opt(&config.node_name).await? {
        Some(node) => node,
        // Deleted by hand: kubelet registers again at its next start only, which leaves a node that nobody sees. Mend it.
        None => {
            try_register(api, config, health).await?;
            return Ok(true);
        }
    };
    let previous = node.status.unwrap_or_default();
    let new = current(config, health, &previous);
    if !due && !status::differs(&previous, &new) {
        return Ok(false);
    }
    let patch = status::patch(&previous, &new);
    api.patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(true)
}
