use serde_json::{Value, json};

use super::*;
use crate::memory::{Ended, ProbeView};
use crate::observe::Sandbox;

const SECOND: i64 = 1_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec})).unwrap()
}

fn container(name: &str, restarts: i32, run: Run) -> Container {
    Container {
        id: format!("{name}-{restarts}"),
        name: name.into(),
        sandbox_id: "s".into(),
        restart_count: restarts,
        created_at: i64::from(restarts),
        run,
        image: "i:1".into(),
        image_id: "sha256:1".into(),
        hash: String::new(),
        log_path: String::new(),
        pre_stop: None,
        ports: None,
        grace_seconds: None,
    }
}

fn running() -> Run {
    Run::Running { started_at: 5 * SECOND }
}
fn exited(code: i32) -> Run {
    let reason = if code == 0 { "Completed" } else { "Error" };
    Run::Exited { started_at: 5 * SECOND, finished_at: 9 * SECOND, exit_code: code, reason: reason.into(), message: String::new() }
}

fn seen(containers: Vec<Container>) -> Observed {
    let sandbox = Sandbox { id: "s".into(), attempt: 0, created_at: 0, ready: true, ips: vec!["10.0.0.2".into()], host_network: false };
    Observed { sandboxes: vec![sandbox], containers }
}

fn node() -> Node {
    Node { ips: vec!["192.0.2.1".into()] }
}

fn status(pod: &Pod, observed: &Observed, memory: &Memory, finished: bool) -> PodStatus {
    pod_status(pod, observed, memory, &node(), finished, now())
}

fn condition_of<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
}

fn one(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i:1"}]}))
}

#[test]
fn a_pod_about_to_run() {
    let status = status(&one("Always"), &Observed::default(), &Memory::default(), false);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        (status.host_ip.as_deref(), status.pod_ip.as_deref(), status.qos_class.as_deref()),
        (Some("192.0.2.1"), None, Some("BestEffort"))
    );
    assert_eq!(status.observed_generation, Some(3));
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("ContainerCreating"));
    assert_eq!((c.image.as_str(), c.image_id.as_str(), c.ready, c.started), ("i:1", "", false, Some(false)));
    let verdicts: Vec<(&str, &str)> = status.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    assert_eq!(
        verdicts,
        [
            ("PodReadyToStartContainers", "False"),
            ("Initialized", "True"),
            ("Ready", "False"),
            ("ContainersReady", "False"),
            ("PodScheduled", "True")
        ]
    );
    let ready = condition_of(&status, "Ready");
    assert_eq!(
        (ready.reason.as_deref(), ready.message.as_deref()),
        (Some("ContainersNotReady"), Some("containers with unready status: [c]"))
    );
}

#[test]
fn a_running_pod() {
    let status = status(&one("Always"), &seen(vec![container("c", 0, running())]), &Memory::default(), false);
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.2")));
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!((c.container_id.as_deref(), c.ready, c.started), (Some("containerd://c-0"), true, Some(true)));
    assert_eq!(condition_of(&status, "Ready").status, "True");
    assert_eq!(condition_of(&status, "Ready").observed_generation, Some(3));
}

#[test]
fn transition_times_are_kept_while_nothing_changes() {
    let mut pod = one("Always");
    let observed = seen(vec![container("c", 0, running())]);
    let first = status(&pod, &observed, &Memory::default(), false);
    pod.status = Some(first.clone());
    let later = pod_status(&pod, &observed, &Memory::default(), &node(), false, Timestamp::from_second(2_000_000).unwrap());
    assert_eq!(first, later);
}

#[test]
fn ends_by_policy() {
    for (policy, code, finished, phase) in [
        ("Always", 1, false, "Running"),
        ("OnFailure", 1, false, "Running"),
        ("OnFailure", 0, true, "Succeeded"),
        ("Never", 0, true, "Succeeded"),
        ("Never", 1, true, "Failed"),
    ] {
        let mut observed = seen(vec![container("c", 0, exited(code))]);
        observed.sandboxes[0].ready = !finished;
        let status = status(&one(policy), &observed, &Memory::default(), finished);
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {code}");
        if phase == "Succeeded" {
            assert_eq!(condition_of(&status, "Ready").reason.as_deref(), Some("PodCompleted"));
        }
    }
}

#[test]
fn between_two_lives() {
    let mut memory = Memory::default();
    memory.waiting.insert("c".into(), Waiting { reason: "CrashLoopBackOff".into(), message: "back-off".into() });
    let observed = seen(vec![container("c", 1, exited(3)), container("c", 0, exited(2))]);
    let status = status(&one("Always"), &observed, &memory, false);
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(c.restart_count, 1);
    let restarted = seen(vec![container("c", 2, running()), container("c", 1, exited(3))]);
    let status = super::pod_status(&one("Always"), &restarted, &Memory::default(), &node(), false, now());
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert!(c.state.as_ref().unwrap().running.is_some());
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
}

