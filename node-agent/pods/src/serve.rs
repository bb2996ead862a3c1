//! What the kubelet HTTPS API asks of the pod manager: logs, streams, statistics.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::api::{ExecOptions, ExecOutput, LogOptions, LogStream, StreamTarget};
use crate::error::Error;
use crate::execute::owner_uid;
use crate::labels;
use crate::logs;
use crate::manager::PodManager;
use crate::observe::Container;
use crate::spec;

/// The annotation that names the container a client means when it names none.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

impl PodManager {
    /// Log of a container.
    ///
    /// # Errors
    /// `NotFound` and `BadRequest` carry kubelet's wording.
    pub async fn container_logs(&self, namespace: &str, pod: &str, container: &str, options: LogOptions) -> Result<LogStream, Error> {
        let pod = self.find(namespace, pod, None)?;
        if spec::container(&pod, container).is_none() {
            return Err(Error::NotFound(format!("container {container:?} not found in pod {:?}", spec::name(&pod))));
        }
        let observed = self.observed(spec::uid(&pod)).await?;
        let mut instances = observed.instances(container);
        let newest = instances.next();
        let chosen = if options.previous {
            // Between two lives the newest one is the previous one.
            let waiting = pod_container_waiting(&pod, container);
            newest.filter(|c| c.exited().is_some() && waiting).or_else(|| instances.find(|c| c.exited().is_some()))
        } else {
            newest
        };
        let Some(chosen) = chosen else {
            let name = spec::name(&pod);
            return Err(Error::BadRequest(if options.previous {
                format!("previous terminated container {container:?} in pod {name:?} not found")
            } else {
                let reason = waiting_reason(&pod, container);
                format!("container {container:?} in pod {name:?} is waiting to start: {reason}")
            }));
        };
        if chosen.log_path.is_empty() {
            return Err(Error::NotFound(format!("container {container:?} has no log")));
        }
        let path = PathBuf::from(&chosen.log_path);
        let source = logs::Source { path: path.clone(), running: self.running_check(chosen) };
        logs::stream(source, options).await.map_err(Error::io(path))
    }

