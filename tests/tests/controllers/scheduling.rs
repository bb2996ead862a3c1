//! Pods find nodes, or are told why not.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, eventually, pod};

async fn node_of(cluster: &Cluster, name: &str) -> String {
    eventually(&format!("pod {name} has a node"), || async { cluster.api::<Pod>("default").get(name).await.ok()?.spec?.node_name }).await
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_is_placed_when_it_can_be() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Pod>(pod("first", "3")).await;
    assert_eq!(node_of(&cluster, "first").await, "node-1");
    cluster.create::<Pod>(pod("second", "3")).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    eventually("the reason is told", || async {
        let p = cluster.api::<Pod>("default").get("second").await.ok()?;
        let c = p.status?.conditions?.into_iter().find(|c| c.type_ == "PodScheduled")?;
        assert_eq!((c.status.as_str(), c.reason.as_deref(), c.message.as_deref()), ("False", Some("Unschedulable"), Some(text)));
        cluster.events("Pod", "second", "FailedScheduling").await.contains(&text.to_owned()).then_some(())
    })
    .await;
    cluster.api::<Pod>("default").delete("first", &DeleteParams::default()).await.expect("the first pod is deleted");
    assert_eq!(node_of(&cluster, "second").await, "node-1");
    eventually("the placement is told", || async {
        let told = cluster.events("Pod", "second", "Scheduled").await;
        told.contains(&"Successfully assigned default/second to node-1".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn taints_and_cordons_keep_pods_away_until_they_are_lifted() {
    let cluster = Cluster::start().await;
    cluster.add_node("tainted", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})).await;
    cluster.add_node("cordoned", json!({"unschedulable": true})).await;
    cluster.create::<Pod>(pod("plain", "1")).await;
    let mut tolerant = pod("tolerant", "1");
    tolerant["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    cluster.create::<Pod>(tolerant).await;
    assert_eq!(node_of(&cluster, "tolerant").await, "tainted");
    eventually("both objections are told", || async {
        let p = cluster.api::<Pod>("default").get("plain").await.ok()?;
        let c = p.status?.conditions?.into_iter().find(|c| c.type_ == "PodScheduled")?;
        let text = "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.";
        c.message?.starts_with(text).then_some(())
    })
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let lift = Patch::Merge(json!({"spec": {"unschedulable": null}}));
    nodes.patch("cordoned", &PatchParams::default(), &lift).await.expect("the node is uncordoned");
    assert_eq!(node_of(&cluster, "plain").await, "cordoned");
}

#[tokio::test]
async fn a_more_important_pod_gets_its_place() {
    let cluster = Cluster::with_node().await;
    cluster.create_cluster::<PriorityClass>(json!({"metadata": {"name": "vip"}, "value": 1000})).await;
    cluster.create::<Pod>(pod("victim", "3")).await;
    node_of(&cluster, "victim").await;
    let mut vip = pod("vip", "3");
    vip["spec"]["priorityClassName"] = json!("vip");
    vip["spec"]["priority"] = json!(1000);
    cluster.create::<Pod>(vip).await;
    assert_eq!(node_of(&cluster, "vip").await, "node-1");
    assert!(cluster.api::<Pod>("default").get_opt("victim").await.expect("an answer").is_none());
}
