//! Startup, liveness and readiness probes.
//!
//! The state of one probe is a value ([`State`]): outcomes go in, changes of the verdict come out. A task
//! per probe keeps time and asks the container.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::cri::Cri;
use crate::memory::{FailedProbe, ProbeView};
use crate::net;
use crate::observe::{Observed, Run};
use crate::recorder::{Level, Recorder};
use crate::spec::{self, Kind};

const AGENT: &str = "kube-probe/1.36";
/// A probe that could not be asked is asked again at once, so often.
const TRIES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    fn label(self) -> &'static str {
        match self {
            Which::Startup => "Startup",
            Which::Liveness => "Liveness",
            Which::Readiness => "Readiness",
        }
    }
}

/// What one run of a probe said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Succeeded with something to tell (a redirect to another host).
    Warning(String),
    Failure(String),
}

/// Thresholds and what has been seen so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    which: Which,
    failure_threshold: i32,
    success_threshold: i32,
    last: Option<bool>,
    run: i32,
    /// The verdict as published.
    verdict: bool,
}

impl State {
    pub fn new(which: Which, probe: &Probe, verdict: bool) -> State {
        State {
            which,
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            last: None,
            run: 0,
            verdict,
        }
    }

    /// Takes one outcome; `Some` is a verdict that the outcome's run has reached.
    pub fn outcome(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run += 1;
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold {
            return None;
        }
        self.verdict = success;
        Some(success)
    }
}

/// The probes of one pod's running containers.
pub struct PodProbes {
    cri: Cri,
    recorder: Recorder,
    wake: Arc<Notify>,
    tasks: Mutex<HashMap<String, Vec<JoinHandle<()>>>>,
    views: Arc<Mutex<HashMap<String, ProbeView>>>,
}

impl PodProbes {
    pub fn new(cri: Cri, recorder: Recorder, wake: Arc<Notify>) -> PodProbes {
        PodProbes { cri, recorder, wake, tasks: Mutex::default(), views: Arc::default() }
    }

    pub fn views(&self) -> HashMap<String, ProbeView> {
        self.views.lock().clone()
    }

    pub fn stop(&self) {
        for task in self.tasks.lock().drain().flat_map(|(_, tasks)| tasks) {
            task.abort();
        }
    }

    /// Starts the probes of containers that run and stops those of containers that do not. A pod
    /// on its way down keeps its readiness probes only.
    pub fn sync(&self, pod: &Arc<Pod>, observed: &Observed, pod_ip: &str, stopping: bool) {
        let mut tasks = self.tasks.lock();
        let running = |id: &String| observed.containers.iter().any(|c| c.id == *id && c.is_running());
        tasks.retain(|id, list| {
            let keep = running(id);
            if !keep {
                list.iter().for_each(JoinHandle::abort);
            }
            keep
        });
        self.views.lock().retain(|id, _| running(id));
        for (kind, container) in spec::containers(pod) {
            let probed = container.startup_probe.is_some() || container.liveness_probe.is_some() || container.readiness_probe.is_some();
            if !probed || matches!(kind, Kind::Init | Kind::Ephemeral) {
                continue;
            }
            let Some(instance) = observed.latest(&container.name) else { continue };
            let Run::Running { started_at } = instance.run else { continue };
            if tasks.contains_key(&instance.id) {
                continue;
            }
            let known = known_view(pod, &container, &instance.id);
            self.views.lock().insert(instance.id.clone(), known.clone());
            if stopping {
                tasks.insert(instance.id.clone(), Vec::new());
                continue;
            }
            let job = Job {
                cri: self.cri.clone(),
                recorder: self.recorder.clone(),
                wake: self.wake.clone(),
                views: self.views.clone(),
                pod: pod.clone(),
                kind,
                container: container.into_owned(),
                id: instance.id.clone(),
                pod_ip: pod_ip.to_owned(),
                started_at,
            };
            tasks.insert(instance.id.clone(), job.spawn(&known));
        }
        if stopping {
            // What is going away is not restarted for failing its liveness.
            for view in self.views.lock().values_mut() {
                view.failed = None;
            }
        }
    }
}

/// Where an instance starts: what the API says when it names this very instance (the agent was
/// restarted), else not started and not ready wherever a probe is to say so.
fn known_view(pod: &Pod, container: &Container, id: &str) -> ProbeView {
    let status = pod.status.as_ref();
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let wanted = format!("containerd://{id}");
    let old = lists.into_iter().flatten().flat_map(|l| l.iter().flatten()).find(|c| c.container_id.as_deref() == Some(&wanted));
    let started = old.and_then(|c| c.started).unwrap_or(false);
    ProbeView {
        started: container.startup_probe.is_none() || started,
        ready: container.readiness_probe.is_none() || old.is_some_and(|c| c.ready),
        failed: None,
    }
}

