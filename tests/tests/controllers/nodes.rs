//! Nodes: taints, and the pods that do not bear them.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, eventually, pod};

#[tokio::test]
async fn a_no_execute_taint_removes_pods_that_do_not_bear_it() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Pod>(pod("frail", "1")).await;
    let mut sturdy = pod("sturdy", "1");
    sturdy["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    cluster.create::<Pod>(sturdy).await;
    let running = |name: &'static str| {
        let api = cluster.api::<Pod>("default");
        async move { api.get(name).await.ok()?.status?.phase.filter(|p| p == "Running").map(|_| ()) }
    };
    eventually("both run", || running("frail")).await;
    eventually("both run", || running("sturdy")).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taint = Patch::Merge(json!({"spec": {"taints": [{"key": "fire", "effect": "NoExecute"}]}}));
    nodes.patch("node-1", &PatchParams::default(), &taint).await.expect("the node is tainted");
    eventually("the frail one is gone", || async { cluster.api::<Pod>("default").get_opt("frail").await.ok()?.is_none().then_some(()) })
        .await;
    assert!(cluster.api::<Pod>("default").get("sturdy").await.expect("it stays").metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn a_condition_and_a_cordon_become_taints_and_go_again() {
    let cluster = Cluster::with_node().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let keys = || async {
        let taints = nodes.get("node-1").await.ok()?.spec?.taints.unwrap_or_default();
        Some(taints.into_iter().map(|t| t.key).collect::<Vec<_>>())
    };
    let cordon = |on: bool| Patch::Merge(json!({"spec": {"unschedulable": on}}));
    let pressure = |on: &str| Patch::Strategic(json!({"status": {"conditions": [{"type": "DiskPressure", "status": on}]}}));
    nodes.patch("node-1", &PatchParams::default(), &cordon(true)).await.expect("cordoned");
    nodes.patch_status("node-1", &PatchParams::default(), &pressure("True")).await.expect("under pressure");
    eventually("two taints", || async {
        let mut keys = keys().await?;
        keys.sort();
        (keys == ["node.kubernetes.io/disk-pressure", "node.kubernetes.io/unschedulable"]).then_some(())
    })
    .await;
    nodes.patch("node-1", &PatchParams::default(), &cordon(false)).await.expect("uncordoned");
    nodes.patch_status("node-1", &PatchParams::default(), &pressure("False")).await.expect("relieved");
    eventually("no taint", || async { keys().await?.is_empty().then_some(()) }).await;
}
