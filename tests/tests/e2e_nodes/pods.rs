//! Pods made for a node of their own.

use serde_json::Value;
use xebec_tests::cluster::{Cluster, IMAGE};

/// Starts a pod on each node, `pod-1`, `pod-2`, …, that sleeps; waits until all of them run.
pub fn one_on_each(cluster: &Cluster) {
    let manifest: String = cluster
        .up
        .nodes
        .iter()
        .map(|node| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, labels: {{app: each}}}}\nspec:\n  nodeName: {name}\n  \
                 terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {IMAGE}\n    command: [sh, -c, 'echo on {name}; exec sleep 100000']\n---\n",
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
