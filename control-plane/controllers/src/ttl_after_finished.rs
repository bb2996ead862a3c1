//! TTL after finished: Jobs that ended are removed when their time is up.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Preconditions, PropagationPolicy};
use xebec_loops::clock::{self, seconds_between};
use xebec_loops::meta::deleting;
use xebec_loops::{Outcome, ignore_not_found};

use crate::job::is_finished;
use crate::setup::Setup;

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let (client, jobs) = (setup.client.clone(), setup.cache::<Job>());
    let cache = jobs.clone();
    setup.control_loop("ttl-after-finished", &jobs, 2, move |key| {
        let (client, cache) = (client.clone(), cache.clone());
        async move {
            let Some(job) = cache.get(&key).filter(|j| !deleting(&j.metadata)) else { return Ok(Outcome::Done) };
            let Some(left) = seconds_left(&job, &clock::now()) else { return Ok(Outcome::Done) };
            if left > 0.0 {
                return Ok(Outcome::Again(Duration::from_secs_f64(left)));
            }
            let exactly = Preconditions {
                uid: job.metadata.uid.clone(),
                // The time to live may have been made longer just now.
                resource_version: job.metadata.resource_version.clone(),
            };
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                preconditions: Some(exactly),
                ..DeleteParams::default()
            };
            let api: Api<Job> = Api::namespaced(client, &key.namespace);
            ignore_not_found(api.delete(&key.name, &params).await)?;
            Ok(Outcome::Done)
        }
    });
}

/// Seconds until the Job may go; `None` if it may stay or has not ended.
fn seconds_left(job: &Job, now: &Time) -> Option<f64> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let status = job.status.as_ref().filter(|s| is_finished(s))?;
    let ended = status.conditions.iter().flatten().filter(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"));
    let at = ended.filter_map(|c| c.last_transition_time.clone()).min()?;
    Some(f64::from(ttl) - seconds_between(&at, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn time_counts_from_the_end() {
        let job = |ttl: serde_json::Value, type_: &str| -> Job {
            from_value(json!({"metadata": {}, "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": type_, "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}}))
            .unwrap()
        };
        let now: Time = from_value(json!("2024-01-01T00:00:10Z")).unwrap();
        assert_eq!(seconds_left(&job(json!(30), "Complete"), &now), Some(20.0));
        assert_eq!(seconds_left(&job(json!(5), "Failed"), &now), Some(-5.0));
        assert_eq!(seconds_left(&job(json!(null), "Complete"), &now), None);
        assert_eq!(seconds_left(&job(json!(5), "Suspended"), &now), None);
    }
}
