//! Endpoints of Services.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

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

#[tokio::test]
async fn endpoints_of_a_service_without_a_selector_become_slices() {
    let cluster = Cluster::start().await;
    let mirrored = async || {
        let labels = "kubernetes.io/service-name=db,endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io";
        let slices = cluster.api::<EndpointSlice>("default").list(&ListParams::default().labels(labels)).await.expect("slices").items;
        slices.into_iter().flat_map(|s| s.endpoints.unwrap_or_default()).flat_map(|e| e.addresses).collect::<Vec<_>>()
    };
    cluster.create::<Service>(json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"port": 5432}]}]);
    cluster.create::<Endpoints>(json!({"metadata": {"name": "db"}, "subsets": subsets("192.0.2.40")})).await;
    eventually("mirrored", || async { (mirrored().await == ["192.0.2.40"]).then_some(()) }).await;
    let moved = Patch::Merge(json!({"subsets": subsets("192.0.2.41")}));
    cluster.api::<Endpoints>("default").patch("db", &PatchParams::default(), &moved).await.expect("it is patched");
    eventually("followed", || async { (mirrored().await == ["192.0.2.41"]).then_some(()) }).await;
    let skip = Patch::Merge(json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}));
    cluster.api::<Endpoints>("default").patch("db", &PatchParams::default(), &skip).await.expect("it is patched");
    eventually("left alone", || async { mirrored().await.is_empty().then_some(()) }).await;
}

/// Addresses in the status of a Service, and the reason of its condition.
async fn balancer(cluster: &Cluster, name: &str) -> (Vec<String>, String) {
    let service = cluster.api::<Service>("default").get(name).await.expect("the Service");
    let status = service.status.unwrap_or_default();
    let ingress = status.load_balancer.and_then(|l| l.ingress).unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let reason = conditions.into_iter().find(|c| c.type_ == "xebec.dev/LoadBalancerAddress").map(|c| c.reason);
    (ingress.into_iter().filter_map(|i| i.ip).collect(), reason.unwrap_or_default())
}

fn pools(cluster: &Cluster) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("xebec.dev", "v1alpha1", "LoadBalancerPool");
    Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&gvk))
}

async fn put_pool(cluster: &Cluster, name: &str, spec: Value) {
    let pool = json!({"apiVersion": "xebec.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": name}, "spec": spec});
    eventually("a pool", || async { pools(cluster).patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&pool)).await.ok() })
        .await;
}

#[tokio::test]
async fn balancers_get_addresses_from_pools_and_give_them_back() {
    let cluster = Cluster::start().await;
    let service = |name: &str, spec: Value| {
        let mut whole = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        for (key, value) in spec.as_object().expect("fields") {
            whole[key] = value.clone();
        }
        json!({"metadata": {"name": name}, "spec": whole})
    };
    cluster.create::<Service>(service("a", json!({}))).await;
    cluster.create::<Service>(service("other", json!({"loadBalancerClass": "example.com/lb"}))).await;
    put_pool(&cluster, "p", json!({"ranges": [{"start": "192.0.2.10", "stop": "192.0.2.11"}]})).await;
    let has = async |name: &str, want: &[&str], reason: &str| {
        eventually(&format!("{name} has {want:?}"), || async {
            let (ips, why) = balancer(&cluster, name).await;
            (ips == want && why == reason).then_some(())
        })
        .await;
    };
    has("a", &["192.0.2.10"], "AddressAssigned").await;
    cluster.create::<Service>(service("b", json!({"loadBalancerIP": "192.0.2.11", "loadBalancerClass": "xebec.dev/lb"}))).await;
    has("b", &["192.0.2.11"], "AddressAssigned").await;
    cluster.create::<Service>(service("c", json!({}))).await;
    has("c", &[], "PoolExhausted").await;
    eventually("an event", || async { (!cluster.events("Service", "c", "PoolExhausted").await.is_empty()).then_some(()) }).await;
    let exhausted = async |want: Value| {
        eventually("the pool's status", || async {
            let pool = pools(&cluster).get("p").await.ok()?;
            let status = &pool.data["status"];
            (json!([status["assigned"], status["available"], status["conditions"][1]["reason"]]) == want).then_some(())
        })
        .await;
    };
    exhausted(json!([2, 0, "Exhausted"])).await;
    // What a Service gives back goes to who waits.
    cluster.api::<Service>("default").delete("a", &DeleteParams::default()).await.expect("it is deleted");
    has("c", &["192.0.2.10"], "AddressAssigned").await;
    let no_balancer = Patch::Merge(json!({"spec": {
        "type": "ClusterIP", "loadBalancerClass": null, "externalTrafficPolicy": null, "allocateLoadBalancerNodePorts": null,
        "ports": [{"port": 80, "nodePort": null}],
    }}));
    cluster.api::<Service>("default").patch("b", &PatchParams::default(), &no_balancer).await.expect("it is patched");
    has("b", &[], "").await;
    exhausted(json!([1, 1, "AddressesLeft"])).await;
    // A pool that goes takes its addresses along, another that comes gives new ones.
    pools(&cluster).delete("p", &DeleteParams::default()).await.expect("it is deleted");
    has("c", &[], "NoPool").await;
    put_pool(&cluster, "q", json!({"cidrs": ["198.51.100.0/30"]})).await;
    has("c", &["198.51.100.1"], "AddressAssigned").await;
    has("other", &[], "").await;
}

#[tokio::test]
async fn the_name_server_has_a_service_until_somebody_takes_it_over() {
    const PROXY: &str = "service.kubernetes.io/service-proxy-name";
    let cluster = Cluster::with_node().await;
    let api = cluster.api::<Service>("kube-system");
    let made = || async { api.get_opt("kube-dns").await.ok()? };
    let service = eventually("the Service is made", made).await;
    assert_eq!(service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()), Some("10.96.0.10"));
    assert_eq!(service.metadata.labels.as_ref().map(|l| l[PROXY].as_str()), Some("xebec-dns"));
    let uid = service.metadata.uid;
    api.delete("kube-dns", &DeleteParams::default()).await.expect("it is deleted");
    eventually("it is made again", || async { made().await.filter(|s| s.metadata.uid != uid) }).await;

    let selector = Patch::Merge(json!({"spec": {"selector": {"k8s-app": "kube-dns"}}}));
    api.patch("kube-dns", &PatchParams::default(), &selector).await.expect("somebody puts pods behind it");
    eventually("it is left to the proxies", || async {
        made().await.filter(|s| s.metadata.labels.as_ref().is_none_or(|l| !l.contains_key(PROXY)))
    })
    .await;
}
