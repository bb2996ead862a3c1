//! A Deployment's status.

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use xebec_loops::clock::seconds_between;

use super::view::View;

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// Counts of the sets, without conditions.
fn counts(view: &View) -> DeploymentStatus {
    let sum =
        |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 { view.all().filter_map(|s| s.status.as_ref()).map(f).sum() };
    let some = |n: i32| (n != 0).then_some(n);
    let available = sum(|s| s.available_replicas.unwrap_or(0));
    let updated = view.new.as_ref().and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: some(sum(|s| s.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|s| s.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((view.total_wanted() - available).max(0)),
        terminating_replicas: Some(sum(|s| s.terminating_replicas.unwrap_or(0))),
        collision_count: view.deployment.status.as_ref().and_then(|s| s.collision_count),
        conditions: None,
    }
}

/// Whether every pod is of the current template and available, and nothing else is left.
pub fn is_complete(view: &View) -> bool {
    complete(view, &counts(view))
}

fn complete(view: &View, status: &DeploymentStatus) -> bool {
    let want = view.replicas();
    status.updated_replicas.unwrap_or(0) == want && status.replicas.unwrap_or(0) == want && status.available_replicas.unwrap_or(0) == want
}

fn progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn condition(type_: &str, status: bool, reason: &str, message: String, now: &Time) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Puts a condition in unless it says the same already; the transition time is kept when the status stays.
fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = conditions.iter().find(|c| c.type_ == new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != new.type_);
    conditions.push(new);
}

/// What happened to the set of the current template in this run, which the Progressing condition tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// It was made.
    Created(String),
    /// It could not be made.
    Failed(String),
}

/// The status, and after how many seconds the progress deadline should be looked at again.
pub fn status(view: &View, news: &News, now: &Time) -> (DeploymentStatus, Option<f64>) {
    let old = view.deployment.status.clone().unwrap_or_default();
    let mut status = counts(view);
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let enough = status.available_replicas.unwrap_or(0) >= view.replicas() - view.max_unavailable();
    set(
        &mut conditions,
        if enough {
            condition("Available", true, "MinimumReplicasAvailable", "Deployment has minimum availability.".into(), now)
        } else {
            condition("Available", false, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".into(), now)
        },
    );
    let mut again = None;
    match view.deadline() {
        None => conditions.retain(|c| c.type_ != "Progressing"),
        Some(deadline) => again = progress(view, &old, &status, &mut conditions, deadline, news, now),
    }
    let failures = view.all().filter_map(|s| s.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure"));
    // The current set's failure says more than an old one's.
    match failures.last() {
        Some(failure) => set(
            &mut conditions,
            DeploymentCondition {
                type_: "ReplicaFailure".into(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_update_time: Some(now.clone()),
                last_transition_time: failure.last_transition_time.clone(),
            },
        ),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    (status, again)
}

fn progress(
    view: &View,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    deadline: i32,
    news: &News,
    now: &Time,
) -> Option<f64> {
    let is = |c: &&DeploymentCondition| c.type_ == "Progressing";
    let reason_now = |cs: &[DeploymentCondition]| cs.iter().find(is).and_then(|c| c.reason.clone());
    match news {
        News::Created(name) => {
            set(conditions, condition("Progressing", true, "NewReplicaSetCreated", format!("Created new replica set \"{name}\""), now));
        }
        News::Failed(why) => {
            set(conditions, condition("Progressing", false, "ReplicaSetCreateError", why.clone(), now));
            return None;
        }
        News::None => {}
    }
    let subject = match &view.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment \"{}\"", view.deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if view.spec.paused == Some(true) {
        if reason_now(conditions).as_deref() != Some(TIMED_OUT) {
            set(conditions, condition("Progressing", true, "DeploymentPaused", "Deployment is paused".into(), now));
            let pause = conditions.iter_mut().find(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("DeploymentPaused"));
            if let Some(c) = pause {
                c.status = "Unknown".into();
            }
        }
        return None;
    }
    if reason_now(conditions).as_deref() == Some("DeploymentPaused") {
        set(conditions, condition("Progressing", true, "DeploymentResumed", "Deployment is resumed".into(), now));
        if let Some(c) = conditions.iter_mut().find(|c| c.type_ == "Progressing") {
            c.status = "Unknown".into();
        }
    }
    if view.new.is_some() && reason_now(conditions).is_none() {
        let name = view.new.as_ref().and_then(|n| n.metadata.name.clone()).unwrap_or_default();
        set(conditions, condition("Progressing", true, "FoundNewReplicaSet", format!("Found new replica set \"{name}\""), now));
    }
    let current = conditions.iter().find(is).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.clone()).unwrap_or_default();
    let finished = status.replicas == status.updated_replicas && reason == NEW_SET_AVAILABLE;
    if finished {
        return None;
    }
    if complete(view, status) {
        set(conditions, condition("Progressing", true, NEW_SET_AVAILABLE, format!("{subject} has successfully progressed."), now));
        return None;
    }
    if progressing(old, status) {
        let mut new = condition("Progressing", true, "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(c) = current.filter(|c| c.status == "True") {
            new.last_transition_time = c.last_transition_time;
        }
        // Unlike other conditions this one is renewed each time: the deadline counts from its last update.
        conditions.retain(|c| c.type_ != "Progressing");
        conditions.push(new);
        return Some(f64::from(deadline) + 1.0);
    }
    let current = current?;
    if reason == NEW_SET_AVAILABLE || reason == TIMED_OUT {
        return None;
    }
    let since = current.last_update_time.as_ref().map_or(0.0, |t| seconds_between(t, now));
    if since > f64::from(deadline) {
        set(conditions, condition("Progressing", false, TIMED_OUT, format!("{subject} has timed out progressing."), now));
        return None;
    }
    Some(f64::from(deadline) - since + 1.0)
}
