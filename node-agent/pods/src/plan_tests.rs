use serde_json::{Value, json};

use super::*;
use crate::memory::ProbeView;
use crate::observe::Sandbox;

const NOW: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

fn one(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}))
}

fn deleting(mut pod: Pod, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn sandbox(attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        created_at: i64::from(attempt),
        ready,
        ips: if ready { vec!["10.0.0.1".into()] } else { Vec::new() },
        host_network: false,
    }
}

fn container(pod: &Pod, name: &str, restarts: i32, run: Run) -> Container {
    let hash = spec::container(pod, name).map(|(_, c)| spec::container_hash(&c)).unwrap_or_default();
    Container {
        id: format!("{name}-{restarts}"),
        name: name.into(),
        sandbox_id: "s0".into(),
        restart_count: restarts,
        created_at: i64::from(restarts),
        run,
        image: "i".into(),
        image_id: "sha".into(),
        hash,
        log_path: format!("/l/{name}/{restarts}.log"),
        pre_stop: None,
        ports: None,
        grace_seconds: None,
    }
}

fn running() -> Run {
    Run::Running { started_at: 1 }
}
fn exited(code: i32, second: i64) -> Run {
    let finished_at = (NOW + second) * 1_000_000_000;
    Run::Exited { started_at: 1, finished_at, exit_code: code, reason: String::new(), message: String::new() }
}

fn ready() -> Memory {
    Memory { volumes_ready: true, start_time: Some(at(0)), ..Default::default() }
}

/// Newest first, as observing gives them.
fn seen(containers: Vec<Container>) -> Observed {
    Observed { sandboxes: vec![sandbox(0, true)], containers }
}

fn steps(pod: &Pod, observed: &Observed, memory: &Memory) -> Vec<Step> {
    plan(pod, observed, memory, at(0)).steps
}

fn start(name: &str, kind: Kind, restart_count: i32) -> Step {
    Step::Start { name: name.into(), kind, restart_count }
}

#[test]
fn a_new_pod_gets_volumes_and_a_sandbox_at_once_then_its_containers() {
    let pod = one("Always");
    assert_eq!(steps(&pod, &Observed::default(), &Memory::default()), [Step::SetUp { sandbox: Some(0) }]);
    assert_eq!(steps(&pod, &seen(vec![]), &Memory::default()), [Step::SetUp { sandbox: None }]);
    assert_eq!(steps(&pod, &seen(vec![]), &ready()), [start("c", Kind::Regular, 0)]);
    let up = seen(vec![container(&pod, "c", 0, running())]);
    assert_eq!(steps(&pod, &up, &ready()), []);
}

#[test]
fn a_failed_set_up_waits_for_its_retry() {
    let mut memory = Memory::default();
    memory.retry_at.insert(String::new(), at(5));
    let plan = plan(&one("Always"), &Observed::default(), &memory, at(0));
    assert_eq!((plan.steps, plan.wake_at), (vec![], Some(at(5))));
}

#[test]
fn restart_policies() {
    for (policy, code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = one(policy);
        let plan = plan(&pod, &seen(vec![container(&pod, "c", 0, exited(code, -100))]), &ready(), at(0));
        if restarted {
            assert_eq!(plan.steps, [start("c", Kind::Regular, 1)], "{policy} {code}");
        } else {
            assert!(plan.finished, "{policy} {code}");
            assert_eq!(plan.steps, [Step::StopPod { grace: 30 }], "{policy} {code}");
        }
    }
}

#[test]
fn a_container_may_have_a_restart_policy_of_its_own() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
    let run = |code| plan(&pod, &seen(vec![container(&pod, "c", 0, exited(code, -100))]), &ready(), at(0)).finished;
    assert!(!run(42) && run(1));
}

#[test]
fn crashes_are_held_back() {
    let pod = one("Always");
    let observed = seen(vec![container(&pod, "c", 1, exited(1, -3))]);
    let mut memory = ready();
    let hash = spec::container_hash(&spec::spec(&pod).containers[0]);
    memory.crash_backoff.next(KUBELET, &backoff_key("c", &hash), at(-5), at(-5));
    let held = plan(&pod, &observed, &memory, at(0));
    assert_eq!((held.steps.len(), held.wake_at), (0, Some(at(7))));
    assert_eq!(held.waiting[0].2.reason, "CrashLoopBackOff");
    assert_eq!(held.waiting[0].2.message, "back-off 10s restarting failed container=c pod=p_n(u)");
    assert_eq!(plan(&pod, &observed, &memory, at(7)).steps, [start("c", Kind::Regular, 2)]);
}