    fn running_check(&self, container: &Container) -> Arc<dyn Fn() -> futures::future::BoxFuture<'static, bool> + Send + Sync> {
        let cri = self.cri.clone();
        let id = container.id.clone();
        Arc::new(move || {
            let cri = cri.clone();
            let request = cri_api::ContainerStatusRequest { container_id: id.clone(), verbose: false };
            Box::pin(async move {
                let status = cri.container_status(request).await.ok().and_then(|a| a.status);
                status.is_some_and(|s| s.state == cri_api::ContainerState::ContainerRunning as i32)
            })
        })
    }

    /// URL on containerd's streaming server to run `options.command` with streams.
    ///
    /// # Errors
    /// `NotFound` for an unknown pod or container, `BadRequest` for one that does not run.
    pub async fn exec_url(&self, target: &StreamTarget, options: ExecOptions) -> Result<String, Error> {
        let request = cri_api::ExecRequest {
            container_id: self.running_container(target).await?,
            cmd: options.command,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        Ok(self.cri.exec(request).await?.url)
    }

    /// URL on containerd's streaming server to attach to the container's main process.
    ///
    /// # Errors
    /// As [`PodManager::exec_url`].
    pub async fn attach_url(&self, target: &StreamTarget, options: ExecOptions) -> Result<String, Error> {
        let id = self.running_container(target).await?;
        let pod = self.find(&target.namespace, &target.pod, target.uid.as_deref())?;
        // The container's own spec says whether it has a terminal.
        let tty = self.target_container(&pod, target)?.tty.unwrap_or(false);
        let request =
            cri_api::AttachRequest { container_id: id, tty, stdin: options.stdin, stdout: options.stdout, stderr: options.stderr && !tty };
        Ok(self.cri.attach(request).await?.url)
    }

    /// URL on containerd's streaming server to forward `ports` (empty for the WebSocket protocol
    /// that names them in the stream).
    ///
    /// # Errors
    /// `NotFound` for an unknown pod, `BadRequest` for one without a sandbox.
    pub async fn port_forward_url(&self, target: &StreamTarget, ports: Vec<u16>) -> Result<String, Error> {
        let pod = self.find(&target.namespace, &target.pod, target.uid.as_deref())?;
        let observed = self.observed(spec::uid(&pod)).await?;
        let sandbox = observed
            .ready_sandbox()
            .ok_or_else(|| Error::BadRequest(format!("failed to find sandbox for pod {:?}: it does not run", spec::name(&pod))))?;
        let request = cri_api::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: ports.into_iter().map(i32::from).collect() };
        Ok(self.cri.port_forward(request).await?.url)
    }

    /// Runs a command to its end without streams (kubelet's `/run/`).
    ///
    /// # Errors
    /// As [`PodManager::exec_url`], and `Timeout`.
    pub async fn run_in_container(&self, target: &StreamTarget, command: Vec<String>, timeout: Duration) -> Result<ExecOutput, Error> {
        let id = self.running_container(target).await?;
        let output = self.cri.exec_sync(&id, command, timeout).await?;
        Ok(ExecOutput { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    /// The pods that containerd runs, in the API or not (kubelet's `/runningpods/`).
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn running_pods(&self) -> Result<Vec<Pod>, Error> {
        let containers = self.cri.list_containers(cri_api::ListContainersRequest::default()).await?.containers;
        let mut pods: HashMap<String, Pod> = HashMap::new();
        for container in containers.into_iter().filter(|c| c.state == cri_api::ContainerState::ContainerRunning as i32) {
            let Some(uid) = owner_uid(&container.labels) else { continue };
            let pod = pods.entry(uid.clone()).or_insert_with(|| {
                let mut pod = Pod::default();
                pod.metadata.uid = Some(uid.clone());
                pod.metadata.name = container.labels.get(labels::POD_NAME).cloned();
                pod.metadata.namespace = container.labels.get(labels::POD_NAMESPACE).cloned();
                pod.spec = Some(Default::default());
                pod
            });
            let image = container.image.map(|i| i.image);
            let name = container.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default();
            if let Some(spec) = &mut pod.spec {
                spec.containers.push(ContainerSpec { name, image, ..Default::default() });
            }
        }
        Ok(pods.into_values().collect())
    }

    /// The Summary API's document (`/stats/summary`, `k8s.io/kubelet/pkg/apis/stats/v1alpha1`).
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn stats_summary(&self) -> Result<Value, Error> {
        let stats = self.cri.list_container_stats(cri_api::ListContainerStatsRequest::default()).await?.stats;
        let mut by_pod: HashMap<String, Vec<cri_api::ContainerStats>> = HashMap::new();
        for stat in stats {
            let uid = stat.attributes.as_ref().and_then(|a| owner_uid(&a.labels)).cloned();
            if let Some(uid) = uid {
                by_pod.entry(uid).or_default().push(stat);
            }
        }
        let mut pods = Vec::new();
        for pod in self.pods() {
            let Some(stats) = by_pod.remove(spec::uid(&pod)) else { continue };
            pods.push(pod_stats(&pod, &stats));
        }
        Ok(json!({ "node": node_stats(&self.node.config.node_name), "pods": pods }))
    }

    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Error> {
        let found = self.pods().into_iter().filter(|p| spec::namespace(p) == namespace && spec::name(p) == name);
        let mut matching: Vec<Arc<Pod>> = found.filter(|p| uid.is_none_or(|u| u.is_empty() || u == spec::uid(p))).collect();
        // One that is on its way out may share its name with its successor.
        matching.sort_by_key(|p| spec::is_deleting(p));
        matching.into_iter().next().ok_or_else(|| Error::NotFound(format!("pod \"{namespace}/{name}\" not found")))
    }

    fn target_container(&self, pod: &Pod, target: &StreamTarget) -> Result<ContainerSpec, Error> {
        let annotated = pod.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT_CONTAINER));
        let first = spec::spec(pod).containers.first().map(|c| &c.name);
        let name = target.container.as_ref().filter(|c| !c.is_empty()).or(annotated).or(first);
        let found = name.and_then(|n| spec::container(pod, n)).map(|(_, c)| c.into_owned());
        found.ok_or_else(|| Error::NotFound(format!("container not found ({:?})", name.map_or("", String::as_str))))
    }

    async fn running_container(&self, target: &StreamTarget) -> Result<String, Error> {
        let pod = self.find(&target.namespace, &target.pod, target.uid.as_deref())?;
        let container = self.target_container(&pod, target)?;
        let observed = self.observed(spec::uid(&pod)).await?;
        let running = observed.latest(&container.name).filter(|c| c.is_running());
        running.map(|c| c.id.clone()).ok_or_else(|| Error::NotFound(format!("container not found ({:?})", container.name)))
    }
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a k8s_openapi::api::core::v1::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flat_map(|l| l.iter().flatten()).find(|c| c.name == container)
}

