//! Names in pods: asked for by real resolvers in real pods of two nodes, answered by the node each pod is on.

mod agent;
mod names;
mod upstream;

use std::process::Output;

use xebec_tests::cluster::{Cluster, IMAGE, until};

use crate::upstream::Upstream;

const OBJECTS: &str = include_str!("objects.yaml");

/// What a shell in a pod says, whether it succeeds or not.
fn try_in_pod(cluster: &Cluster, pod: &str, script: &str) -> Output {
    cluster.try_kubectl(&["exec", pod, "--", "sh", "-c", script], "")
}

/// What it prints; it must succeed.
#[track_caller]
fn in_pod(cluster: &Cluster, pod: &str, script: &str) -> String {
    let output = try_in_pod(cluster, pod, script);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script} in {pod}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// One cluster for all of it.
#[test]
fn pods_find_each_other_by_name() {
    let cluster = Cluster::of_nodes("dns", 2);
    until("the default ServiceAccount is there", || cluster.try_kubectl(&["get", "serviceaccount", "default"], "").status.success());
    cluster.apply(&OBJECTS.replace("IMAGE", IMAGE).replace("NODE1", &cluster.node(1).name).replace("NODE2", &cluster.node(2).name));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]);
    names::the_service_is_told(&cluster);
    names::resolver_configurations(&cluster);
    names::names_of_the_cluster(&cluster);
    names::records_of_all_kinds(&cluster);
    names::large_answers(&cluster);
    names::policies(&cluster);
    let upstream = Upstream::start(cluster.up.network.host()[0]);
    names::names_of_others(&cluster, &upstream);
    names::somebody_else_takes_over(&cluster);
}
