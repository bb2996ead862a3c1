//! Jobs against a model of pods that succeed and fail at random, with writes lost in between.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, from_value, json};

use super::plan::{FINALIZER, has, is_finished, plan};
use super::pod_of;

struct World {
    job: Job,
    pods: Vec<Pod>,
    made: usize,
    second: i64,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut v = json!({"metadata": {"name": "j", "namespace": "n", "uid": "j"},
            "spec": {"selector": {}, "template": {"metadata": {}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}}});
        for (k, x) in spec.as_object().unwrap() {
            v["spec"][k] = x.clone();
        }
        World { job: from_value(v).unwrap(), pods: Vec::new(), made: 0, second: 0 }
    }

    fn now(&self) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(self.second).unwrap())
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    /// One run; `crash` loses the writes after the status.
    fn step(&mut self, crash: bool) {
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.job, &pods, &self.now());
        let stored = self.status().uncounted_terminated_pods.unwrap_or_default();
        self.job.status = Some(plan.status);
        if crash {
            return;
        }
        for pod in &plan.release {
            let id = pod.metadata.uid.clone().unwrap();
            let phase = pod.status.as_ref().and_then(|s| s.phase.clone());
            let listed = stored.succeeded.iter().chain(&stored.failed).flatten().any(|u| *u == id);
            // Only a pod that a policy ignores is let go without being noted.
            let ignored = self.job.spec.as_ref().is_some_and(|s| s.pod_failure_policy.is_some());
            assert!(listed || ignored || phase.as_deref() != Some("Failed") || is_finished(&self.status()), "released before it was noted");
            self.pods.iter_mut().find(|p| p.metadata.uid == pod.metadata.uid).unwrap().metadata.finalizers = None;
        }
        for pod in &plan.delete {
            self.pods.iter_mut().find(|p| p.metadata.uid == pod.metadata.uid).unwrap().metadata.deletion_timestamp = Some(self.now());
        }
        self.pods.retain(|p| p.metadata.deletion_timestamp.is_none() || p.metadata.finalizers.is_some());
        for new in &plan.create {
            self.made += 1;
            let mut pod = pod_of(&self.job, new);
            pod.metadata.uid = Some(format!("u{}", self.made));
            pod.metadata.name = Some(format!("p{}", self.made));
            pod.status = from_value(json!({"phase": "Running"})).unwrap();
            self.pods.push(pod);
        }
    }

    /// The `n`th running pod ends.
    fn end(&mut self, n: usize, phase: &str) {
        let running: Vec<usize> = (0..self.pods.len())
            .filter(|i| {
                self.pods[*i].status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
                    && self.pods[*i].metadata.deletion_timestamp.is_none()
            })
            .collect();
        if let Some(i) = running.get(n % running.len().max(1)) {
            self.pods[*i].status.as_mut().unwrap().phase = Some(phase.into());
        }
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.second += 1;
            self.step(false);
        }
    }

    fn running(&self) -> usize {
        self.pods
            .iter()
            .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running") && p.metadata.deletion_timestamp.is_none())
            .count()
    }
}

#[test]
fn a_job_completes_after_its_completions() {
    let mut w = World::new(json!({"parallelism": 2, "completions": 3, "backoffLimit": 6}));
    w.settle();
    assert_eq!(w.running(), 2);
    assert!(w.pods[0].metadata.finalizers.as_ref().unwrap().contains(&FINALIZER.to_owned()));
    for _ in 0..3 {
        w.end(0, "Succeeded");
        w.settle();
    }
    let s = w.status();
    assert!(has(&s, "Complete") && has(&s, "SuccessCriteriaMet"));
    assert_eq!((s.succeeded, s.failed, s.active, s.completion_time.is_some()), (Some(3), None, None, true));
    assert!(w.pods.iter().all(|p| p.metadata.finalizers.is_none()));
}

#[test]
fn too_many_failures_fail_the_job() {
    let mut w = World::new(json!({"parallelism": 1, "completions": 1, "backoffLimit": 1}));
    for _ in 0..2 {
        w.settle();
        w.end(0, "Failed");
    }
    w.settle();
    let s = w.status();
    let failed = s.conditions.iter().flatten().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!((s.failed, s.completion_time), (Some(2), None));
}

