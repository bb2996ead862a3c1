//! What a Job does next and what its status says.
//!
//! A pod keeps a finalizer until it is counted. Counting takes three writes: its uid goes into the status as uncounted,
//! its finalizer goes, its uid leaves the list and the counter grows. After a crash between any two of them nothing is
//! counted twice or forgotten (KEP-2307).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use xebec_loops::clock::seconds_between;
use xebec_loops::meta::{annotation, deleting, uid};
use xebec_loops::pod::{is_active, is_ready, is_terminal, phase, restarts};

use super::indexes;
use super::policy::{Action, action, success};
use crate::replicas::choose_to_delete;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const BACKOFF_SECONDS: f64 = 10.0;
const BACKOFF_LIMIT_SECONDS: f64 = 600.0;

/// A pod to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPod {
    /// In an Indexed Job.
    pub index: Option<i32>,
    /// Failures of the index so far, when they are counted by index.
    pub failures: Option<i32>,
}

/// What to do.
#[derive(Debug)]
pub struct Plan {
    pub status: JobStatus,
    pub create: Vec<NewPod>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that are counted in the stored status.
    pub release: Vec<Arc<Pod>>,
    /// Look again after so many seconds.
    pub again: Option<f64>,
    /// (Warning?, reason, text)
    pub events: Vec<(bool, &'static str, String)>,
}

/// Whether a condition is True.
pub fn has(status: &JobStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
}

/// Whether the Job has ended.
pub fn is_finished(status: &JobStatus) -> bool {
    has(status, "Complete") || has(status, "Failed")
}

fn set(status: &mut JobStatus, type_: &str, value: bool, reason: &str, message: &str, now: &Time) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if value { "True" } else { "False" };
    if conditions.iter().any(|c| c.type_ == type_ && c.status == value) {
        return;
    }
    conditions.retain(|c| c.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    });
}

fn index_of(pod: &Pod) -> Option<i32> {
    annotation(&pod.metadata, INDEX)?.parse().ok()
}

fn tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// The Job's pods sorted by what they mean to it.
struct Tally {
    active: Vec<Arc<Pod>>,
    terminating: Vec<Arc<Pod>>,
    failed_now: Vec<Arc<Pod>>,
}

/// Decides everything from the Job and its pods.
pub fn plan(job: &Job, pods: &[Arc<Pod>], now: &Time) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let old = job.status.clone().unwrap_or_default();
    let mut plan = Plan { status: old.clone(), create: vec![], delete: vec![], release: vec![], again: None, events: vec![] };
    let suspended = spec.suspend == Some(true);
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let completions = spec.completions;
    if is_finished(&old) {
        plan.release = pods.iter().filter(|p| tracked(p)).cloned().collect();
        return plan;
    }
    if old.start_time.is_none() && !suspended {
        plan.status.start_time = Some(now.clone());
    }
    let (mut succeeded_indexes, mut failed_indexes) = (BTreeSet::new(), BTreeSet::new());
    if indexed {
        succeeded_indexes = indexes::parse(old.completed_indexes.as_deref().unwrap_or_default(), completions.unwrap_or(0));
        failed_indexes = indexes::parse(old.failed_indexes.as_deref().unwrap_or_default(), completions.unwrap_or(0));
    }
    let fail_reason = count(job, pods, &old, suspended, &mut plan, &mut succeeded_indexes, &mut failed_indexes);
    let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let waiting = |l: &Option<Vec<String>>| l.as_ref().map_or(0, |l| l.len() as i32);
    if indexed {
        plan.status.succeeded = Some(succeeded_indexes.len() as i32).filter(|n| *n != 0);
        plan.status.completed_indexes = Some(indexes::format(&succeeded_indexes)).filter(|t| !t.is_empty());
        if spec.backoff_limit_per_index.is_some() {
            plan.status.failed_indexes = Some(indexes::format(&failed_indexes));
        }
    }
    let succeeded =
        if indexed { succeeded_indexes.len() as i32 } else { plan.status.succeeded.unwrap_or(0) + waiting(&uncounted.succeeded) };
    let failed = plan.status.failed.unwrap_or(0) + waiting(&uncounted.failed);
    let tally = Tally {
        active: pods.iter().filter(|p| is_active(p)).cloned().collect(),
        terminating: pods.iter().filter(|p| deleting(&p.metadata) && !is_terminal(p)).cloned().collect(),
        failed_now: pods.iter().filter(|p| phase(p) == "Failed").cloned().collect(),
    };
    let elapsed = plan.status.start_time.as_ref().map_or(0.0, |t| seconds_between(t, now));
    let failure = fail_reason
        .map(|text| ("PodFailurePolicy", text))
        .or_else(|| failure_of(job, &tally, failed, succeeded, &failed_indexes, elapsed, suspended));
    if let Some((reason, text)) = &failure {
        set(&mut plan.status, "FailureTarget", true, reason, text, now);
    }
    let all_in = completions.map_or(succeeded > 0 && tally.active.is_empty(), |c| succeeded >= c);
    if failure.is_none() && !has(&plan.status, "FailureTarget") && !suspended {
        if let Some(text) = success(job, &succeeded_indexes) {
            set(&mut plan.status, "SuccessCriteriaMet", true, "SuccessPolicy", &text, now);
        } else if all_in {
            set(&mut plan.status, "SuccessCriteriaMet", true, "CompletionsReached", "Reached expected number of succeeded pods", now);
        }
    }
    let ending = has(&plan.status, "FailureTarget") || has(&plan.status, "SuccessCriteriaMet");
    if ending || suspended {
        plan.delete = tally.active.clone();
    }
    if suspended && !ending {
        if !has(&plan.status, "Suspended") {
            set(&mut plan.status, "Suspended", true, "JobSuspended", "Job suspended", now);
            plan.events.push((false, "Suspended", "Job suspended".into()));
        }
        plan.status.start_time = None;
    } else if has(&old, "Suspended") {
        set(&mut plan.status, "Suspended", false, "JobResumed", "Job resumed", now);
        plan.events.push((false, "Resumed", "Job resumed".into()));
        plan.status.start_time = Some(now.clone());
    }
    if !ending && !suspended {
        replicate(job, &tally, succeeded, failed, &succeeded_indexes, &failed_indexes, pods, now, &mut plan);
        if let Some(deadline) = spec.active_deadline_seconds {
            let left = (deadline as f64 - elapsed).max(0.0) + 0.1;
            plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
        }
    }
    plan.status.active = Some(tally.active.len() as i32).filter(|n| *n != 0);
    plan.status.ready = Some(tally.active.iter().filter(|p| is_ready(p)).count() as i32);
    plan.status.terminating = Some(tally.terminating.len() as i32);
    // The end is told when nothing runs and everything is counted.
    if ending && tally.active.is_empty() && tally.terminating.is_empty() && waiting(&uncounted.succeeded) + waiting(&uncounted.failed) == 0
    {
        finish(&mut plan, now);
    }
    plan
}

