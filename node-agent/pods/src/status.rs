//! The status kubelet would write for a pod: pure, from what containerd holds and the probes say.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::memory::{Memory, Waiting};
use crate::observe::{Container, Observed, Run};
use crate::plan::should_restart;
use crate::resources;
use crate::spec::{self, Kind};

/// Facts about the node that go into every status.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub ips: Vec<String>,
}

/// The whole status. `finished` says that nothing will run again.
pub fn pod_status(pod: &Pod, observed: &Observed, memory: &Memory, node: &Node, finished: bool, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let mut status = PodStatus {
        qos_class: Some(resources::qos(pod).as_str().to_owned()),
        start_time: memory.start_time.map(Time).or(old.start_time.clone()),
        observed_generation: pod.metadata.generation,
        host_ip: node.ips.first().cloned(),
        host_ips: (!node.ips.is_empty()).then(|| node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        ..Default::default()
    };
    if let Some(ended) = memory.ended.as_ref().filter(|e| e.rejected) {
        return PodStatus {
            phase: Some("Failed".into()),
            reason: Some(ended.reason.clone()),
            message: Some(ended.message.clone()),
            conditions: old.conditions,
            qos_class: status.qos_class,
            start_time: status.start_time,
            observed_generation: status.observed_generation,
            ..Default::default()
        };
    }
    let ips = pod_ips(pod, observed, node, &old);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());

    let context = Context { pod, observed, memory, finished, old: &old };
    let mut init = Vec::new();
    let mut regular = Vec::new();
    let mut ephemeral = Vec::new();
    for (kind, container) in spec::containers(pod) {
        match kind {
            Kind::Init | Kind::Sidecar => init.push(context.container(kind, &container)),
            Kind::Regular => regular.push(context.container(kind, &container)),
            Kind::Ephemeral => ephemeral.push(context.container(kind, &container)),
        }
    }
    let stopped = finished && !observed.any_running();
    if stopped {
        mark_lost(&mut init, &mut regular);
    }
    let initialized = regular.iter().any(has_started);
    let mut phase = phase(pod, &init, &regular, finished, initialized);
    if let Some(ended) = &memory.ended {
        phase = "Failed";
        status.reason = Some(ended.reason.clone());
        status.message = Some(ended.message.clone());
    } else if spec::api_terminal(pod) {
        // A terminal phase never changes back, nor does its reason.
        phase = if spec::api_phase(pod) == "Failed" { "Failed" } else { "Succeeded" };
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    } else if stopped && !matches!(phase, "Succeeded" | "Failed") {
        phase = "Failed";
    } else if !stopped && finished && matches!(phase, "Succeeded" | "Failed") && observed.any_running() {
        // Terminal only once nothing runs.
        phase = if spec::api_phase(pod).is_empty() { "Pending" } else { "Running" };
    }
    status.conditions = Some(conditions(pod, observed, &init, &regular, phase, &old, now));
    status.phase = Some(phase.to_owned());
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = (!regular.is_empty()).then_some(regular);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status
}