#[test]
fn indexes_are_done_once_each() {
    let mut w = World::new(json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "backoffLimit": 6}));
    w.settle();
    w.end(1, "Succeeded");
    w.settle();
    assert_eq!(w.status().completed_indexes.as_deref(), Some("1"));
    w.end(0, "Failed");
    w.settle();
    assert_eq!(w.running(), 2, "index 0 is tried again");
    w.end(0, "Succeeded");
    w.end(0, "Succeeded");
    w.settle();
    assert_eq!(w.status().completed_indexes.as_deref(), Some("0-2"));
    assert!(has(&w.status(), "Complete"));
}

#[test]
fn an_index_that_fails_too_often_is_given_up() {
    let mut w = World::new(json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0}));
    w.settle();
    w.end(0, "Failed");
    w.settle();
    assert_eq!((w.status().failed_indexes.as_deref(), w.running()), (Some("0"), 1));
    w.end(0, "Succeeded");
    w.settle();
    let s = w.status();
    assert_eq!(s.conditions.iter().flatten().find(|c| c.type_ == "Failed").unwrap().reason.as_deref(), Some("FailedIndexes"));
    assert_eq!(s.completed_indexes.as_deref(), Some("1"));
}

#[test]
fn suspension_stops_and_resumes() {
    let mut w = World::new(json!({"parallelism": 2, "completions": 2, "suspend": true}));
    w.settle();
    assert_eq!((w.pods.len(), has(&w.status(), "Suspended"), w.status().start_time), (0, true, None));
    w.job.spec.as_mut().unwrap().suspend = Some(false);
    w.settle();
    assert_eq!((w.running(), has(&w.status(), "Suspended")), (2, false));
    w.job.spec.as_mut().unwrap().suspend = Some(true);
    w.settle();
    assert_eq!((w.running(), w.status().failed), (0, None));
}

#[test]
fn a_deadline_ends_the_job() {
    let mut w = World::new(json!({"parallelism": 1, "activeDeadlineSeconds": 5}));
    w.step(false);
    w.second = 10;
    w.settle();
    let s = w.status();
    assert_eq!(s.conditions.iter().flatten().find(|c| c.type_ == "Failed").unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(w.running(), 0);
}

#[test]
fn policies_decide() {
    let rule = |action: &str| {
        json!({"parallelism": 1, "completions": 1, "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]}})
    };
    let fail = |w: &mut World| {
        w.settle();
        let status = json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]});
        w.pods[0].status = from_value(status).unwrap();
        w.settle();
    };
    let mut w = World::new(rule("FailJob"));
    fail(&mut w);
    let s = w.status();
    let failed = s.conditions.iter().flatten().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("PodFailurePolicy"));
    assert_eq!(failed.message.as_deref(), Some("Container c for pod n/p1 failed with exit code 3 matching FailJob rule at index 0"));
    let mut w = World::new(rule("Ignore"));
    fail(&mut w);
    assert!(!is_finished(&w.status()) && w.status().failed.is_none() && w.running() == 1);
    let mut w = World::new(
        json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "1"}]}}),
    );
    w.settle();
    w.end(1, "Succeeded");
    w.settle();
    assert!(has(&w.status(), "Complete") && w.running() == 0);
}

proptest! {
    #[test]
    fn nothing_is_counted_twice_or_forgotten(
        completions in 1..8_i32, parallelism in 1..5_i32,
        ends in prop::collection::vec((0..5_usize, any::<bool>(), any::<bool>()), 0..60),
    ) {
        let mut w = World::new(json!({"parallelism": parallelism, "completions": completions, "backoffLimit": 1000}));
        let (mut good, mut bad) = (0, 0);
        for (n, succeeds, crash) in ends {
            w.step(crash);
            prop_assert!(w.running() as i32 <= parallelism);
            if w.running() > 0 {
                w.end(n, if succeeds { "Succeeded" } else { "Failed" });
                if succeeds { good += 1 } else { bad += 1 }
            }
        }
        w.settle();
        let s = w.status();
        prop_assert_eq!(s.succeeded.unwrap_or(0), good);
        // Pods that a completed job removes count as failed too.
        prop_assert!(s.failed.unwrap_or(0) >= bad);
        prop_assert_eq!(is_finished(&s), good >= completions);
    }
}