/// Moves ended pods through the three steps. Says why the Job fails if a rule says so.
fn count(
    job: &Job,
    pods: &[Arc<Pod>],
    old: &JobStatus,
    suspended: bool,
    plan: &mut Plan,
    succeeded_indexes: &mut BTreeSet<i32>,
    failed_indexes: &mut BTreeSet<i32>,
) -> Option<String> {
    let spec = job.spec.clone().unwrap_or_default();
    let by_uid: BTreeMap<&str, &Arc<Pod>> = pods.iter().map(|p| (uid(&p.metadata), p)).collect();
    let held = |u: &String| by_uid.get(u.as_str()).is_some_and(|p| tracked(p));
    let was = old.uncounted_terminated_pods.clone().unwrap_or_default();
    let (mut good, mut bad) = (was.succeeded.unwrap_or_default(), was.failed.unwrap_or_default());
    for u in good.iter().chain(&bad) {
        if let Some(pod) = by_uid.get(u.as_str()).filter(|p| tracked(p)) {
            plan.release.push((*pod).clone());
        }
    }
    let moved = |list: &mut Vec<String>| {
        let before = list.len();
        list.retain(held);
        (before - list.len()) as i32
    };
    let add = |n: &mut Option<i32>, more: i32| *n = Some(n.unwrap_or(0) + more).filter(|n| *n != 0);
    add(&mut plan.status.succeeded, moved(&mut good));
    add(&mut plan.status.failed, moved(&mut bad));
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some();
    let mut fails = None;
    for pod in pods.iter().filter(|p| tracked(p)) {
        let id = uid(&pod.metadata).to_owned();
        if good.contains(&id) || bad.contains(&id) {
            continue;
        }
        let failed = phase(pod) == "Failed" || (deleting(&pod.metadata) && phase(pod) != "Succeeded" && !only_failed);
        if phase(pod) == "Succeeded" {
            let counts = index_of(pod).is_none_or(|i| succeeded_indexes.insert(i));
            if counts { good.push(id) } else { plan.release.push(pod.clone()) }
        } else if failed && suspended && deleting(&pod.metadata) {
            // Removed because of the suspension: no failure.
            plan.release.push(pod.clone());
        } else if failed {
            match action(job, pod) {
                Action::Ignore => plan.release.push(pod.clone()),
                Action::FailJob(text) => {
                    fails = fails.or(Some(text));
                    bad.push(id);
                }
                verdict => {
                    if let (Some(limit), Some(i)) = (spec.backoff_limit_per_index, index_of(pod)) {
                        let before = annotation(&pod.metadata, INDEX_FAILURES).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
                        if (verdict == Action::FailIndex || before >= limit) && !succeeded_indexes.contains(&i) {
                            failed_indexes.insert(i);
                        }
                    }
                    bad.push(id);
                }
            }
        }
    }
    let uncounted = plan.status.uncounted_terminated_pods.get_or_insert_default();
    uncounted.succeeded = (!good.is_empty()).then_some(good);
    uncounted.failed = (!bad.is_empty()).then_some(bad);
    fails
}

