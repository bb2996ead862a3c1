//! What to do next for a pod: pure, from what the API wants and what containerd holds.
//!
//! The rules are kubelet's `computePodActions`: sandbox first, init containers in order (sidecars stay),
//! then the regular ones; a container is restarted by policy, image change or probe, within back-off.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};

use crate::backoff::KUBELET;
use crate::memory::{Ended, FailedProbe, Memory, Waiting, backoff_key};
use crate::observe::{Container, Observed, Run};
use crate::spec::{self, Kind};

/// Instances of a container that are kept: the current one and the one before.
const KEEP_INSTANCES: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mount volumes and, with an attempt number, run a sandbox.
    SetUp {
        sandbox: Option<u32>,
    },
    /// Pull the image, create and start.
    Start {
        name: String,
        kind: Kind,
        restart_count: i32,
    },
    /// Stop one container of a pod that goes on.
    Kill {
        id: String,
        name: String,
        kind: Kind,
        message: String,
        grace: Option<i64>,
    },
    /// Stop every container, sidecars last, within `grace` seconds, then the sandboxes.
    StopPod {
        grace: i64,
    },
    RemoveContainer {
        id: String,
        log_path: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Unmount volumes, remove the pod's cgroup and directory.
    TearDown,
    /// The final delete, grace 0.
    DeleteFromApi,
    /// Remove containers, sandboxes and logs: nobody can ask for them any more.
    Forget,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Plan again then even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// Containers held back by restart back-off.
    pub waiting: Vec<(String, Kind, Waiting)>,
    /// The pod is over for a reason found while planning (its deadline).
    pub ended: Option<Ended>,
    /// Nothing will run again: the status may be terminal.
    pub finished: bool,
}

/// Plans the next steps. Executing them and planning again leads to the wanted state; planning
/// twice without executing gives the same plan.
pub fn plan(pod: &Pod, observed: &Observed, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if memory.ended.is_none() && !spec::is_deleting(pod) && !memory.removed && !spec::api_terminal(pod) {
        plan.ended = deadline(pod, memory, now, &mut plan.wake_at);
    }
    let over = spec::is_deleting(pod) || memory.removed || memory.ended.is_some() || plan.ended.is_some() || spec::api_terminal(pod);
    if over {
        plan.finished = true;
        end(pod, observed, memory, &mut plan);
        return plan;
    }
    keep_running(pod, observed, memory, now, &mut plan);
    if plan.finished {
        end(pod, observed, memory, &mut plan);
    } else {
        collect_garbage(pod, observed, &mut plan);
    }
    plan
}

fn deadline(pod: &Pod, memory: &Memory, now: Timestamp, wake_at: &mut Option<Timestamp>) -> Option<Ended> {
    let seconds = spec::spec(pod).active_deadline_seconds?;
    let until = memory.start_time?.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    if now < until {
        sooner(wake_at, until);
        return None;
    }
    Some(Ended {
        reason: "DeadlineExceeded".into(),
        message: "Pod was active on the node longer than the specified deadline".into(),
        rejected: false,
    })
}

/// The way down: containers, sandboxes, volumes, API object, records.
fn end(pod: &Pod, observed: &Observed, memory: &Memory, plan: &mut Plan) {
    if observed.any_running() || observed.sandboxes.iter().any(|s| s.ready) {
        plan.steps.push(Step::StopPod { grace: spec::grace_seconds(pod) });
    } else if !memory.torn_down {
        plan.steps.push(Step::TearDown);
    } else if memory.removed {
        plan.steps.push(Step::Forget);
    } else if spec::is_deleting(pod) && !memory.deleted && no_finalizers(pod) {
        plan.steps.push(Step::DeleteFromApi);
    }
}

/// With finalizers left the delete is still sent once (it sets grace to zero), but their owner ends it.
fn no_finalizers(pod: &Pod) -> bool {
    pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) || pod.metadata.deletion_grace_period_seconds != Some(0)
}

