//! Deployments and ReplicaSets.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, deployment, eventually};

async fn complete(cluster: &Cluster, name: &str, replicas: i32) -> Deployment {
    eventually(&format!("deployment {name} is complete"), || async {
        let d = cluster.api::<Deployment>("default").get(name).await.ok()?;
        let s = d.status.clone()?;
        let done = s.observed_generation == d.metadata.generation
            && s.updated_replicas.unwrap_or(0) == replicas
            && s.replicas.unwrap_or(0) == replicas
            && s.available_replicas.unwrap_or(0) == replicas;
        done.then_some(d)
    })
    .await
}

#[tokio::test]
async fn a_deployment_runs_rolls_and_rolls_back() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 3)).await;
    let d = complete(&cluster, "web", 3).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "1");
    let pods = cluster.pods("app=web").await;
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        assert_eq!(pod.owner_references()[0].kind, "ReplicaSet");
        assert!(pod.labels().contains_key("pod-template-hash"));
    }

    let image = |image: &str| Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}));
    let api = cluster.api::<Deployment>("default");
    api.patch("web", &PatchParams::default(), &image("img:2")).await.expect("the image is changed");
    let d = complete(&cluster, "web", 3).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "2");
    api.patch("web", &PatchParams::default(), &image("img:1")).await.expect("the image is changed back");
    let d = complete(&cluster, "web", 3).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "3");
    let sets = cluster.api::<ReplicaSet>("default").list(&ListParams::default()).await.expect("sets");
    assert_eq!(sets.items.len(), 2, "the first set is used again");
    let conditions = d.status.and_then(|s| s.conditions).expect("conditions");
    let reasons: Vec<_> = conditions.iter().filter_map(|c| c.reason.clone()).collect();
    assert!(reasons.contains(&"MinimumReplicasAvailable".into()) && reasons.contains(&"NewReplicaSetAvailable".into()), "{reasons:?}");
    eventually("the scaling is told", || async {
        let told = cluster.events("Deployment", "web", "ScalingReplicaSet").await;
        told.iter().any(|m| m.starts_with("Scaled up replica set web-") && m.ends_with("from 0 to 3")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_set_replaces_releases_and_adopts() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 2)).await;
    complete(&cluster, "web", 2).await;
    let pods = cluster.api::<Pod>("default");
    let first = cluster.pods("app=web").await[0].name_any();
    let second = cluster.pods("app=web").await[1].name_any();

    pods.delete(&first, &DeleteParams::default()).await.expect("a pod is deleted");
    eventually("the pod is replaced", || async {
        let now = cluster.pods("app=web").await;
        (now.len() == 2 && now.iter().all(|p| p.name_any() != first)).then_some(())
    })
    .await;

    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}));
    pods.patch(&second, &PatchParams::default(), &relabel).await.expect("a label is changed");
    eventually("the pod is released and replaced", || async {
        let released = pods.get(&second).await.ok()?.owner_references().is_empty();
        (released && cluster.pods("app=web").await.len() == 2).then_some(())
    })
    .await;

    let back = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}}));
    pods.patch(&second, &PatchParams::default(), &back).await.expect("the label is changed back");
    eventually("one of three goes", || async {
        let now = cluster.pods("app=web").await;
        let running: Vec<_> = now.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect();
        (now.len() == 2 && running.len() == 2 && running.iter().all(|p| !p.owner_references().is_empty())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stateful_set_starts_in_order_updates_and_shrinks() {
    let cluster = Cluster::with_node().await;
    let mut set = deployment("db", 3);
    set["spec"]["serviceName"] = json!("db");
    cluster.create::<StatefulSet>(set).await;
    let names = || async {
        let mut names: Vec<_> = cluster.pods("app=db").await.iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
    };
    let api = cluster.api::<StatefulSet>("default");
    let settled = |want: i32| {
        let api = api.clone();
        async move {
            let set = api.get("db").await.ok()?;
            let s = set.status?;
            let done = s.observed_generation == set.metadata.generation
                && s.updated_replicas.unwrap_or(0) == want
                && s.ready_replicas.unwrap_or(0) == want
                && s.replicas == want
                && s.current_revision == s.update_revision;
            done.then_some(s.update_revision)
        }
    };
    let first = eventually("three pods", || settled(3)).await;
    assert_eq!(names().await, ["db-0", "db-1", "db-2"]);
    let image = Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "img:2"}]}}}}));
    api.patch("db", &PatchParams::default(), &image).await.expect("the image is changed");
    let second = eventually("all updated", || settled(3)).await;
    assert_ne!(first, second);
    let images: Vec<_> = cluster.pods("app=db").await.into_iter().filter_map(|p| p.spec?.containers[0].image.clone()).collect();
    assert_eq!(images, ["img:2", "img:2", "img:2"]);
    api.patch("db", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 1}}))).await.expect("it is scaled");
    eventually("one pod", || settled(1)).await;
    assert_eq!(names().await, ["db-0"]);
}

#[tokio::test]
async fn a_daemon_set_runs_on_every_node_and_updates() {
    let cluster = Cluster::with_node().await;
    cluster.add_node("node-2", json!({})).await;
    let mut set = deployment("agent", 0);
    set["spec"].as_object_mut().expect("a spec").remove("replicas");
    cluster.create::<DaemonSet>(set).await;
    let api = cluster.api::<DaemonSet>("default");
    let settled = |want: i32| {
        let api = api.clone();
        async move {
            let set = api.get("agent").await.ok()?;
            let s = set.status?;
            let all =
                [s.desired_number_scheduled, s.number_ready, s.updated_number_scheduled.unwrap_or(0), s.number_available.unwrap_or(0)];
            (s.observed_generation == set.metadata.generation && all == [want; 4]).then_some(())
        }
    };
    eventually("both nodes", || settled(2)).await;
    cluster.add_node("node-3", json!({})).await;
    eventually("the new node too", || settled(3)).await;
    let nodes: std::collections::BTreeSet<_> = cluster.pods("app=agent").await.into_iter().filter_map(|p| p.spec?.node_name).collect();
    assert_eq!(nodes.len(), 3);
    let image = Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "img:2"}]}}}}));
    api.patch("agent", &PatchParams::default(), &image).await.expect("the image is changed");
    eventually("all updated", || settled(3)).await;
    let images: Vec<_> = cluster.pods("app=agent").await.into_iter().filter_map(|p| p.spec?.containers[0].image.clone()).collect();
    assert_eq!(images, ["img:2", "img:2", "img:2"]);
}
