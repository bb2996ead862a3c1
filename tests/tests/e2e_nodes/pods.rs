//! Pods made for a node of their own.

use serde_json::Value;
use xebec_tests::cluster::{Cluster, IMAGE};

/// Starts a pod on each node, `pod-1`, `pod-2`, …; waits until all of them run. `/cgi-bin/who` on port 8080 answers with the
/// pod's name and the client's address.
pub fn one_on_each(cluster: &Cluster) {
    let script = r#"echo on $NODE; mkdir -p /www/cgi-bin; printf '#!/bin/sh\necho; echo "$POD $REMOTE_ADDR"\n' > /www/cgi-bin/who
      chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www"#;
    let manifest: String = cluster
        .up
        .nodes
        .iter()
        .map(|node| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, labels: {{app: each, name: pod-{number}}}}}\nspec:\n  nodeName: {name}\n  \
                 terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
                 env: [{{name: NODE, value: {name}}}, {{name: POD, value: pod-{number}}}]\n    command:\n    - sh\n    - -c\n    - |\n      {script}\n---\n",
                number = node.number,
                name = node.name,
            )
        })
        .collect();
    cluster.apply(&manifest);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=each", "--timeout=120s"]);
}

/// An object as JSON.
pub fn get(cluster: &Cluster, kind: &str, name: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"])).unwrap()
}
