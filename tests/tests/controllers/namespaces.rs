//! Namespaces: what they are born with, and how they end.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, eventually, pod};

#[tokio::test]
async fn a_namespace_has_its_account_and_root_certificate() {
    let cluster = Cluster::start().await;
    cluster.create_cluster::<Namespace>(json!({"metadata": {"name": "team"}})).await;
    eventually("account and certificate", || async {
        let account = cluster.api::<ServiceAccount>("team").get_opt("default").await.ok()?;
        let map = cluster.api::<ConfigMap>("team").get_opt("kube-root-ca.crt").await.ok()??;
        assert!(map.data?["ca.crt"].contains("BEGIN CERTIFICATE"));
        account.map(|_| ())
    })
    .await;
    cluster.api::<ServiceAccount>("team").delete("default", &DeleteParams::default()).await.expect("it is deleted");
    eventually("the account is made again", || async { cluster.api::<ServiceAccount>("team").get_opt("default").await.ok()?.map(|_| ()) })
        .await;
}

#[tokio::test]
async fn a_deleted_namespace_is_emptied_and_says_what_it_waits_for() {
    let cluster = Cluster::with_node().await;
    cluster.create_cluster::<Namespace>(json!({"metadata": {"name": "doomed"}})).await;
    let mut p = pod("p", "1");
    p["metadata"]["namespace"] = json!("doomed");
    cluster.create::<Pod>(p).await;
    let map = json!({"metadata": {"name": "held", "namespace": "doomed", "finalizers": ["example.com/hold"]}});
    cluster.create::<ConfigMap>(map).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("doomed", &DeleteParams::default()).await.expect("the namespace is deleted");
    eventually("the finalizer is named", || async {
        let ns = namespaces.get("doomed").await.ok()?;
        assert!(ns.metadata.deletion_timestamp.is_some());
        let c = ns.status?.conditions?.into_iter().find(|c| c.type_ == "NamespaceFinalizersRemaining")?;
        (c.message? == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances").then_some(())
    })
    .await;
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.api::<ConfigMap>("doomed").patch("held", &PatchParams::default(), &release).await.expect("it is let go");
    eventually("the namespace is gone", || async { namespaces.get_opt("doomed").await.ok()?.is_none().then_some(()) }).await;
}

#[tokio::test]
async fn each_node_gets_its_own_range() {
    let cluster = Cluster::start().await;
    for i in 0..5 {
        cluster.add_node(&format!("n{i}"), json!({})).await;
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let mut ranges = std::collections::BTreeSet::new();
    for i in 0..5 {
        let name = format!("n{i}");
        let range = eventually("the node has a range", || async { nodes.get(&name).await.ok()?.spec?.pod_cidr }).await;
        assert!(range.starts_with("10.244.") && range.ends_with(".0/24"), "{range}");
        ranges.insert(range);
    }
    assert_eq!(ranges.len(), 5);
}