fn pod_container_waiting(pod: &Pod, container: &str) -> bool {
    status_of(pod, container).and_then(|s| s.state.as_ref()).is_some_and(|s| s.waiting.is_some())
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let waiting = status_of(pod, container).and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
    match waiting {
        Some(waiting) => match (&waiting.reason, &waiting.message) {
            (Some(reason), Some(message)) if reason.contains("Image") => format!("{}: {message}", image_words(reason)),
            (Some(reason), _) => reason.clone(),
            (None, _) => "ContainerCreating".into(),
        },
        None => "ContainerCreating".into(),
    }
}

/// kubelet's words for the two image reasons in a log request's error.
fn image_words(reason: &str) -> &str {
    match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    }
}

fn time(nanos: i64) -> Value {
    let at = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_else(|_| jiff::Timestamp::now());
    json!(Time(at))
}

fn number(value: &Option<cri_api::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|v| v.value)
}

fn pod_stats(pod: &Pod, stats: &[cri_api::ContainerStats]) -> Value {
    let start = pod.status.as_ref().and_then(|s| s.start_time.clone());
    let containers: Vec<Value> = stats.iter().map(|s| container_stats(pod, s)).collect();
    let sum = |get: &dyn Fn(&cri_api::ContainerStats) -> Option<u64>| -> u64 { stats.iter().filter_map(get).sum() };
    let stamp = stats.iter().filter_map(|s| s.cpu.as_ref()).map(|c| c.timestamp).max().unwrap_or(0);
    let cpu = sum(&|s| number(&s.cpu.as_ref()?.usage_core_nano_seconds));
    let memory = sum(&|s| number(&s.memory.as_ref()?.working_set_bytes));
    json!({
        "podRef": { "name": spec::name(pod), "namespace": spec::namespace(pod), "uid": spec::uid(pod) },
        "startTime": start,
        "containers": containers,
        "cpu": { "time": time(stamp), "usageCoreNanoSeconds": cpu },
        "memory": { "time": time(stamp), "workingSetBytes": memory },
    })
}

fn container_stats(pod: &Pod, stats: &cri_api::ContainerStats) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.labels.get(labels::CONTAINER_NAME)).cloned().unwrap_or_default();
    let started = status_of(pod, &name).and_then(|s| s.state.clone()).and_then(|s| s.running).and_then(|r| r.started_at);
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let mut value = json!({
        "name": name,
        "startTime": started,
        "cpu": { "time": time(cpu.timestamp), "usageNanoCores": number(&cpu.usage_nano_cores), "usageCoreNanoSeconds": number(&cpu.usage_core_nano_seconds) },
        "memory": {
            "time": time(memory.timestamp),
            "usageBytes": number(&memory.usage_bytes),
            "workingSetBytes": number(&memory.working_set_bytes),
            "rssBytes": number(&memory.rss_bytes),
            "pageFaults": number(&memory.page_faults),
            "majorPageFaults": number(&memory.major_page_faults),
        },
    });
    if let Some(layer) = &stats.writable_layer {
        value["rootfs"] =
            json!({ "time": time(layer.timestamp), "usedBytes": number(&layer.used_bytes), "inodesUsed": number(&layer.inodes_used) });
    }
    value
}

fn node_stats(name: &str) -> Value {
    let now = jiff::Timestamp::now();
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |key: &str| -> Option<u64> {
        let line = info.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let total = field("MemTotal");
    let available = field("MemAvailable");
    let used = total.zip(available).map(|(t, a)| t.saturating_sub(a));
    json!({
        "nodeName": name,
        "cpu": { "time": Time(now), "usageCoreNanoSeconds": cpu_time() },
        "memory": { "time": Time(now), "availableBytes": available, "usageBytes": used, "workingSetBytes": used },
    })
}

/// Busy time of all CPUs in nanoseconds; a tick is 1/100 s on every Linux this runs on.
fn cpu_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let idle: u64 = ticks.get(3..5)?.iter().sum();
    let total: u64 = ticks.iter().take(8).sum();
    Some((total - idle) * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_log() {
        let pod: Pod =
            serde_json::from_value(json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}]}}))
            .unwrap();
        assert_eq!(waiting_reason(&pod, "c"), "image can't be pulled: m");
        assert_eq!(waiting_reason(&pod, "other"), "ContainerCreating");
    }
}
