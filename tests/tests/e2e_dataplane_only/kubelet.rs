//! A kubelet for the test: pods through CRI from the node's network namespace, the Node's condition, its lease. It has no
//! dataplane and knows nothing of one.

use std::{sync::mpsc, time::Duration};

use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xebec_pods::PodManager;

use crate::cluster::Cluster;

/// Well within the time after which a node counts as lost.
const RENEW: Duration = Duration::from_secs(5);

/// Ends with the test.
pub struct Kubelet {
    cancel: CancellationToken,
    ended: mpsc::Receiver<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.cancel.cancel();
        // Nothing it mounts may outlive the cluster; a panic in it has said why already.
        let _ = self.ended.recv_timeout(Duration::from_secs(20));
    }
}

pub fn start(cluster: &Cluster) -> Kubelet {
    let (cancel, (ended_to, ended)) = (CancellationToken::new(), mpsc::channel());
    let (netns, kubeconfig, node) = (cluster.node.netns(), cluster.node.agent_dir().join("pki/kubeconfig"), cluster.node.name.clone());
    let socket = cluster.node.containerd(&cluster.up.binaries).socket();
    let config = xebec_pods::Config {
        data_dir: cluster.node.dir.join("kubelet"),
        log_dir: cluster.pod_logs(),
        cgroup_parent: cluster.node.cgroup_name(),
        ..xebec_pods::Config::new(&node, vec![cluster.ip_address()], socket)
    };
    let stop = cancel.clone();
    std::thread::spawn(move || {
        let netns = std::fs::File::open(&netns).expect("the node has a network namespace");
        setns(netns, CloneFlags::CLONE_NEWNET).expect("root may enter it");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let file = kube::config::Kubeconfig::read_from(&kubeconfig).expect("the node's credentials");
            let client = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.expect("a usable kubeconfig");
            let client = kube::Client::try_from(client).expect("a client");
            let pods = PodManager::start(config, client.clone()).await.unwrap_or_else(|error| panic!("the test's kubelet: {error}"));
            let alive = alive(&node, &client, &pods);
            tokio::select! {
                ended = pods.run(stop) => ended.expect("the pods' manager runs until it is cancelled"),
                () = alive => {}
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        let _ = ended_to.send(());
    });
    Kubelet { cancel, ended }
}

/// Ready as the runtime says it is.
async fn alive(node: &str, client: &kube::Client, pods: &PodManager) {
    use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
    use kube::api::{Api, Patch, PatchParams};

    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    loop {
        let problems = match pods.runtime().await {
            Ok(runtime) => runtime.problems,
            Err(error) => vec![error.to_string()],
        };
        let now = chrono::Utc::now();
        let (status, reason) = if problems.is_empty() { ("True", "KubeletReady") } else { ("False", "KubeletNotReady") };
        let condition = json!({
            "type": "Ready", "status": status, "reason": reason, "message": problems.join("; "),
            "lastHeartbeatTime": now.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let told = nodes.patch_status(node, &PatchParams::default(), &patch).await.map(drop);
        let renewed = Patch::Merge(json!({"spec": {"renewTime": now.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()}}));
        let renewed = leases.patch(node, &PatchParams::default(), &renewed).await.map(drop);
        if let Err(error) = told.and(renewed) {
            eprintln!("the test's kubelet cannot report: {error}");
        }
        tokio::time::sleep(RENEW).await;
    }
}