/// The sandbox's addresses, the node's for a host-network pod; kept from the API once the sandbox is gone.
fn pod_ips(pod: &Pod, observed: &Observed, node: &Node, old: &PodStatus) -> Vec<String> {
    match observed.ready_sandbox() {
        Some(_) if spec::host_network(pod) => node.ips.clone(),
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        Some(_) | None => old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

struct Context<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    memory: &'a Memory,
    finished: bool,
    old: &'a PodStatus,
}

impl Context<'_> {
    fn container(&self, kind: Kind, container: &ContainerSpec) -> ContainerStatus {
        let name = &container.name;
        let mut status = ContainerStatus { name: name.clone(), image: container.image.clone().unwrap_or_default(), ..Default::default() };
        let old = self.old_status(kind, name);
        let held = self.memory.waiting.get(name);
        match self.observed.latest(name) {
            None => self.never_seen(kind, held, old, &mut status),
            Some(latest) => self.seen(container, latest, held, old, &mut status),
        }
        self.readiness(kind, container, &mut status);
        if kind != Kind::Ephemeral {
            self.resources(container, &mut status);
        }
        status
    }

    fn old_status(&self, kind: Kind, name: &str) -> Option<&ContainerStatus> {
        let list = match kind {
            Kind::Init | Kind::Sidecar => &self.old.init_container_statuses,
            Kind::Regular => &self.old.container_statuses,
            Kind::Ephemeral => &self.old.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|c| c.name == name)
    }

    fn never_seen(&self, kind: Kind, held: Option<&Waiting>, old: Option<&ContainerStatus>, status: &mut ContainerStatus) {
        // Once it ran and its record is gone: what the API remembers is all there is.
        if let Some(old) = old.filter(|o| o.container_id.as_deref().is_some_and(|id| !id.is_empty())) {
            if let Some(terminated) = old.state.as_ref().and_then(|s| s.terminated.as_ref()) {
                *status = old.clone();
                status.state = Some(ContainerState { terminated: Some(terminated.clone()), ..Default::default() });
                return;
            }
            status.restart_count = old.restart_count;
            status.image_id = old.image_id.clone();
            status.last_state = old.last_state.clone();
            if old.state.as_ref().is_some_and(|s| s.running.is_some()) {
                let message = "The container could not be located when the pod was deleted.  The container used to be Running";
                status.last_state = Some(ContainerState { terminated: Some(lost(message)), ..Default::default() });
                status.restart_count += 1;
            }
        }
        let waiting = held.cloned().unwrap_or_else(|| self.default_waiting(kind));
        status.state = Some(waiting_state(&waiting));
    }

    fn default_waiting(&self, kind: Kind) -> Waiting {
        let init = kind != Kind::Ephemeral && !spec::init_containers(self.pod).is_empty();
        let reason = if init { "PodInitializing" } else { "ContainerCreating" };
        Waiting { reason: reason.into(), message: String::new() }
    }

    fn seen(
        &self,
        container: &ContainerSpec,
        latest: &Container,
        held: Option<&Waiting>,
        old: Option<&ContainerStatus>,
        status: &mut ContainerStatus,
    ) {
        status.container_id = Some(format!("containerd://{}", latest.id));
        status.restart_count = latest.restart_count;
        if !latest.image.is_empty() {
            status.image = latest.image.clone();
        }
        status.image_id = latest.image_id.clone();
        let previous = self.observed.instances(&container.name).nth(1).and_then(terminated);
        let last = previous.or_else(|| {
            // The record of the instance before may have been removed; the API's stays true.
            let kept = old.filter(|o| o.restart_count == latest.restart_count)?;
            kept.last_state.as_ref()?.terminated.clone()
        });
        status.last_state = last.map(|t| ContainerState { terminated: Some(t), ..Default::default() });
        status.state = Some(match &latest.run {
            Run::Running { started_at } => {
                ContainerState { running: Some(ContainerStateRunning { started_at: time(*started_at) }), ..Default::default() }
            }
            Run::Created => {
                let waiting = held.cloned().unwrap_or(Waiting { reason: "ContainerCreating".into(), message: String::new() });
                waiting_state(&waiting)
            }
            Run::Unknown => {
                let message = "The container could not be located when the pod was terminated";
                ContainerState { terminated: Some(lost(message)), ..Default::default() }
            }
            Run::Exited { .. } => ContainerState { terminated: terminated(latest), ..Default::default() },
        });
        if latest.exited().is_none() || self.finished || !should_restart(self.pod, container, Some(latest)) {
            return;
        }
        // Between two lives: the end moves to lastState, the reason to wait takes its place.
        if let Some(held) = held {
            status.last_state = Some(ContainerState { terminated: terminated(latest), ..Default::default() });
            status.state = Some(waiting_state(held));
        }
    }

    fn readiness(&self, kind: Kind, container: &ContainerSpec, status: &mut ContainerStatus) {
        let state = status.state.as_ref();
        let running = state.is_some_and(|s| s.running.is_some());
        let latest = self.observed.latest(&container.name);
        let startup = container.startup_probe.is_some();
        status.started = Some(running && latest.is_some_and(|c| self.memory.started(&c.id, startup)));
        status.ready = match kind {
            Kind::Init => state.and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0),
            Kind::Ephemeral => false,
            Kind::Sidecar | Kind::Regular => {
                running && latest.is_some_and(|c| self.memory.ready(&c.id, container.readiness_probe.is_some(), startup))
            }
        };
    }

    fn resources(&self, container: &ContainerSpec, status: &mut ContainerStatus) {
        if let Some(resources) = container.resources.as_ref().filter(|r| r.requests.is_some() || r.limits.is_some()) {
            status.allocated_resources = resources.requests.clone();
            if status.state.as_ref().is_some_and(|s| s.running.is_some()) {
                status.resources = Some(resources.clone());
            }
        } else if status.state.as_ref().is_some_and(|s| s.running.is_some()) {
            status.resources = Some(Default::default());
        }
        let mounts: Vec<VolumeMountStatus> = container
            .volume_mounts
            .iter()
            .flatten()
            .map(|m| VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: m.read_only.filter(|ro| *ro),
                recursive_read_only: m.read_only.unwrap_or(false).then(|| "Disabled".to_owned()),
                ..Default::default()
            })
            .collect();
        status.volume_mounts = (!mounts.is_empty()).then_some(mounts);
    }
}

