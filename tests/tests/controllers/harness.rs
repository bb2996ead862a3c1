//! A control plane on a temporary directory, nodes that are only objects, and a kubelet that only writes status.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use xebec_apiserver::Server;
use xebec_apiserver::auth::UserInfo;
use xebec_store::embedded;

/// Long enough for a slow machine; a test that passes ends much earlier.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running control plane.
pub struct Cluster {
    pub client: kube::Client,
    cancel: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Cluster {
    /// API server, scheduler and controllers, without a node.
    pub async fn start() -> Cluster {
        // RUST_LOG shows what the loops say; the first test of the process sets it up.
        drop(tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = embedded::open(dir.path().join("store"), embedded::Options::default()).expect("a new store");
        let config = xebec_apiserver::Config::new(dir.path(), "127.0.0.1:0".parse().expect("an address"));
        let server = Server::start(config, Arc::new(store)).await.expect("the API server starts");
        let cancel = CancellationToken::new();
        let controllers = xebec_controllers::Config {
            cluster_dns: vec!["10.96.0.10".parse().expect("an address")],
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a range")],
            ca_pem: server.pki().cluster_ca.cert_pem.clone(),
            ..Default::default()
        };
        let (serve, token) = (server.clone(), cancel.clone());
        let scheduler = xebec_scheduler::run(server.client(UserInfo::component("system:kube-scheduler")), cancel.clone());
        let loops =
            xebec_controllers::run(server.client(UserInfo::component("system:kube-controller-manager")), controllers, cancel.clone());
        let tasks = vec![
            tokio::spawn(async move { serve.run(token).await.expect("the API server serves") }),
            tokio::spawn(async move { scheduler.await.expect("the scheduler runs") }),
            tokio::spawn(async move { loops.await.expect("the controllers run") }),
        ];
        let client = server.client(UserInfo::loopback());
        Cluster { client, cancel, tasks, _dir: dir }
    }

    /// The same with one node and a kubelet.
    pub async fn with_node() -> Cluster {
        let mut cluster = Cluster::start().await;
        cluster.add_node("node-1", json!({})).await;
        cluster.start_kubelet();
        cluster
    }

    /// A node that is Ready and offers 4 CPUs, 8 GiB and 110 pods.
    pub async fn add_node(&self, name: &str, spec: Value) -> Node {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": spec,
        });
        let node: Node = self.create_cluster(node).await;
        let offer = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {"capacity": offer, "allocatable": offer, "conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2100-01-01T00:00:00Z",
             "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
        let api: Api<Node> = Api::all(self.client.clone());
        api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await.expect("a node status")
    }

    /// Pods that are bound become Running and Ready; pods that are deleted go. An annotation `test/keep-pending` keeps
    /// a pod from running, `test/exit` lets it end with that phase.
    pub fn start_kubelet(&mut self) {
        let (client, cancel) = (self.client.clone(), self.cancel.clone());
        self.tasks.push(tokio::spawn(async move {
            let ips = AtomicU32::new(1);
            let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()));
            loop {
                let event = tokio::select! {
                    () = cancel.cancelled() => return,
                    event = events.next() => event,
                };
                if let Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) = event {
                    pretend(&client, &pod, &ips).await;
                }
            }
        }));
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates from JSON in namespace `default` unless another is named.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let object: K = serde_json::from_value(object).expect("a valid object");
        self.api::<K>(&namespace).create(&PostParams::default(), &object).await.expect("it is created")
    }

    pub async fn create_cluster<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let object: K = serde_json::from_value(object).expect("a valid object");
        Api::<K>::all(self.client.clone()).create(&PostParams::default(), &object).await.expect("it is created")
    }

    pub async fn pods(&self, labels: &str) -> Vec<Pod> {
        let list = self.api::<Pod>("default").list(&ListParams::default().labels(labels)).await;
        list.expect("pods can be listed").items
    }

    /// Messages of events about an object, by reason.
    pub async fn events(&self, kind: &str, name: &str, reason: &str) -> Vec<String> {
        let all = self.api::<Event>("default").list(&ListParams::default()).await.expect("events can be listed");
        all.items
            .into_iter()
            .filter(|e| e.involved_object.kind.as_deref() == Some(kind) && e.involved_object.name.as_deref() == Some(name))
            .filter(|e| e.reason.as_deref() == Some(reason))
            .filter_map(|e| e.message)
            .collect()
    }
}

async fn pretend(client: &kube::Client, pod: &Pod, ips: &AtomicU32) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let (name, annotations) = (pod.name_any(), pod.annotations());
    if pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
        return;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if !annotations.contains_key("test/linger") {
            drop(api.delete(&name, &DeleteParams::default().grace_period(0)).await);
        }
        return;
    }
    let phase = annotations.get("test/exit").map_or("Running", String::as_str);
    let now = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if annotations.contains_key("test/keep-pending") || now == Some(phase) {
        return;
    }
    let n = ips.fetch_add(1, Ordering::Relaxed);
    let ready = if phase == "Running" { "True" } else { "False" };
    let status = json!({"status": {
        "phase": phase, "podIP": format!("10.244.0.{n}"), "podIPs": [{"ip": format!("10.244.0.{n}")}],
        "startTime": "2024-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2024-01-01T00:00:00Z"}],
    }});
    drop(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await);
}

/// Polls until `probe` gives a value.
pub async fn eventually<T, F, Fut>(what: &str, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A Deployment of one container.
pub fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "img:1", "ports": [{"name": "web", "containerPort": 8080}]}]}}}})
}

/// A pod of one container that asks for `cpu`.
pub fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "img:1", "resources": {"requests": {"cpu": cpu}}}]}})
}
