//! The API server is away for long, then a whole node for good: Services answer, and pods come back elsewhere.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use xebec_tests::cluster::{Cluster, IMAGE, until};

use crate::{pods, traffic::asked_by_host};

const NODE_PORT: u16 = 30190;

/// Three pods, one a node as long as there are three, which do not wait long for a lost node; and a Service of them.
fn web(cluster: &Cluster) {
    let script = r#"mkdir -p /www/cgi-bin; printf '#!/bin/sh\necho; echo "$HOSTNAME $REMOTE_ADDR"\n' > /www/cgi-bin/who
            chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www"#;
    cluster.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: web}}}}}}
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      containers:
      - name: main
        image: {IMAGE}
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
        command:
        - sh
        - -c
        - |
            {script}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}]
"
    ));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
}

fn ask(cluster: &Cluster, node: u8) -> Option<String> {
    asked_by_host(SocketAddr::new(cluster.node_ip(node), NODE_PORT)).map(|(name, _)| name)
}

/// Asks a node until so many pods have answered.
fn all_answer(cluster: &Cluster, node: u8, pods: usize) {
    let mut names = BTreeSet::new();
    until(&format!("{pods} pods have answered through node {node}"), || {
        names.extend(ask(cluster, node));
        names.len() >= pods
    });
}

/// How long the server stays away; ten minutes, say, by `XEBEC_ABSENCE_SECONDS`.
fn absence() -> Duration {
    let seconds = std::env::var("XEBEC_ABSENCE_SECONDS").map_or(15, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

#[test]
fn services_answer_while_the_api_server_is_away_and_when_a_node_is_lost() {
    let cluster = Cluster::of_nodes("absence", 3);
    web(&cluster);
    for node in 1..=3 {
        all_answer(&cluster, node, 3);
    }

    let vip = pods::get(&cluster, "service", "web")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    cluster.kill(1, "server");
    let back = Instant::now() + absence();
    let mut asked = 0;
    while Instant::now() < back {
        for node in 1..=3 {
            assert!(ask(&cluster, node).is_some(), "node {node} after {asked} requests without the API server");
        }
        let said = cluster.on_node(2, "busybox", &["timeout", "5", "busybox", "wget", "-q", "-O-", &format!("http://{vip}/cgi-bin/who")]);
        assert!(said.starts_with("web-"), "{said}");
        asked += 4;
    }
    assert!(asked > 0);
    cluster.bring_up();
    cluster.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    for node in 1..=3 {
        all_answer(&cluster, node, 4);
    }
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);

    // Everything of a node dies at once: agent, containerd, pods.
    let lost = cluster.node(3).clone();
    lost.cgroup().unwrap().kill().unwrap();
    let elsewhere = || {
        let list: serde_json::Value =
            serde_json::from_str(&cluster.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "json"]))
                .unwrap();
        let ready = list["items"].as_array().unwrap().iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        let nodes: Vec<_> =
            ready.filter(|e| e["conditions"]["ready"] == true).map(|e| e["nodeName"].as_str().unwrap().to_owned()).collect();
        nodes.len() == 3 && !nodes.contains(&lost.name)
    };
    until("three pods are ready on the nodes that are left", elsewhere);
    for node in [1, 2] {
        all_answer(&cluster, node, 3);
        for _ in 0..20 {
            assert!(ask(&cluster, node).is_some(), "node {node} sends nobody to the lost one");
        }
    }
    cluster.bring_up();
    all_answer(&cluster, 3, 3);
}