/// One container instance's probes.
#[derive(Clone)]
struct Job {
    cri: Cri,
    recorder: Recorder,
    wake: Arc<Notify>,
    views: Arc<Mutex<HashMap<String, ProbeView>>>,
    pod: Arc<Pod>,
    kind: Kind,
    container: Container,
    id: String,
    pod_ip: String,
    /// Nanoseconds since the epoch.
    started_at: i64,
}

impl Job {
    fn spawn(self, known: &ProbeView) -> Vec<JoinHandle<()>> {
        let probes = [
            (Which::Startup, self.container.startup_probe.clone(), known.started),
            (Which::Liveness, self.container.liveness_probe.clone(), true),
            (Which::Readiness, self.container.readiness_probe.clone(), known.ready),
        ];
        probes
            .into_iter()
            .filter_map(|(which, probe, verdict)| {
                let probe = probe?;
                let job = self.clone();
                Some(tokio::spawn(async move { job.run(which, probe, verdict).await }))
            })
            .collect()
    }

    async fn run(self, which: Which, probe: Probe, verdict: bool) {
        let period = seconds(probe.period_seconds, 10);
        let timeout = seconds(probe.timeout_seconds, 1);
        let mut state = State::new(which, &probe, verdict);
        tokio::time::sleep(self.initial_delay(&probe)).await;
        let mut ticker = tokio::time::interval(period);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // A startup verdict lets the others begin at once, not at their next tick.
            if which != Which::Startup && !self.started() {
                self.wait_started().await;
                ticker.reset_immediately();
            }
            ticker.tick().await;
            if which == Which::Startup && self.started() {
                return;
            }
            let outcome = match self.ask(&probe, timeout).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    // Not asked, so not answered: such a run counts neither way.
                    self.event(
                        Level::Warning,
                        "Unhealthy",
                        format!("{} probe errored and resulted in unknown state: {error}", which.label()),
                    );
                    continue;
                }
            };
            let success = !matches!(outcome, Outcome::Failure(_));
            match &outcome {
                Outcome::Success => {}
                Outcome::Warning(text) => self.event(Level::Warning, "ProbeWarning", format!("{} probe warning: {text}", which.label())),
                Outcome::Failure(text) => self.event(Level::Warning, "Unhealthy", format!("{} probe failed: {text}", which.label())),
            }
            if let Some(verdict) = state.outcome(success)
                && self.publish(which, verdict, &probe)
            {
                return;
            }
        }
    }

    fn initial_delay(&self, probe: &Probe) -> Duration {
        let delay = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0) as u64);
        let now = jiff::Timestamp::now().as_nanosecond();
        let up = Duration::from_nanos(u64::try_from(now - i128::from(self.started_at)).unwrap_or(0));
        delay.saturating_sub(up)
    }

    fn started(&self) -> bool {
        self.views.lock().get(&self.id).is_none_or(|v| v.started)
    }

    async fn wait_started(&self) {
        while !self.started() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes a verdict down; true when this probe's work is done.
    fn publish(&self, which: Which, verdict: bool, probe: &Probe) -> bool {
        let changed = {
            let mut views = self.views.lock();
            let Some(view) = views.get_mut(&self.id) else { return true };
            let before = view.clone();
            match which {
                Which::Startup if verdict => view.started = true,
                Which::Startup => view.failed = Some((FailedProbe::Startup, probe.termination_grace_period_seconds)),
                Which::Liveness if !verdict => view.failed = Some((FailedProbe::Liveness, probe.termination_grace_period_seconds)),
                Which::Liveness => {}
                Which::Readiness => view.ready = verdict,
            }
            *view != before
        };
        if changed {
            self.wake.notify_one();
        }
        match which {
            Which::Startup => true,
            // The instance is about to be killed; the next one gets its own probes.
            Which::Liveness => !verdict,
            Which::Readiness => false,
        }
    }

    fn event(&self, level: Level, reason: &'static str, message: String) {
        self.recorder.container(&self.pod, self.kind, &self.container.name, level, reason, message);
    }

    async fn ask(&self, probe: &Probe, timeout: Duration) -> Result<Outcome, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.ask_once(probe, timeout).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `Err` when the container could not even be asked.
    async fn ask_once(&self, probe: &Probe, timeout: Duration) -> Result<Outcome, String> {
        let timed_out = || Outcome::Failure(format!("context deadline exceeded (timeout {}s)", timeout.as_secs()));
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            let shown = format!("{command:?}");
            return match tokio::time::timeout(timeout, self.cri.exec_sync(&self.id, command, timeout)).await {
                Ok(Ok(output)) if output.exit_code == 0 => Ok(Outcome::Success),
                Ok(Ok(output)) => Ok(Outcome::Failure(truncated(&[output.stdout, output.stderr].concat()))),
                Ok(Err(crate::Error::Cri { status, .. })) if status.code() == tonic::Code::DeadlineExceeded => {
                    Ok(Outcome::Failure(format!("command timed out: {shown} timed out after {}s", timeout.as_secs())))
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Ok(Outcome::Failure(format!("command timed out: {shown} timed out after {}s", timeout.as_secs()))),
            };
        }
        if let Some(get) = &probe.http_get {
            let asked = net::http_get(get, Some(&self.container), &self.pod_ip, AGENT);
            return Ok(match tokio::time::timeout(timeout, asked).await {
                Ok(Ok(answer)) => http_outcome(answer),
                Ok(Err(error)) => Outcome::Failure(error),
                Err(_) => timed_out(),
            });
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.pod_ip);
            let port = net::port(&tcp.port, Some(&self.container))?;
            return Ok(match tokio::time::timeout(timeout, net::tcp_connect(host, port)).await {
                Ok(Ok(())) => Outcome::Success,
                Ok(Err(error)) => Outcome::Failure(error),
                Err(_) => Outcome::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
            });
        }
        if let Some(grpc) = &probe.grpc {
            let service = grpc.service.as_deref().unwrap_or("");
            let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
            return Ok(match tokio::time::timeout(timeout, net::grpc_check(&self.pod_ip, port, service, AGENT)).await {
                Ok(Ok(true)) => Outcome::Success,
                Ok(Ok(false)) => Outcome::Failure(format!("service unhealthy (responded with \"NOT_SERVING\") for service {service:?}")),
                Ok(Err(error)) => Outcome::Failure(error),
                Err(_) => {
                    Outcome::Failure(format!("timeout: failed to connect service \"{}:{port}\" within {}s", self.pod_ip, timeout.as_secs()))
                }
            });
        }
        Err("missing probe handler".into())
    }
}