#[test]
fn probes_and_changed_images_kill() {
    let pod = one("Always");
    let up = seen(vec![container(&pod, "c", 0, running())]);
    let mut memory = ready();
    memory.probes.insert("c-0".into(), ProbeView { started: true, ready: true, failed: Some((FailedProbe::Liveness, Some(7))) });
    let expected = Step::Kill {
        id: "c-0".into(),
        name: "c".into(),
        kind: Kind::Regular,
        message: "Container c failed liveness probe, will be restarted".into(),
        grace: Some(7),
    };
    assert_eq!(steps(&pod, &up, &memory), [expected]);
    let mut changed = seen(vec![container(&pod, "c", 0, running())]);
    changed.containers[0].hash = "other".into();
    let Some(Step::Kill { message, .. }) = steps(&pod, &changed, &ready()).pop() else { panic!("no kill") };
    assert_eq!(message, "Container c definition changed, will be restarted");
}

#[test]
fn init_containers_run_in_order() {
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "c"}]}));
    let done = |name: &str| container(&pod, name, 0, exited(0, -9));
    assert_eq!(steps(&pod, &seen(vec![]), &ready()), [start("i", Kind::Init, 0)]);
    assert_eq!(steps(&pod, &seen(vec![container(&pod, "i", 0, running())]), &ready()), []);
    assert_eq!(steps(&pod, &seen(vec![done("i")]), &ready()), [start("j", Kind::Init, 0)]);
    assert_eq!(steps(&pod, &seen(vec![done("j"), done("i")]), &ready()), [start("c", Kind::Regular, 0)]);
    assert_eq!(steps(&pod, &seen(vec![done("j")]), &ready()), [start("c", Kind::Regular, 0)], "records of earlier ones may be gone");
    let failed = plan(&pod, &seen(vec![container(&pod, "i", 0, exited(1, -9))]), &ready(), at(0));
    assert!(failed.finished);
}

#[test]
fn a_failed_init_container_is_tried_again_unless_never() {
    let pod = pod(json!({"restartPolicy": "Always", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
    assert_eq!(steps(&pod, &seen(vec![container(&pod, "i", 0, exited(1, -900))]), &ready()), [start("i", Kind::Init, 1)]);
}

#[test]
fn a_new_sandbox_runs_init_containers_again() {
    let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
    let mut observed = seen(vec![container(&pod, "c", 0, exited(0, -9)), container(&pod, "i", 0, exited(0, -9))]);
    observed.sandboxes = vec![sandbox(0, false)];
    assert_eq!(steps(&pod, &observed, &ready()), [Step::SetUp { sandbox: Some(1) }]);
    observed.sandboxes = vec![sandbox(1, true), sandbox(0, false)];
    assert_eq!(steps(&pod, &observed, &ready()), [start("i", Kind::Init, 1)]);
}

#[test]
fn sidecars_start_before_and_run_beside() {
    let pod = pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}, {"name": "i"}],
        "containers": [{"name": "c"}]}),
    );
    let side = || container(&pod, "s", 0, running());
    let mut memory = ready();
    assert_eq!(steps(&pod, &seen(vec![side()]), &memory), [], "not started yet");
    memory.probes.insert("s-0".into(), ProbeView { started: true, ready: true, failed: None });
    assert_eq!(steps(&pod, &seen(vec![side()]), &memory), [start("i", Kind::Init, 0)]);
    let initialized = vec![container(&pod, "i", 0, exited(0, -9)), side()];
    assert_eq!(steps(&pod, &seen(initialized), &memory), [start("c", Kind::Regular, 0)]);
    let crashed =
        vec![container(&pod, "c", 0, running()), container(&pod, "i", 0, exited(0, -9)), container(&pod, "s", 0, exited(1, -900))];
    assert_eq!(steps(&pod, &seen(crashed), &memory), [start("s", Kind::Sidecar, 1)], "whatever the pod's policy");
    let over =
        plan(&pod, &seen(vec![container(&pod, "c", 0, exited(0, -9)), container(&pod, "i", 0, exited(0, -9)), side()]), &memory, at(0));
    assert!(over.finished, "sidecars do not keep a pod alive");
    assert_eq!(over.steps, [Step::StopPod { grace: 30 }]);
}

