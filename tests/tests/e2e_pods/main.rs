//! Pods on a real containerd: what kubelet promises of a pod's life, seen through the API.

use serde_json::Value;
use xebec_tests::cluster::{Cluster, until};

const PODS: &str = include_str!("pods.yaml");

/// A field of an object by JSON pointer, null when it is absent.
fn field(cluster: &Cluster, pod: &str, pointer: &str) -> Value {
    let output = cluster.try_kubectl(&["get", "pod", pod, "-o", "json"], "");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    object.pointer(pointer).cloned().unwrap_or_default()
}

#[track_caller]
fn becomes(cluster: &Cluster, pod: &str, pointer: &str, wanted: impl Into<Value>) {
    let wanted = wanted.into();
    until(&format!("{pod}{pointer} is {wanted}"), || field(cluster, pod, pointer) == wanted);
}

fn events(cluster: &Cluster, pod: &str) -> Vec<(String, String)> {
    let selector = format!("involvedObject.name={pod}");
    let list: Value = serde_json::from_str(&cluster.kubectl(&["get", "events", "--field-selector", &selector, "-o", "json"])).unwrap();
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    list["items"].as_array().unwrap().iter().map(|e| (text(e, "reason"), text(e, "message"))).collect()
}

#[track_caller]
fn has_event(cluster: &Cluster, pod: &str, reason: &str, part: &str) {
    until(&format!("an event {reason} of {pod} says {part:?}"), || {
        events(cluster, pod).iter().any(|(r, message)| r == reason && message.contains(part))
    });
}

/// One cluster for all of it: pods are cheap, clusters are not.
#[test]
fn pods_live_as_kubelet_says() {
    let cluster = Cluster::up("pods");
    // The mirror of a race that users meet too: the default ServiceAccount comes a moment after its namespace.
    until("the default ServiceAccount is there", || cluster.try_kubectl(&["get", "serviceaccount", "default"], "").status.success());
    cluster.kubectl_with(&["create", "-f", "-"], PODS);
    volumes_and_environment(&cluster);
    ends(&cluster);
    refusals(&cluster);
    probes_and_sidecars(&cluster);
    restart_of_the_agent(&cluster);
    termination(&cluster);
}

