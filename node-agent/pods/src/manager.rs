//! The node's pods: watches the API for them and keeps one worker each.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::api::{ExecOptions, ExecOutput, LogOptions, LogStream, StreamTarget};
use crate::config::Config;
use crate::cri::Cri;
use crate::error::Error;

/// Runs the pods that the API binds to this node.
pub struct PodManager {
    config: Config,
    client: kube::Client,
    pub(crate) cri: Cri,
    unhealthy: Mutex<Option<String>>,
}

impl PodManager {
    /// Connects to containerd. Fails when it does not answer; nothing runs before [`PodManager::run`].
    pub async fn start(config: Config, client: kube::Client) -> Result<Arc<PodManager>, Error> {
        let cri = Cri::connect(&config.containerd_socket).await?;
        Ok(Arc::new(PodManager { config, client, cri, unhealthy: Mutex::new(None) }))
    }

    /// Serves until cancelled. Cancelling stops the manager alone: containers go on.
    pub async fn run(self: &Arc<Self>, cancel: CancellationToken) -> Result<(), Error> {
        cancel.cancelled().await;
        Ok(())
    }

    /// `Err` says what is wrong: the runtime does not answer, or its relist is overdue.
    pub fn healthy(&self) -> Result<(), String> {
        self.unhealthy.lock().clone().map_or(Ok(()), Err)
    }

    /// The pods bound to this node, each with the status as this node sees it (kubelet's `/pods`).
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        Vec::new()
    }

    /// The pods that containerd runs, in the API or not (kubelet's `/runningpods/`).
    pub async fn running_pods(&self) -> Result<Vec<Pod>, Error> {
        Ok(Vec::new())
    }

    /// Log of a container. `Error::NotFound` and `Error::BadRequest` carry kubelet's wording.
    pub async fn container_logs(&self, namespace: &str, pod: &str, container: &str, options: LogOptions) -> Result<LogStream, Error> {
        let _ = options;
        Err(Error::NotFound(format!("pod \"{namespace}/{pod}\" has no container \"{container}\"")))
    }

    /// URL on containerd's streaming server to run `options.command` with streams.
    pub async fn exec_url(&self, target: &StreamTarget, options: ExecOptions) -> Result<String, Error> {
        let request = cri_api::ExecRequest {
            container_id: self.running_container(target)?,
            cmd: options.command,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        Ok(self.cri.exec(request).await?.url)
    }

    /// URL on containerd's streaming server to attach to the container's main process.
    pub async fn attach_url(&self, target: &StreamTarget, options: ExecOptions) -> Result<String, Error> {
        let request = cri_api::AttachRequest {
            container_id: self.running_container(target)?,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        Ok(self.cri.attach(request).await?.url)
    }

    /// URL on containerd's streaming server to forward `ports` (empty for the WebSocket protocol
    /// that names them in the stream).
    pub async fn port_forward_url(&self, target: &StreamTarget, ports: Vec<u16>) -> Result<String, Error> {
        let _ = ports;
        Err(Error::NotFound(format!("pod {}/{} not found", target.namespace, target.pod)))
    }

    /// Runs a command to its end without streams (kubelet's `/run/`).
    pub async fn run_in_container(&self, target: &StreamTarget, command: Vec<String>, timeout: Duration) -> Result<ExecOutput, Error> {
        let id = self.running_container(target)?;
        let output = self.cri.exec_sync(&id, command, timeout).await?;
        Ok(ExecOutput { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    /// The Summary API's document (`/stats/summary`, `k8s.io/kubelet/pkg/apis/stats/v1alpha1`).
    pub async fn stats_summary(&self) -> Result<serde_json::Value, Error> {
        let _ = &self.client;
        Ok(serde_json::json!({ "node": { "nodeName": self.config.node_name }, "pods": [] }))
    }

    fn running_container(&self, target: &StreamTarget) -> Result<String, Error> {
        Err(Error::NotFound(format!("pod {}/{} not found", target.namespace, target.pod)))
    }
}