fn waiting_state(waiting: &Waiting) -> ContainerState {
    let message = (!waiting.message.is_empty()).then(|| waiting.message.clone());
    ContainerState { waiting: Some(ContainerStateWaiting { reason: Some(waiting.reason.clone()), message }), ..Default::default() }
}

fn terminated(container: &Container) -> Option<ContainerStateTerminated> {
    let Run::Exited { started_at, finished_at, exit_code, reason, message } = &container.run else { return None };
    Some(ContainerStateTerminated {
        container_id: Some(format!("containerd://{}", container.id)),
        exit_code: *exit_code,
        reason: Some(reason.clone()).filter(|r| !r.is_empty()),
        message: Some(message.clone()).filter(|m| !m.is_empty()),
        // One that never started is reported as upstream's zero time.
        started_at: time(*started_at).or(Some(Time(Timestamp::UNIX_EPOCH))),
        finished_at: time(*finished_at),
        signal: None,
    })
}

fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..Default::default()
    }
}

fn time(nanos: i64) -> Option<Time> {
    if nanos <= 0 { None } else { Timestamp::from_nanosecond(i128::from(nanos)).ok().map(Time) }
}

fn has_started(status: &ContainerStatus) -> bool {
    let ran = |s: &Option<ContainerState>| s.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some());
    ran(&status.state) || ran(&status.last_state)
}

/// A pod that ended must not keep a container that seems about to run (kubelet's `TerminatePod`).
fn mark_lost(init: &mut [ContainerStatus], regular: &mut [ContainerStatus]) {
    let message = "The container could not be located when the pod was terminated";
    let started = regular.iter().any(has_started);
    // All but the init containers after the last that ran are known to have run.
    let reached = if started { init.len() } else { init.iter().rposition(has_started).map_or(0, |at| at + 1) };
    let lost_ones = init.iter_mut().take(reached).chain(regular.iter_mut().filter(|_| started));
    for status in lost_ones {
        if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            continue;
        }
        // Between two lives: its last end is what happened.
        let end = status.last_state.as_ref().and_then(|s| s.terminated.clone()).unwrap_or_else(|| lost(message));
        status.state = Some(ContainerState { terminated: Some(end), ..Default::default() });
        status.ready = false;
        status.started = Some(false);
    }
}

