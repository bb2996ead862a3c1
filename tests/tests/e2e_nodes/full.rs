//! Maps of a living cluster that are full: who does not fit is told, others go on, and room is all that is needed.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use xebec_host::process::{pid_file, running};
use xebec_tests::cluster::{Cluster, IMAGE, until};

use crate::{pods, traffic::asked_by_host};

/// Room for so many backends, of which two stay free for replacing others.
const BACKENDS: usize = 64;

/// Starts the node's agent again with more on its command line.
fn restart_with(cluster: &Cluster, more: &[&str]) {
    let node = cluster.node(1);
    let pid = running(&pid_file(&node.run_dir, "agent"), "xebec").expect("the agent runs");
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let words: Vec<&str> = line.split('\0').filter(|word| !word.is_empty()).collect();
    cluster.kill(1, "agent");
    let args = words[1..].iter().chain(more).map(Into::into).collect();
    node.parts().unwrap().ensure("agent", "xebec", words[0].as_ref(), args).unwrap();
}

/// A Service whose endpoints are written by hand: these, and as many more that nobody has.
fn by_hand(cluster: &Cluster, name: &str, real: IpAddr, more: usize) {
    let others = (0..more).map(|n| format!("198.18.{}.{}", n / 200, n % 200 + 1));
    let endpoints: Vec<Value> =
        [real.to_string()].into_iter().chain(others).map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    });
    for object in [service, slice] {
        cluster.apply(&object.to_string());
    }
}

/// Whether the pod `web` answers for a Service, to a process of the node.
fn answers(cluster: &Cluster, service: &str) -> bool {
    let ip = pods::get(cluster, "service", service)["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let url = format!("http://{ip}/cgi-bin/who");
    let output = cluster.node(1).command("busybox").unwrap().args(["timeout", "3", "busybox", "wget", "-q", "-O-", &url]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).starts_with("web ")
}

/// Notes of the Events of that reason about a Service.
fn told(cluster: &Cluster, reason: &str, service: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&cluster.kubectl(&["get", "events", "-o", "json"])).unwrap();
    let of = |e: &&Value| e["reason"] == reason && e["involvedObject"]["kind"] == "Service" && e["involvedObject"]["name"] == service;
    list["items"].as_array().unwrap().iter().filter(of).map(|e| e["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_service_that_does_not_fit_is_told_so_and_stands_in_nobodys_way() {
    let cluster = Cluster::up("full");
    restart_with(&cluster, &["--map-entries", &format!("BACKENDS={BACKENDS}")]);
    let script = r#"mkdir -p /www/cgi-bin; printf '#!/bin/sh\necho; echo "web $REMOTE_ADDR"\n' > /www/cgi-bin/who
      chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www"#;
    cluster.kubectl(&["run", "web", "-l", "app=web", "--image", IMAGE, "--command", "--", "sh", "-c", script]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let pod: IpAddr = pods::get(&cluster, "pod", "web")["status"]["podIP"].as_str().unwrap().parse().unwrap();
    cluster.kubectl(&["create", "service", "nodeport", "web", "--tcp=80:8080", "--node-port=30192"]);
    let at = SocketAddr::new(cluster.node_ip(1), 30192);
    until("the first Service answers", || asked_by_host(at).is_some() && answers(&cluster, "web"));

    by_hand(&cluster, "large", pod, 100);
    until("the author is told", || told(&cluster, "ServiceDoesNotFit", "large").iter().any(|note| note.contains("BACKENDS")));
    assert!(!answers(&cluster, "large"), "nothing of it is there");
    assert!(asked_by_host(at).is_some() && answers(&cluster, "web"), "who was there goes on");
    by_hand(&cluster, "small", pod, 0);
    until("a Service that fits and comes later is served", || answers(&cluster, "small"));

    // Its author makes it smaller: nothing else has to happen.
    by_hand(&cluster, "large", pod, 0);
    until("the smaller one is served", || answers(&cluster, "large"));
    // It outgrows the map: it keeps as many endpoints as it had.
    by_hand(&cluster, "large", pod, 100);
    until("it is refused more", || errors(&cluster).iter().any(|error| error.contains("default/large") && error.contains("it keeps")));
    assert!((0..20).all(|_| answers(&cluster, "large")));
    assert!(backends(&cluster) <= BACKENDS as u64);
    // The operator makes the map larger.
    restart_with(&cluster, &["--map-entries", "BACKENDS=1024"]);
    until("all of it is served", || backends(&cluster) > 100 && errors(&cluster).is_empty());
    assert!(asked_by_host(at).is_some() && answers(&cluster, "web") && answers(&cluster, "small"));
}

/// What the node's agent says of itself; nothing while it does not answer.
fn status(cluster: &Cluster) -> Value {
    let mut command = cluster.node(1).command(&cluster.up.binaries.xebec).unwrap();
    let output = command.args(["status", "--node", "-o", "json", "--run-dir"]).arg(&cluster.node(1).run_dir).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn backends(cluster: &Cluster) -> u64 {
    let status = status(cluster);
    let entries = |map: &Value| (map["name"] == "BACKENDS").then(|| map["entries"].as_u64()).flatten();
    status["maps"].as_array().into_iter().flatten().find_map(entries).unwrap_or(0)
}

fn errors(cluster: &Cluster) -> Vec<String> {
    status(cluster)["errors"].as_array().into_iter().flatten().filter_map(|e| e.as_str().map(str::to_owned)).collect()
}