fn failure_of(
    job: &Job,
    tally: &Tally,
    failed: i32,
    succeeded: i32,
    failed_indexes: &BTreeSet<i32>,
    elapsed: f64,
    suspended: bool,
) -> Option<(&'static str, String)> {
    let spec = job.spec.as_ref()?;
    let per_index = spec.backoff_limit_per_index.is_some();
    let limit = spec.backoff_limit.unwrap_or(if per_index { i32::MAX } else { 6 });
    let on_failure = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
    let restarted: i32 = tally.active.iter().map(|p| restarts(p)).sum();
    let too_many_restarts = on_failure && if limit == 0 { restarted > 0 } else { restarted >= limit };
    if failed > limit || too_many_restarts {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
    }
    if !suspended && spec.active_deadline_seconds.is_some_and(|d| elapsed >= d as f64) {
        return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
    }
    if per_index {
        if spec.max_failed_indexes.is_some_and(|m| failed_indexes.len() as i32 > m) {
            return Some(("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes".into()));
        }
        if !failed_indexes.is_empty() && failed_indexes.len() as i32 + succeeded >= spec.completions.unwrap_or(0) {
            return Some(("FailedIndexes", "Job has failed indexes".into()));
        }
    }
    None
}

#[expect(clippy::too_many_arguments, reason = "one call, all of it is the state that is looked at")]
fn replicate(
    job: &Job,
    tally: &Tally,
    succeeded: i32,
    failed: i32,
    done: &BTreeSet<i32>,
    lost: &BTreeSet<i32>,
    pods: &[Arc<Pod>],
    now: &Time,
    plan: &mut Plan,
) {
    let spec = job.spec.clone().unwrap_or_default();
    let parallelism = spec.parallelism.unwrap_or(1);
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some();
    let active = tally.active.len() as i32;
    let occupied = active + if only_failed { tally.terminating.len() as i32 } else { 0 };
    let want = match spec.completions {
        Some(c) => parallelism.min(c - succeeded - lost.len() as i32).max(0),
        None if succeeded > 0 => active.min(parallelism),
        None => parallelism,
    };
    if active > want {
        let surplus = usize::try_from(active - want).unwrap_or(0);
        plan.delete = choose_to_delete(&tally.active, &tally.active, surplus, now);
        return;
    }
    let missing = usize::try_from(want - occupied).unwrap_or(0);
    if missing == 0 {
        return;
    }
    if let Some(wait) = backoff(tally, failed, now) {
        plan.again = Some(wait);
        return;
    }
    if spec.completion_mode.as_deref() != Some("Indexed") {
        plan.create = vec![NewPod { index: None, failures: None }; missing];
        return;
    }
    let busy: BTreeSet<i32> =
        pods.iter().filter(|p| !is_terminal(p) && (!deleting(&p.metadata) || only_failed)).filter_map(|p| index_of(p)).collect();
    let free = (0..spec.completions.unwrap_or(0)).filter(|i| !done.contains(i) && !lost.contains(i) && !busy.contains(i));
    let failures = |i: i32| {
        let of_index = pods.iter().filter(|p| index_of(p) == Some(i) && phase(p) == "Failed");
        let counts = of_index.map(|p| annotation(&p.metadata, INDEX_FAILURES).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0) + 1);
        counts.max().unwrap_or(0)
    };
    let counted = spec.backoff_limit_per_index.is_some();
    plan.create = free.take(missing).map(|i| NewPod { index: Some(i), failures: counted.then(|| failures(i)) }).collect();
}

/// After failures the next pod waits: ten seconds, doubled with each, counted from the last failure's end.
fn backoff(tally: &Tally, failed: i32, now: &Time) -> Option<f64> {
    let ended = |p: &Arc<Pod>| {
        let statuses = p.status.as_ref()?.container_statuses.as_ref()?;
        let times = statuses.iter().filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.clone());
        times.max().or_else(|| p.metadata.deletion_timestamp.clone())
    };
    let last = tally.failed_now.iter().filter_map(ended).max()?;
    let exponent = (failed.max(1) - 1).min(10);
    let delay = (BACKOFF_SECONDS * f64::from(1 << exponent)).min(BACKOFF_LIMIT_SECONDS);
    let left = delay - seconds_between(&last, now);
    (left > 0.0).then_some(left)
}

fn finish(plan: &mut Plan, now: &Time) {
    let of = |status: &JobStatus, type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True").cloned();
    if let Some(target) = of(&plan.status, "FailureTarget") {
        let (reason, message) = (target.reason.unwrap_or_default(), target.message.unwrap_or_default());
        set(&mut plan.status, "Failed", true, &reason, &message, now);
        let reason = match reason.as_str() {
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            "FailedIndexes" => "FailedIndexes",
            "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
            _ => "BackoffLimitExceeded",
        };
        plan.events.push((true, reason, message));
    } else if let Some(met) = of(&plan.status, "SuccessCriteriaMet") {
        let (reason, message) = (met.reason.unwrap_or_default(), met.message.unwrap_or_default());
        set(&mut plan.status, "Complete", true, &reason, &message, now);
        plan.status.completion_time = Some(now.clone());
        plan.events.push((false, "Completed", "Job completed".into()));
    }
}