/// kubelet's `getPhase`.
fn phase(pod: &Pod, init: &[ContainerStatus], regular: &[ContainerStatus], finished: bool, initialized: bool) -> &'static str {
    let mut pending_init = 0;
    let mut pending_sidecars = 0;
    let mut failed_init = 0;
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    for (container, status) in spec::init_containers(pod).iter().zip(init) {
        let state = status.state.clone().unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        if spec::is_sidecar(container) {
            if state.running.is_some() {
                running += 1;
                pending_sidecars += usize::from(status.started != Some(true));
            } else if state.waiting.is_some() && last.is_none() {
                pending_sidecars += 1;
                waiting += 1;
            } else if state.terminated.is_none() && state.waiting.is_none() {
                pending_sidecars += 1;
                unknown += 1;
            }
        } else if let Some(end) = &state.terminated {
            failed_init += usize::from(end.exit_code != 0);
        } else if let (Some(_), Some(end)) = (&state.waiting, last) {
            failed_init += usize::from(end.exit_code != 0);
        } else {
            pending_init += 1;
        }
    }
    for status in regular {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(end) = &state.terminated {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if state.waiting.is_some() {
            if status.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) { stopped += 1 } else { waiting += 1 }
        } else {
            unknown += 1;
        }
    }
    let policy = spec::restart_policy(pod);
    if failed_init > 0 && policy == "Never" {
        return "Failed";
    }
    if pending_init > 0 || (pending_sidecars > 0 && !initialized) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if !finished && policy == "Always" {
            return "Running";
        }
        if stopped == succeeded {
            return "Succeeded";
        }
        return if finished || policy == "Never" { "Failed" } else { "Running" };
    }
    "Pending"
}

/// One condition's verdict: status, reason and message.
type Verdict = (bool, Option<&'static str>, Option<String>);

fn conditions(
    pod: &Pod,
    observed: &Observed,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    phase: &str,
    old: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox = observed.ready_sandbox().is_some_and(|s| s.host_network || !s.ips.is_empty());
    let containers_ready = containers_ready(pod, init, regular, phase);
    let ready = pod_ready(pod, &containers_ready, old);
    let initialized = initialized(pod, init, regular, phase);
    let all = [
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    let mut out: Vec<PodCondition> = all.into_iter().map(|(kind, verdict)| condition(pod, kind, verdict, old, now)).collect();
    // Written by the scheduler; a pod that names its node itself gets it from here.
    let scheduled = old.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled").cloned();
    out.push(scheduled.unwrap_or_else(|| condition(pod, "PodScheduled", (true, None, None), old, now)));
    out
}

fn condition(pod: &Pod, kind: &str, (status, reason, message): Verdict, old: &PodStatus, now: Timestamp) -> PodCondition {
    let status = if status { "True" } else { "False" };
    let same = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.map(str::to_owned),
        message,
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

fn containers_ready(pod: &Pod, init: &[ContainerStatus], regular: &[ContainerStatus], phase: &str) -> Verdict {
    let mut unready = Vec::new();
    for (container, status) in spec::init_containers(pod).iter().zip(init) {
        if spec::is_sidecar(container) && !status.ready {
            unready.push(status.name.as_str());
        }
    }
    unready.extend(regular.iter().filter(|s| !s.ready).map(|s| s.name.as_str()));
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    if unready.is_empty() {
        return (true, None, None);
    }
    (false, Some("ContainersNotReady"), Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

fn pod_ready(pod: &Pod, containers: &Verdict, old: &PodStatus) -> Verdict {
    if !containers.0 {
        return containers.clone();
    }
    let mut messages = Vec::new();
    for gate in spec::spec(pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match old.conditions.iter().flatten().find(|c| c.type_ == *kind) {
            None => messages.push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => {
                messages.push(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", c.status));
            }
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        return (true, None, None);
    }
    (false, Some("ReadinessGatesNotReady"), Some(messages.join(", ")))
}

fn initialized(pod: &Pod, init: &[ContainerStatus], regular: &[ContainerStatus], phase: &str) -> Verdict {
    if init.is_empty() {
        return (true, None, None);
    }
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    if regular.iter().any(has_started) {
        return (true, None, None);
    }
    let mut incomplete = Vec::new();
    for (container, status) in spec::init_containers(pod).iter().zip(init) {
        let done = if spec::is_sidecar(container) { status.started == Some(true) } else { status.ready };
        if !done {
            incomplete.push(status.name.as_str());
        }
    }
    if incomplete.is_empty() {
        return (true, None, None);
    }
    (false, Some("ContainersNotInitialized"), Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