fn http_outcome(answer: net::Answer) -> Outcome {
    match (answer.status, answer.stopped_at) {
        (300..=399, Some(location)) => Outcome::Warning(format!("Probe terminated redirects, Response body: {location}")),
        (200..=399, _) => Outcome::Success,
        (status, _) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn truncated(output: &[u8]) -> String {
    String::from_utf8_lossy(&output[..output.len().min(1 << 10)]).into_owned()
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.filter(|v| *v > 0).map_or(default, |v| v as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(which: Which, failures: i32, successes: i32) -> State {
        let probe = Probe { failure_threshold: Some(failures), success_threshold: Some(successes), ..Default::default() };
        State::new(which, &probe, false)
    }

    #[test]
    fn thresholds_count_runs_not_totals() {
        let mut probe = state(Which::Readiness, 3, 2);
        let verdicts: Vec<_> = [true, true, false, false, true, false, false, false, true].map(|o| probe.outcome(o)).to_vec();
        assert_eq!(verdicts, [None, Some(true), None, None, None, None, None, Some(false), None]);
    }

    #[test]
    fn one_success_is_enough_by_default() {
        let mut probe = State::new(Which::Liveness, &Probe::default(), true);
        assert_eq!([probe.outcome(false), probe.outcome(false), probe.outcome(true)], [None, None, Some(true)]);
        assert_eq!([probe.outcome(false), probe.outcome(false), probe.outcome(false)], [None, None, Some(false)]);
    }

    #[test]
    fn http_verdicts() {
        let answer = |status, stopped: Option<&str>| net::Answer { status, body: String::new(), stopped_at: stopped.map(str::to_owned) };
        assert_eq!(http_outcome(answer(204, None)), Outcome::Success);
        assert_eq!(http_outcome(answer(399, None)), Outcome::Success);
        assert!(matches!(http_outcome(answer(302, Some("http://x/"))), Outcome::Warning(_)));
        assert_eq!(http_outcome(answer(500, None)), Outcome::Failure("HTTP probe failed with statuscode: 500".into()));
    }

    #[test]
    fn a_restarted_agent_believes_the_status_of_the_same_instance() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "c", "readinessProbe": {}, "startupProbe": {}})).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "restartCount": 0, "containerID": "containerd://1", "ready": true, "started": true}]}}))
        .unwrap();
        assert_eq!(known_view(&pod, &container, "1"), ProbeView { started: true, ready: true, failed: None });
        assert_eq!(known_view(&pod, &container, "2"), ProbeView { started: false, ready: false, failed: None });
    }
}
