//! Endpoints of Services.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, deployment, eventually};

async fn ready_addresses(cluster: &Cluster, service: &str) -> BTreeSet<String> {
    let labels = format!("kubernetes.io/service-name={service}");
    let slices = cluster.api::<EndpointSlice>("default").list(&ListParams::default().labels(&labels)).await;
    let endpoints = slices.expect("slices").items.into_iter().flat_map(|s| s.endpoints.unwrap_or_default());
    endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)).flat_map(|e| e.addresses).collect()
}

#[tokio::test]
async fn slices_follow_the_pods() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 3)).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}});
    cluster.create::<Service>(service).await;
    eventually("three endpoints", || async { (ready_addresses(&cluster, "web").await.len() == 3).then_some(()) }).await;
    let want: BTreeSet<String> = cluster.pods("app=web").await.into_iter().filter_map(|p| p.status?.pod_ip).collect();
    assert_eq!(ready_addresses(&cluster, "web").await, want);
    let slices = cluster.api::<EndpointSlice>("default").list(&ListParams::default().labels("kubernetes.io/service-name=web")).await;
    let slice = slices.expect("slices").items.remove(0);
    assert_eq!(slice.ports.as_ref().and_then(|p| p[0].port), Some(8080));
    assert_eq!(
        slice.metadata.labels.as_ref().map(|l| l["endpointslice.kubernetes.io/managed-by"].as_str()),
        Some("endpointslice-controller.k8s.io")
    );

    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    cluster.api::<Deployment>("default").patch("web", &PatchParams::default(), &scale).await.expect("it is scaled");
    eventually("one endpoint", || async { (ready_addresses(&cluster, "web").await.len() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn endpoints_mirror_the_pods_too() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 2)).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "web"}]}});
    cluster.create::<Service>(service).await;
    eventually("two addresses", || async {
        let subsets = cluster.api::<Endpoints>("default").get("web").await.ok()?.subsets?;
        let addresses = subsets.first()?.addresses.as_ref()?;
        (subsets.len() == 1 && addresses.len() == 2 && subsets[0].ports.as_ref()?[0].port == 8080).then_some(())
    })
    .await;
    cluster.api::<Service>("default").delete("web", &DeleteParams::default()).await.expect("the service is deleted");
    eventually("the endpoints are gone", || async {
        let gone = cluster.api::<Endpoints>("default").get_opt("web").await.ok()?.is_none();
        let slices =
            cluster.api::<EndpointSlice>("default").list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.ok()?;
        (gone && slices.items.is_empty()).then_some(())
    })
    .await;
}