fn keep_running(pod: &Pod, observed: &Observed, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    let mut starts: Vec<(String, Kind)> = Vec::new();
    match sandbox_attempt(pod, observed) {
        Some(attempt) => {
            if !worth_a_sandbox(pod, observed, attempt) {
                plan.finished = true;
                return;
            }
            if observed.any_running() || observed.sandboxes.iter().any(|s| s.ready) {
                // A sandbox that lost its network or its place: what runs in it goes first.
                plan.steps.push(Step::StopPod { grace: spec::grace_seconds(pod) });
                return;
            }
            if let Some(at) = memory.retry_at.get("").filter(|at| **at > now) {
                sooner(&mut plan.wake_at, *at);
                return;
            }
            plan.steps.push(Step::SetUp { sandbox: Some(attempt) });
            return;
        }
        None if !memory.volumes_ready => {
            match memory.retry_at.get("").filter(|at| **at > now) {
                Some(at) => sooner(&mut plan.wake_at, *at),
                None => plan.steps.push(Step::SetUp { sandbox: None }),
            }
            // What runs already keeps running and is looked after; nothing new starts without volumes.
            if !observed.any_running() {
                return;
            }
        }
        None => {}
    }
    for container in spec::spec(pod).ephemeral_containers.iter().flatten() {
        if observed.latest(&container.name).is_none() {
            starts.push((container.name.clone(), Kind::Ephemeral));
        }
    }
    let initialized = match init_containers(pod, observed, memory, plan, &mut starts) {
        Init::Done => true,
        Init::Pending => false,
        Init::Failed => {
            plan.finished = true;
            plan.steps.retain(|s| !matches!(s, Step::Kill { .. }));
            return;
        }
    };
    if initialized {
        let kept = regular_containers(pod, observed, memory, plan, &mut starts);
        let any_regular = starts.iter().any(|(_, kind)| *kind == Kind::Regular);
        if kept == 0 && !any_regular {
            plan.finished = true;
            plan.steps.retain(|s| !matches!(s, Step::Kill { .. }));
            return;
        }
    }
    for (name, kind) in starts {
        start(pod, observed, memory, now, plan, name, kind);
    }
}

/// `Some(attempt)` when the pod needs a new sandbox.
fn sandbox_attempt(pod: &Pod, observed: &Observed) -> Option<u32> {
    let newest = observed.sandboxes.first();
    let next = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
    let ready = observed.sandboxes.iter().filter(|s| s.ready).count();
    match newest {
        Some(s) if ready == 1 && s.ready => {
            let moved = s.host_network != spec::host_network(pod);
            let lost_network = !s.host_network && s.ips.is_empty();
            (moved || lost_network).then_some(next)
        }
        Some(_) | None => Some(next),
    }
}

/// A first sandbox always; a later one only when something is left to run in it.
fn worth_a_sandbox(pod: &Pod, observed: &Observed, attempt: u32) -> bool {
    if attempt == 0 || observed.containers.is_empty() {
        return true;
    }
    if spec::restart_policy(pod) == "Never" && !any_own_restart_policy(pod) {
        return false;
    }
    let left = spec::spec(pod).containers.iter().any(|c| should_restart(pod, c, observed.latest(&c.name)));
    left || !all_init_succeeded(pod, observed)
}

fn any_own_restart_policy(pod: &Pod) -> bool {
    spec::spec(pod).containers.iter().any(|c| c.restart_policy.is_some() || c.restart_policy_rules.is_some())
}

fn all_init_succeeded(pod: &Pod, observed: &Observed) -> bool {
    let mut plain = spec::init_containers(pod).iter().filter(|c| !spec::is_sidecar(c));
    plain.all(|c| observed.latest(&c.name).and_then(Container::exited).is_some_and(|(code, _)| code == 0))
}

/// Restart policy of a pod and, where given, of the container itself (KEP-5307).
pub fn should_restart(pod: &Pod, container: &ContainerSpec, latest: Option<&Container>) -> bool {
    let Some(latest) = latest else { return true };
    let code = match latest.run {
        Run::Running { .. } => return false,
        Run::Created | Run::Unknown => return true,
        Run::Exited { exit_code, .. } => exit_code,
    };
    if let Some(policy) = container.restart_policy.as_deref().filter(|p| !p.is_empty()) {
        for rule in container.restart_policy_rules.iter().flatten() {
            let Some(codes) = &rule.exit_codes else { continue };
            let listed = codes.values.iter().flatten().any(|v| *v == code);
            let matches = match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            if matches && rule.action == "Restart" {
                return true;
            }
        }
        return by_policy(policy, code);
    }
    by_policy(spec::restart_policy(pod), code)
}

