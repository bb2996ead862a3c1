//! postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};

use crate::cri::Cri;
use crate::net;
use crate::spec;

/// The container a hook belongs to.
pub struct Target<'a> {
    pub cri: &'a Cri,
    pub pod: &'a Pod,
    pub container_id: &'a str,
    pub name: &'a str,
    pub pod_ip: String,
}

/// Runs a hook to its end. The caller bounds the time.
pub async fn run(target: &Target<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let quoted = format!("{command:?}");
        let output = target.cri.exec_sync(target.container_id, command, Duration::ZERO).await.map_err(|e| e.to_string())?;
        if output.exit_code == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        return Err(format!(
            "Exec lifecycle hook ({quoted}) for Container \"{}\" failed - error: command exited with {}, message: {text:?}",
            target.name, output.exit_code
        ));
    }
    let container = spec::container(target.pod, target.name).map(|(_, c)| c.into_owned());
    if let Some(get) = &hook.http_get {
        let agent = "kube-lifecycle/1.36";
        let answer = net::http_get(get, container.as_ref(), &target.pod_ip, agent).await?;
        // The response's code does not matter to a hook, as upstream.
        tracing::debug!(container = target.name, status = answer.status, "HTTP hook answered");
        return Ok(());
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("invalid handler: the hook names no action".into())
}
