//! Up with several nodes, more, fewer, down, and down after everything was killed.

use std::collections::BTreeSet;

use xebec_tests::{
    cluster::{Cluster, args, down, until},
    traces::{Traces, nothing_is_left, pinned_maps, still_loaded},
};
use xtask::up::{self, Layout, Store};

use crate::pods;

fn nodes_of_the_api(cluster: &Cluster) -> BTreeSet<String> {
    cluster.kubectl(&["get", "nodes", "-o", "name"]).lines().map(|line| line.trim_start_matches("node/").to_owned()).collect()
}

fn names(cluster: &Cluster) -> BTreeSet<String> {
    cluster.up.nodes.iter().map(|node| node.name.clone()).collect()
}

#[test]
fn three_nodes_are_ready_and_each_runs_a_pod() {
    let three = up::Args { nodes: Some(3), ..args("nodes", Store::Embedded) };
    let layout = Layout::new(&three.name).unwrap();
    down(&three.name, true);
    let before = Traces::of(&layout);

    let mut cluster = Cluster { up: up::bring_up(&three).unwrap(), args: three.clone() };
    assert_eq!(nodes_of_the_api(&cluster), names(&cluster));
    let ranges: BTreeSet<String> = cluster
        .up
        .nodes
        .iter()
        .map(|node| {
            let object = pods::get(&cluster, "node", &node.name);
            assert_eq!(object["status"]["addresses"][0]["address"], cluster.node_ip(node.number).to_string());
            object["spec"]["podCIDR"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(ranges.len(), 3, "each node has a range of its own: {ranges:?}");

    pods::one_on_each(&cluster);
    for node in &cluster.up.nodes {
        let pod = format!("pod-{}", node.number);
        // Through the API server to this node's kubelet API.
        assert_eq!(cluster.kubectl(&["logs", &pod]), format!("on {}\n", node.name));
        assert_eq!(cluster.kubectl(&["exec", &pod, "--", "hostname"]).trim(), pod);
        assert!(!pods::get(&cluster, "pod", &pod)["status"]["podIP"].as_str().unwrap().is_empty());
    }
    let status = std::process::Command::new(&cluster.up.binaries.xebec)
        .args(["status", "--nodes", "3", "--kubeconfig"])
        .arg(&cluster.up.kubeconfig)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && table.lines().filter(|line| line.contains(" Ready ")).count() == 3, "{table}");

    // Again: nothing is started, and without the option there are as many nodes as before.
    let pids = || {
        let files =
            layout.nodes_with_traces().into_iter().flat_map(|node| ["agent", "containerd"].map(|part| (node.run_dir.clone(), part)));
        files.map(|(dir, part)| std::fs::read_to_string(dir.join(format!("{part}.pid"))).unwrap()).collect::<Vec<_>>()
    };
    let first = pids();
    assert_eq!(first.len(), 6);
    up::bring_up(&args("nodes", Store::Embedded)).unwrap();
    assert_eq!(pids(), first, "a second up must restart nothing");

    // State survives, also with fewer nodes and with more.
    down(&three.name, false);
    nothing_is_left(&layout, &before);
    cluster.up = up::bring_up(&up::Args { nodes: Some(2), ..three.clone() }).unwrap();
    assert_eq!(nodes_of_the_api(&cluster), names(&cluster));
    assert_eq!(cluster.up.nodes.len(), 2);
    assert!(!layout.node(3).has_traces());
    cluster.up = up::bring_up(&three).unwrap();
    assert_eq!(nodes_of_the_api(&cluster), names(&cluster));
    cluster.kubectl(&["delete", "pod", "pod-3", "--ignore-not-found", "--wait"]);
    pods::one_on_each(&cluster);

    drop(cluster);
    assert!(!layout.dir.exists(), "--purge must remove the state");
    nothing_is_left(&layout, &before);
}

#[test]
fn down_after_sigkill_of_every_node_leaves_nothing() {
    let args = up::Args { nodes: Some(3), ..args("nodekill", Store::Embedded) };
    let layout = Layout::new(&args.name).unwrap();
    down(&args.name, true);
    let before = Traces::of(&layout);
    let cluster = Cluster { up: up::bring_up(&args).unwrap(), args };
    pods::one_on_each(&cluster);
    let loaded = pinned_maps(&layout);
    assert!(loaded.len() > 15, "three nodes' maps: {loaded:?}");
    for node in &cluster.up.nodes {
        node.cgroup().unwrap().kill().unwrap();
    }

    drop(cluster);
    nothing_is_left(&layout, &before);
    until("every program and map is unloaded", || still_loaded(&loaded).is_empty());
}