#[test]
fn a_lost_sandbox_is_replaced_when_something_is_left_to_run() {
    let always = one("Always");
    let mut observed = seen(vec![container(&always, "c", 0, exited(0, -9))]);
    observed.sandboxes = vec![sandbox(0, false)];
    assert_eq!(steps(&always, &observed, &ready()), [Step::SetUp { sandbox: Some(1) }]);
    let never = one("Never");
    assert!(plan(&never, &observed, &ready(), at(0)).finished);
    assert_eq!(steps(&never, &observed, &ready()), [Step::TearDown]);
    observed.containers[0].run = running();
    assert_eq!(steps(&always, &observed, &ready()), [Step::StopPod { grace: 30 }], "what runs without a sandbox is stopped first");
}

#[test]
fn deletion_goes_down_step_by_step() {
    let pod = deleting(one("Always"), 5);
    let mut memory = ready();
    let up = seen(vec![container(&pod, "c", 0, running())]);
    assert_eq!(steps(&pod, &up, &memory), [Step::StopPod { grace: 5 }]);
    let mut down = seen(vec![container(&pod, "c", 0, exited(0, -1))]);
    assert_eq!(steps(&pod, &down, &memory), [Step::StopPod { grace: 5 }], "the sandbox is still up");
    down.sandboxes = vec![sandbox(0, false)];
    assert_eq!(steps(&pod, &down, &memory), [Step::TearDown]);
    memory.torn_down = true;
    assert_eq!(steps(&pod, &down, &memory), [Step::DeleteFromApi]);
    memory.deleted = true;
    assert_eq!(steps(&pod, &down, &memory), []);
    memory.removed = true;
    assert_eq!(steps(&pod, &down, &memory), [Step::Forget]);
}

#[test]
fn a_pod_that_vanished_from_the_api_is_stopped_and_forgotten() {
    let pod = one("Always");
    let memory = Memory { removed: true, ..ready() };
    assert_eq!(steps(&pod, &seen(vec![container(&pod, "c", 0, running())]), &memory), [Step::StopPod { grace: 30 }]);
}

#[test]
fn the_deadline_ends_a_pod() {
    let pod = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "c"}]}));
    let up = seen(vec![container(&pod, "c", 0, running())]);
    let before = plan(&pod, &up, &ready(), at(9));
    assert_eq!((before.ended, before.wake_at), (None, Some(at(10))));
    let after = plan(&pod, &up, &ready(), at(10));
    assert_eq!(after.ended.unwrap().reason, "DeadlineExceeded");
    assert_eq!(after.steps, [Step::StopPod { grace: 30 }]);
}

#[test]
fn a_terminal_pod_never_runs_again() {
    let mut pod = one("Always");
    pod.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
    let memory = Memory { torn_down: true, ..Default::default() };
    assert_eq!(steps(&pod, &Observed::default(), &memory), []);
    assert_eq!(steps(&pod, &Observed::default(), &Memory::default()), [Step::TearDown]);
}

#[test]
fn old_instances_are_removed() {
    let pod = one("Always");
    let all = vec![
        container(&pod, "c", 3, running()),
        container(&pod, "c", 2, exited(1, -9)),
        container(&pod, "c", 1, exited(1, -19)),
        container(&pod, "c", 0, exited(1, -29)),
    ];
    let removed: Vec<Step> = steps(&pod, &seen(all), &ready());
    let remove = |n: i32| Step::RemoveContainer { id: format!("c-{n}"), log_path: format!("/l/c/{n}.log") };
    assert_eq!(removed, [remove(1), remove(0)]);
}

#[test]
fn the_restart_count_survives_lost_records() {
    let mut pod = one("Always");
    pod.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 4, "containerID": "containerd://x"}]}))
    .unwrap();
    assert_eq!(steps(&pod, &seen(vec![]), &ready()), [start("c", Kind::Regular, 5)]);
}

#[test]
fn ephemeral_containers_start_once() {
    let pod = pod(json!({"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]}));
    let up = vec![container(&pod, "c", 0, running())];
    assert_eq!(steps(&pod, &seen(up.clone()), &ready()), [start("e", Kind::Ephemeral, 0)]);
    let after = [up, vec![container(&pod, "e", 0, exited(1, -9))]].concat();
    assert_eq!(steps(&pod, &seen(after), &ready()), []);
}

#[test]
fn planning_twice_plans_the_same() {
    for pod in [one("Always"), one("Never"), deleting(one("Always"), 3)] {
        for observed in [Observed::default(), seen(vec![]), seen(vec![container(&pod, "c", 0, exited(1, -2))])] {
            assert_eq!(plan(&pod, &observed, &ready(), at(0)), plan(&pod, &observed, &ready(), at(0)));
        }
    }
}

#[test]
fn durations_as_go_writes_them() {
    for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
        assert_eq!(go_duration(SignedDuration::from_secs(seconds)), text);
    }
}
