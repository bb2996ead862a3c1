//! `deploy/daemonset.yaml` on a node whose kubelet and API server speak the standard API alone: the image is the one that
//! `cargo xtask image` makes, the pods are made by a DaemonSet controller, the agent has the rights and capabilities of the
//! manifest and nothing more, and taking the DaemonSet away leaves a node that another CNI can have.

mod another;
mod cluster;
mod kubelet;
mod load;
mod traces;

use std::time::{Duration, Instant};

use cluster::Cluster;
use load::Load;
use serde_json::json;
use traces::Traces;
use xebec_tests::{cluster::until, traces::still_loaded};

/// Two web servers behind a ClusterIP and a NodePort; those with the label are open to nobody but pods that have access.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: localhost/xebec/busybox:1
          command: [sh, -c, "mkdir -p /www && echo hello > /www/index.html && exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.7.7
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30087}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {access: web}}}, {ipBlock: {cidr: 172.30.0.0/16}}]
"#;

#[test]
fn the_daemonset_makes_a_node_s_network_and_takes_it_away() {
    let cluster = Cluster::up("only");
    // An address is tentative at first, which is no doing of ours.
    until("the node's addresses stay", || !cluster.in_netns("ip -o address").iter().any(|line| line.contains("tentative")));
    let before = Traces::of(&cluster);
    cluster.mount_bpffs();
    cluster.import_image();
    let _kubelet = kubelet::start(&cluster);

    // As a cloud's controller leaves a new node.
    let status = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}});
    cluster.kubectl(&["patch", "node", &cluster.node.name, "--subresource=status", "--type=strategic", "-p", &status.to_string()]);
    let servers = format!("--from-literal=api-servers=https://{}:6443", cluster.ip_address());
    cluster.kubectl(&["-n", "kube-system", "create", "configmap", "xebec", &servers, "--from-literal=lb-mode=dsr"]);
    cluster.apply(&cluster.manifest);
    until("the agent's pod is ready", || cluster.agent_pod().is_some_and(|pod| pod.ready));
    until("the agent forwards as the ConfigMap says", || cluster.status().iter().any(|line| line == "forwarding dsr"));
    until("the condition NetworkUnavailable is taken back", || {
        let path = "jsonpath={.status.conditions[?(@.type==\"NetworkUnavailable\")].status}";
        cluster.kubectl(&["get", "node", &cluster.node.name, "-o", path]) == "False"
    });
    until("the API server's addresses are kept", || {
        std::fs::read_to_string(cluster.state.join("agent/api-servers.json"))
            .is_ok_and(|text| text.contains(&cluster.ip_address().to_string()))
    });

    let loaded = traces::pinned_maps(&cluster);
    assert!(loaded.len() > 15, "the maps are pinned: {loaded:?}");
    let uplink = || cluster.in_netns("ip link show eth0").concat();
    assert!(uplink().contains("xdp"), "the driver runs the program: {}", uplink());
    pods_talk_as_services_and_policies_say(&cluster);
    a_rollout_breaks_nothing(&cluster);
    nothing_was_refused(&cluster);

    cluster.kubectl_with(&["delete", "--wait=false", "-f", "-"], WEB);
    cluster.kubectl_with(&["delete", "-f", "-"], &cluster.manifest);
    until("the agent's pod is gone", || cluster.agent_pod().is_none());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = Traces::of(&cluster).difference(&before);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left: {left:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!uplink().contains("xdp"), "{}", uplink());
    until("every program and map is unloaded", || still_loaded(&loaded).is_empty());
    another::has_the_node(&cluster);
}

fn pods_talk_as_services_and_policies_say(cluster: &Cluster) {
    cluster.apply(WEB);
    until("the web servers run", || cluster.kubectl(&["get", "deploy", "web", "-o", "jsonpath={.status.availableReplicas}"]) == "2");
    until("the NodePort answers", || load::request((cluster.ip_address(), 30087).into()).is_ok());
    // Pods, not `exec`: that would take a kubelet's own API.
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 10.96.7.7 80 | grep hello";
    cluster.one_shot("allowed", "access=web", &format!("for i in 1 2 3 4 5 6 7 8 9; do {ask} && exit 0; sleep 1; done; exit 1"));
    cluster.one_shot("denied", "access=none", &format!("! {ask}"));
    until("who is allowed reaches the Service", || cluster.phase("allowed") == "Succeeded");
    until("who is not does not", || cluster.phase("denied") == "Succeeded");
}

/// A new agent adopts what the old one left; nothing is taken down in between.
fn a_rollout_breaks_nothing(cluster: &Cluster) {
    let old = cluster.agent_pod().expect("the agent runs").name;
    let load = Load::start((cluster.ip_address(), 30087).into());
    load.go_on(20);
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/xebec"]);
    until("another pod is ready", || cluster.agent_pod().is_some_and(|pod| pod.ready && pod.name != old));
    load.go_on(50);
    let failures = load.end();
    assert!(failures.is_empty(), "{failures:?}");
}

/// The manifest's rights are enough.
fn nothing_was_refused(cluster: &Cluster) {
    let log = cluster.logs_of("kube-system_xebec-");
    assert!(log.contains("agent started"), "{log}");
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("orbidden")).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