fn by_policy(policy: &str, exit_code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

enum Init {
    Done,
    Pending,
    Failed,
}

/// Walks the init containers backwards: the last one that ran tells how far the pod has come, for
/// records of earlier ones may have been removed.
fn init_containers(pod: &Pod, observed: &Observed, memory: &Memory, plan: &mut Plan, starts: &mut Vec<(String, Kind)>) -> Init {
    let all = spec::init_containers(pod);
    if all.is_empty() {
        return Init::Done;
    }
    let sandbox = observed.sandbox().map(|s| s.id.as_str()).unwrap_or("");
    // Instances of an earlier sandbox do not count: a new sandbox starts from the beginning.
    let current = |name: &str| observed.latest(name).filter(|c| c.sandbox_id == sandbox);
    let regular_ran = spec::spec(pod).containers.iter().filter_map(|c| current(&c.name)).next().is_some();
    let mut done = regular_ran;
    let mut passed = regular_ran;
    let mut found: Vec<usize> = Vec::new();
    for (index, container) in all.iter().enumerate().rev() {
        let sidecar = spec::is_sidecar(container);
        let Some(latest) = current(&container.name) else {
            if passed && sidecar {
                found.push(index);
            }
            continue;
        };
        if passed && !sidecar {
            continue;
        }
        let last = index + 1 == all.len();
        match &latest.run {
            Run::Created | Run::Unknown => found.push(index),
            Run::Running { .. } if !sidecar => {}
            Run::Running { .. } => {
                let view = memory.probes.get(&latest.id);
                if let Some((FailedProbe::Startup, grace)) = view.and_then(|v| v.failed) {
                    kill(
                        plan,
                        latest,
                        Kind::Sidecar,
                        format!("Init container {} failed startup probe, will be restarted", container.name),
                        grace,
                    );
                } else if memory.started(&latest.id, container.startup_probe.is_some()) {
                    if last {
                        done = true;
                    } else if !passed {
                        found.push(index + 1);
                    }
                    if latest.hash != spec::container_hash(container) {
                        kill(
                            plan,
                            latest,
                            Kind::Sidecar,
                            format!("Init container {} definition changed, will be restarted", container.name),
                            None,
                        );
                    } else if let Some((FailedProbe::Liveness, grace)) = view.and_then(|v| v.failed) {
                        kill(
                            plan,
                            latest,
                            Kind::Sidecar,
                            format!("Init container {} failed liveness probe, will be restarted", container.name),
                            grace,
                        );
                    }
                }
            }
            Run::Exited { .. } if sidecar => found.push(index),
            Run::Exited { exit_code: 0, .. } if last => done = true,
            Run::Exited { exit_code: 0, .. } => found.push(index + 1),
            Run::Exited { .. } if !should_restart_init(pod, container, latest) => return Init::Failed,
            Run::Exited { .. } => found.push(index),
        }
        passed = true;
    }
    if !passed {
        found.push(0);
    }
    found.sort();
    found.dedup();
    for index in found {
        let container = &all[index];
        if current(&container.name).is_none_or(|c| !c.is_running()) {
            starts.push((container.name.clone(), spec::init_kind(container)));
        }
    }
    if done { Init::Done } else { Init::Pending }
}

/// A failed init container is tried again unless the policy is Never; its success is final.
fn should_restart_init(pod: &Pod, container: &ContainerSpec, latest: &Container) -> bool {
    if container.restart_policy.is_some() {
        return should_restart(pod, container, Some(latest));
    }
    spec::restart_policy(pod) != "Never"
}

/// Returns how many regular containers stay as they are.
fn regular_containers(pod: &Pod, observed: &Observed, memory: &Memory, plan: &mut Plan, starts: &mut Vec<(String, Kind)>) -> usize {
    let mut kept = 0;
    for container in &spec::spec(pod).containers {
        let latest = observed.latest(&container.name);
        let Some(running) = latest.filter(|c| c.is_running()) else {
            if should_restart(pod, container, latest) {
                if let Some(unknown) = latest.filter(|c| c.run == Run::Unknown) {
                    let message = "Container is in unknown state, try killing it before restart".to_owned();
                    kill(plan, unknown, Kind::Regular, message, None);
                }
                starts.push((container.name.clone(), Kind::Regular));
            }
            continue;
        };
        let view = memory.probes.get(&running.id);
        let (mut message, grace, changed) = if running.hash != spec::container_hash(container) {
            (format!("Container {} definition changed", container.name), None, true)
        } else {
            match view.and_then(|v| v.failed) {
                Some((FailedProbe::Liveness, grace)) => (format!("Container {} failed liveness probe", container.name), grace, false),
                Some((FailedProbe::Startup, grace)) => (format!("Container {} failed startup probe", container.name), grace, false),
                None => {
                    kept += 1;
                    continue;
                }
            }
        };
        let again = changed || restarts_after_kill(pod, container);
        if again {
            message.push_str(", will be restarted");
        }
        kill(plan, running, Kind::Regular, message, grace);
        // Still there until the step has run; the next plan sees it exited and decides.
        kept += 1;
    }
    kept
}

fn restarts_after_kill(pod: &Pod, container: &ContainerSpec) -> bool {
    match container.restart_policy.as_deref() {
        Some(policy) => policy != "Never",
        None => spec::restart_policy(pod) != "Never",
    }
}

fn kill(plan: &mut Plan, container: &Container, kind: Kind, message: String, grace: Option<i64>) {
    plan.steps.push(Step::Kill { id: container.id.clone(), name: container.name.clone(), kind, message, grace });
}

/// A start, unless back-off or a failed try holds it.
fn start(pod: &Pod, observed: &Observed, memory: &Memory, now: Timestamp, plan: &mut Plan, name: String, kind: Kind) {
    let Some((_, container)) = spec::container(pod, &name) else { return };
    let latest = observed.latest(&name);
    if !memory.volumes_ready {
        return;
    }
    if let Some(at) = memory.retry_at.get(&name).filter(|at| **at > now) {
        sooner(&mut plan.wake_at, *at);
        return;
    }
    if let Some((_, finished_at)) = latest.and_then(Container::exited)
        && kind != Kind::Ephemeral
    {
        let key = backoff_key(&name, &spec::container_hash(&container));
        let event = Timestamp::from_nanosecond(i128::from(finished_at)).unwrap_or(now);
        if let Some(until) = memory.crash_backoff.blocked_until(KUBELET, &key, event, now) {
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(memory.crash_backoff.delay(&key)),
                spec::full_name(pod)
            );
            plan.waiting.push((name, kind, Waiting { reason: "CrashLoopBackOff".into(), message }));
            sooner(&mut plan.wake_at, until);
            return;
        }
    }
    let restart_count = latest.map_or_else(|| previous_count(pod, &name), |c| c.restart_count + 1);
    plan.steps.push(Step::Start { name, kind, restart_count });
}

/// With every record gone the API's status still knows how often the container was started.
fn previous_count(pod: &Pod, name: &str) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let old = lists.into_iter().flatten().flatten().find(|c| c.name == name);
    old.filter(|c| c.container_id.as_deref().is_some_and(|id| !id.is_empty())).map_or(0, |c| c.restart_count + 1)
}

fn collect_garbage(pod: &Pod, observed: &Observed, plan: &mut Plan) {
    for (_, container) in spec::containers(pod) {
        for old in observed.instances(&container.name).skip(KEEP_INSTANCES).filter(|c| !c.may_run()) {
            plan.steps.push(Step::RemoveContainer { id: old.id.clone(), log_path: old.log_path.clone() });
        }
    }
    for old in observed.sandboxes.iter().skip(1).filter(|s| !s.ready) {
        let empty = !observed.containers.iter().any(|c| c.sandbox_id == old.id);
        if empty {
            plan.steps.push(Step::RemoveSandbox { id: old.id.clone() });
        }
    }
}

pub fn sooner(wake_at: &mut Option<Timestamp>, at: Timestamp) {
    *wake_at = Some(wake_at.map_or(at, |w| w.min(at)));
}

/// Go's `Duration.String` for whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
