//! Pods through the API.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

/// Nothing may take longer.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A pod that sleeps, with labels for Services.
pub fn sleeper(name: &str, image: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": image, "imagePullPolicy": "Never", "command": ["sleep", "3600"]}]},
    });
    serde_json::from_value(pod).expect("a constant shape")
}

/// Creates a pod and waits until it runs, by watch.
pub async fn run(api: &Api<Pod>, pod: &Pod) -> Result<Pod> {
    let name = pod.name_any();
    let created = api.create(&PostParams::default(), pod).await.with_context(|| format!("cannot create pod {name}"))?;
    if running(&created) {
        return Ok(created);
    }
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let waiting = async {
        let version = created.resource_version().unwrap_or_default();
        let mut events = std::pin::pin!(api.watch(&params, &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) if running(&pod) => {
                    return Ok(pod);
                }
                WatchEvent::Error(error) => bail!("watching {name}: {error:?}"),
                WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            }
        }
        bail!("the watch of pod {name} ended")
    };
    tokio::time::timeout(DEADLINE, waiting).await.with_context(|| format!("pod {name} does not run after {DEADLINE:?}"))?
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

/// Deletes a pod and waits until it is gone.
pub async fn delete(api: &Api<Pod>, name: &str) -> Result<()> {
    api.delete(name, &DeleteParams::default().grace_period(0)).await?;
    let begin = Instant::now();
    while api.get_opt(name).await?.is_some() {
        if begin.elapsed() > DEADLINE {
            bail!("pod {name} is still there {DEADLINE:?} after its deletion");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One pod's time from the create call to the watch event that says Running.
pub async fn created_to_running(client: &Client, image: &str, round: usize) -> Result<Duration> {
    let api = Api::default_namespaced(client.clone());
    let name = format!("bench-start-{round}");
    let begin = Instant::now();
    run(&api, &sleeper(&name, image)).await?;
    let took = begin.elapsed();
    delete(&api, &name).await?;
    Ok(took)
}

/// Address and process of a running pod's first container.
pub fn place(pod: &Pod, containerd_state: &std::path::Path) -> Result<(std::net::IpAddr, u32)> {
    let name = pod.name_any();
    let status = pod.status.as_ref().context("pod without status")?;
    let ip = status.pod_ip.as_deref().with_context(|| format!("pod {name} has no address"))?.parse()?;
    let id = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|c| c.container_id.as_deref())
        .with_context(|| format!("pod {name} has no container"))?;
    let id = id.trim_start_matches("containerd://");
    let file = containerd_state.join("io.containerd.runtime.v2.task/k8s.io").join(id).join("init.pid");
    let pid = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    Ok((ip, pid.trim().parse()?))
}