fn volumes_and_environment(cluster: &Cluster) {
    becomes(cluster, "volumes", "/status/phase", "Running");
    let exec = |command: &str| cluster.kubectl(&["exec", "volumes", "--", "sh", "-c", command]);
    assert_eq!(exec("cat /config/x/file"), "1");
    assert_eq!(exec("stat -L -c %a:%u:%g /config/x/file /secret/s"), "440:0:1234\n440:0:1234\n");
    assert_eq!(exec("cat /down/labels /down/cpu"), "app=\"volumes\"100");
    assert!(exec("mount | grep ' /memory '").contains("tmpfs"));
    assert_eq!(exec("echo x > /dir/sub/f; cat /sub/f; id -u; id -G"), "x\n1000\n0 1234\n");
    assert_eq!(
        exec("echo $NODE $LIMIT $SECRET $REF $(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)"),
        "xebec-e2e-pods 33554432 shh 1-x default\n"
    );
    assert!(exec("cat /etc/hosts").contains("1.2.3.4\tfoo\n"));
    assert_eq!(exec("cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max").trim(), "33554432");
    assert_eq!(field(cluster, "volumes", "/status/qosClass"), "Guaranteed");
    cluster.kubectl(&["patch", "configmap", "config", "--type", "merge", "-p", r#"{"data":{"a":"2"}}"#]);
    until("the volume follows its ConfigMap", || exec("cat /config/x/file") == "2");
}

fn ends(cluster: &Cluster) {
    becomes(cluster, "succeeds", "/status/phase", "Succeeded");
    assert_eq!(field(cluster, "succeeds", "/status/containerStatuses/0/state/terminated/reason"), "Completed");
    assert_eq!(cluster.kubectl(&["logs", "succeeds"]), "first\nsecond\n");
    assert_eq!(cluster.kubectl(&["logs", "succeeds", "--tail=1"]), "second\n");
    becomes(cluster, "fails", "/status/phase", "Failed");
    assert_eq!(field(cluster, "fails", "/status/initContainerStatuses/0/state/terminated/message"), "oops\n");
    becomes(cluster, "crashes", "/status/containerStatuses/0/state/waiting/reason", "CrashLoopBackOff");
    assert_eq!(field(cluster, "crashes", "/status/containerStatuses/0/lastState/terminated/exitCode"), 3);
    assert_eq!(field(cluster, "crashes", "/status/containerStatuses/0/lastState/terminated/message"), "bye");
    has_event(cluster, "crashes", "BackOff", "Back-off restarting failed container c in pod crashes_default(");
    becomes(cluster, "late", "/status/reason", "DeadlineExceeded");
    becomes(cluster, "late", "/status/phase", "Failed");
}

fn refusals(cluster: &Cluster) {
    becomes(cluster, "root", "/status/containerStatuses/0/state/waiting/reason", "CreateContainerConfigError");
    has_event(cluster, "root", "Failed", "container has runAsNonRoot and image will run as root");
    has_event(cluster, "no-config", "FailedMount", "MountVolume.SetUp failed for volume \"v\" : configmap \"missing\" not found");
    becomes(cluster, "no-image", "/status/containerStatuses/0/state/waiting/reason", "ErrImageNeverPull");
    becomes(cluster, "no-image", "/status/containerStatuses/1/state/waiting/reason", "InvalidImageName");
    becomes(cluster, "misplaced", "/status/reason", "NodeAffinity");
    becomes(cluster, "misplaced", "/status/phase", "Failed");
    // The runtime reads these annotations before anything of ours; of pods that run the agent tells.
    has_event(cluster, "too-fast", "FailedCreatePodSandBox", "bandwidth");
    cluster.kubectl(&["annotate", "pod", "volumes", "kubernetes.io/ingress-bandwidth=fast"]);
    has_event(cluster, "volumes", "InvalidBandwidth", "annotation kubernetes.io/ingress-bandwidth is \"fast\"");
    becomes(cluster, "limited", "/status/phase", "Running");
    // What was missing comes: the pod goes on by itself.
    cluster.kubectl(&["create", "configmap", "missing"]);
    becomes(cluster, "no-config", "/status/phase", "Running");
}

fn probes_and_sidecars(cluster: &Cluster) {
    becomes(cluster, "sidecar", "/status/containerStatuses/0/ready", true);
    assert_eq!(field(cluster, "sidecar", "/status/initContainerStatuses/1/started"), true);
    assert_eq!(cluster.kubectl(&["logs", "sidecar", "-c", "after"]), "after\n");
    becomes(cluster, "probed", "/status/containerStatuses/0/ready", true);
    cluster.kubectl(&["exec", "probed", "--", "rm", "/www/ready"]);
    becomes(cluster, "probed", "/status/containerStatuses/0/ready", false);
    assert_eq!(field(cluster, "probed", "/status/containerStatuses/0/restartCount"), 0);
    cluster.kubectl(&["exec", "probed", "--", "rm", "/www/alive"]);
    becomes(cluster, "probed", "/status/containerStatuses/0/restartCount", 1);
    has_event(cluster, "probed", "Killing", "Container c failed liveness probe, will be restarted");
    has_event(cluster, "probed", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404");
    becomes(cluster, "probed", "/status/containerStatuses/0/ready", true);
    assert!(cluster.kubectl(&["logs", "probed"]).contains("postStart"));
}

/// An agent killed and started again finds its pods and leaves them as they are.
fn restart_of_the_agent(cluster: &Cluster) {
    let names = ["volumes", "sidecar", "probed", "no-config"];
    let ids = || names.map(|n| (field(cluster, n, "/status/containerStatuses/0/containerID"), field(cluster, n, "/status/podIP")));
    let before = ids();
    cluster.kubectl(&["delete", "pod", "succeeds", "--wait=true"]);
    cluster.kill(1, "agent");
    // Gone from the API while nobody looks: found and removed by the next agent.
    cluster.kubectl(&["delete", "pod", "crashes", "--force", "--grace-period=0"]);
    cluster.bring_up();
    cluster.kubectl(&["run", "after", "--image", "localhost/xebec/busybox:1", "--restart=Never", "--command", "--", "true"]);
    becomes(cluster, "after", "/status/phase", "Succeeded");
    assert_eq!(ids(), before);
    until("nothing is left of a pod deleted meanwhile", || !find(cluster.state_dir(), "default_crashes_"));
}

fn termination(cluster: &Cluster) {
    let mut follow = cluster.kubectl_command(&["logs", "-f", "graceful"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    becomes(cluster, "graceful", "/status/phase", "Running");
    cluster.kubectl(&["delete", "pod", "graceful", "--wait=true"]);
    let mut said = String::new();
    std::io::Read::read_to_string(follow.stdout.as_mut().unwrap(), &mut said).unwrap();
    follow.wait().unwrap();
    assert_eq!(said, "up\npreStop\nSIGTERM\n");
    cluster.kubectl(&["delete", "pod", "--all", "--wait=true"]);
}

fn find(dir: &std::path::Path, prefix: &str) -> bool {
    std::fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(prefix) || (entry.file_type().is_ok_and(|t| t.is_dir()) && name != "containerd" && find(&entry.path(), prefix))
    })
}