#[test]
fn image_errors_show_before_a_container_exists() {
    let mut memory = Memory::default();
    memory.waiting.insert("c".into(), Waiting { reason: "ErrImagePull".into(), message: "m".into() });
    let status = status(&one("Always"), &seen(vec![]), &memory, false);
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!((waiting.reason.as_deref(), waiting.message.as_deref()), (Some("ErrImagePull"), Some("m")));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
}

#[test]
fn readiness_follows_probes_and_gates() {
    let mut probed =
        pod(json!({"containers": [{"name": "c", "readinessProbe": {}, "startupProbe": {}}], "readinessGates": [{"conditionType": "g"}]}));
    let observed = seen(vec![container("c", 0, running())]);
    let mut memory = Memory::default();
    let ready = |pod: &Pod, memory: &Memory| condition_of(&status(pod, &observed, memory, false), "Ready").clone();
    assert_eq!(ready(&probed, &memory).status, "False");
    memory.probes.insert("c-0".into(), ProbeView { started: true, ready: true, failed: None });
    let gated = ready(&probed, &memory);
    assert_eq!(gated.reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(gated.message.as_deref(), Some("corresponding condition of pod readiness gate \"g\" does not exist."));
    probed.status = serde_json::from_value(json!({"conditions": [{"type": "g", "status": "True"}]})).unwrap();
    assert_eq!(ready(&probed, &memory).status, "True");
}

#[test]
fn init_containers_hold_the_rest() {
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
    let running_init = status(&pod, &seen(vec![container("i", 0, running())]), &Memory::default(), false);
    assert_eq!(running_init.phase.as_deref(), Some("Pending"));
    let initialized = condition_of(&running_init, "Initialized");
    assert_eq!(
        (initialized.reason.as_deref(), initialized.message.as_deref()),
        (Some("ContainersNotInitialized"), Some("containers with incomplete status: [i]"))
    );
    let waiting = running_init.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
    let mut failed = seen(vec![container("i", 0, exited(1))]);
    failed.sandboxes[0].ready = false;
    assert_eq!(status(&pod, &failed, &Memory::default(), true).phase.as_deref(), Some("Failed"));
}

#[test]
fn sidecars_count_for_readiness_not_for_the_end() {
    let pod =
        pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}));
    let both = seen(vec![container("c", 0, running()), container("s", 0, running())]);
    assert_eq!(condition_of(&status(&pod, &both, &Memory::default(), false), "Ready").status, "True");
    let mut over = seen(vec![container("c", 0, exited(0)), container("s", 0, exited(137))]);
    over.sandboxes[0].ready = false;
    assert_eq!(status(&pod, &over, &Memory::default(), true).phase.as_deref(), Some("Succeeded"));
}

#[test]
fn rejected_and_ended_pods_fail_with_their_reason() {
    let ended = |rejected| Memory { ended: Some(Ended { reason: "OutOfcpu".into(), message: "m".into(), rejected }), ..Default::default() };
    let rejected = status(&one("Always"), &Observed::default(), &ended(true), true);
    assert_eq!(
        (rejected.phase.as_deref(), rejected.reason.as_deref(), rejected.container_statuses),
        (Some("Failed"), Some("OutOfcpu"), None)
    );
    let late = status(&one("Always"), &seen(vec![container("c", 0, running())]), &ended(false), true);
    assert_eq!((late.phase.as_deref(), late.message.as_deref()), (Some("Failed"), Some("m")));
    assert!(late.container_statuses.is_some());
}

#[test]
fn a_deleted_pod_that_never_ran_fails() {
    let status = status(&one("Always"), &Observed::default(), &Memory::default(), true);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_container_that_vanished_is_told_from_the_api() {
    let mut pod = one("Always");
    pod.status = serde_json::from_value(
        json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "i:1", "imageID": "x", "ready": true,
        "restartCount": 2, "containerID": "containerd://gone", "state": {"running": {}}}]}),
    )
    .unwrap();
    let status = status(&pod, &seen(vec![]), &Memory::default(), false);
    let c = &status.container_statuses.unwrap()[0];
    let end = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((end.reason.as_deref(), end.exit_code, c.restart_count), (Some("ContainerStatusUnknown"), 137, 3));
}

#[test]
fn addresses_stay_after_the_sandbox() {
    let mut pod = one("Never");
    pod.status = serde_json::from_value(json!({"podIPs": [{"ip": "10.0.0.9"}]})).unwrap();
    let mut observed = seen(vec![container("c", 0, exited(0))]);
    observed.sandboxes[0].ready = false;
    observed.sandboxes[0].ips.clear();
    assert_eq!(status(&pod, &observed, &Memory::default(), true).pod_ip.as_deref(), Some("10.0.0.9"));
}
