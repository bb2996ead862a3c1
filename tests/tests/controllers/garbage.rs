//! What goes when its owner goes.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::harness::{Cluster, deployment, eventually};

async fn with_three_pods() -> Cluster {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 3)).await;
    eventually("three pods", || async { (cluster.pods("app=web").await.len() == 3).then_some(()) }).await;
    cluster
}

async fn sets(cluster: &Cluster) -> usize {
    cluster.api::<ReplicaSet>("default").list(&ListParams::default()).await.expect("sets").items.len()
}

#[tokio::test]
async fn background_and_foreground_deletion_take_the_pods_along() {
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        let cluster = with_three_pods().await;
        cluster.api::<Deployment>("default").delete("web", &params).await.expect("the deployment is deleted");
        eventually("everything is gone", || async {
            let gone = cluster.api::<Deployment>("default").get_opt("web").await.ok()?.is_none();
            (gone && sets(&cluster).await == 0 && cluster.pods("app=web").await.is_empty()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn orphans_stay_and_lose_their_owner() {
    let cluster = with_three_pods().await;
    cluster.api::<Deployment>("default").delete("web", &DeleteParams::orphan()).await.expect("the deployment is deleted");
    eventually("the set has no owner", || async {
        let gone = cluster.api::<Deployment>("default").get_opt("web").await.ok()?.is_none();
        let sets = cluster.api::<ReplicaSet>("default").list(&ListParams::default()).await.ok()?;
        (gone && sets.items.len() == 1 && sets.items[0].owner_references().is_empty()).then_some(())
    })
    .await;
    assert_eq!(cluster.pods("app=web").await.len(), 3);
}

#[tokio::test]
async fn an_object_whose_owner_never_was_goes() {
    let cluster = Cluster::start().await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "00000000-0000-0000-0000-000000000001"});
    cluster.create::<ConfigMap>(json!({"metadata": {"name": "child", "ownerReferences": [owner]}})).await;
    eventually("the child is gone", || async { cluster.api::<ConfigMap>("default").get_opt("child").await.ok()?.is_none().then_some(()) })
        .await;
}
