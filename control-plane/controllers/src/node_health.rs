//! Node lifecycle: nodes that stop reporting become Unknown, conditions become taints, their pods stop being ready.

mod assess;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use xebec_loops::meta::deleting;
use xebec_loops::pod::{condition, is_ready, node_name};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, clock, ignore_not_found};

use crate::setup::Setup;
use assess::{Heartbeat, condition_status, silent_conditions, wanted_taints};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How often each node is looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Name of the pod index by node.
pub const BY_NODE: &str = "node";

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    nodes: Arc<Cache<Node>>,
    leases: Arc<Cache<Lease>>,
    pods: Arc<Cache<Pod>>,
    recorder: Recorder,
    heartbeats: Arc<Mutex<HashMap<String, Heartbeat>>>,
}

/// The pod cache with its index by node.
pub fn pods_by_node(setup: &mut Setup) -> Arc<Cache<Pod>> {
    let pods = setup.cache::<Pod>();
    pods.add_index(BY_NODE, |p| node_name(p).map(str::to_owned).into_iter().collect());
    pods
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        nodes: setup.cache::<Node>(),
        leases: setup.cache::<Lease>(),
        pods: pods_by_node(setup),
        recorder: setup.recorder("node-controller"),
        heartbeats: Arc::default(),
    };
    let (nodes, recorder) = (controller.nodes.clone(), controller.recorder.clone());
    nodes.on_change(move |c| match (c.old, c.new) {
        (None, Some(node)) => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let text = format!("Node {name} event: Registered Node {name} in Controller");
            recorder.event(&**node, EventType::Normal, "RegisteredNode", text);
        }
        (Some(node), None) => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let text = format!("Node {name} event: Removing Node {name} from Controller");
            recorder.event(&**node, EventType::Normal, "RemovingNode", text);
        }
        _ => {}
    });
    setup.control_loop("node-lifecycle", &nodes, 2, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get(&key) else {
            self.heartbeats.lock().remove(&key.name);
            return Ok(Outcome::Done);
        };
        let now = Instant::now();
        let lease = self.leases.get(&Key::new(LEASE_NAMESPACE, &*key.name));
        let silent = {
            let mut all = self.heartbeats.lock();
            let heartbeat = all.entry(key.name.clone()).or_insert_with(|| Heartbeat::new(now));
            heartbeat.see(&node, lease.as_deref(), now);
            heartbeat.is_silent(now)
        };
        let node = match silent.then(|| silent_conditions(&node, &clock::now())).flatten() {
            Some(conditions) => {
                let api: Api<Node> = Api::all(self.client.clone());
                let patch = Patch::Strategic(json!({ "status": { "conditions": conditions } }));
                let written = api.patch_status(&key.name, &PatchParams::default(), &patch).await?;
                self.nodes.observe(written.clone());
                let text = format!("Node {} status is now: NodeNotReady", key.name);
                self.recorder.event(&written, EventType::Normal, "NodeNotReady", text);
                Arc::new(written)
            }
            None => node,
        };
        if condition_status(&node, "Ready").is_some_and(|s| s != "True") {
            self.mark_pods_not_ready(&key.name).await?;
        }
        self.write_taints(&key, &node).await?;
        Ok(Outcome::Again(PERIOD))
    }

    async fn write_taints(&self, key: &Key, node: &Node) -> Result<(), Error> {
        let have: Vec<Taint> = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        // When no node reports, it is most likely the control plane that is cut off: nobody is evicted.
        let any_ready = self.nodes.list().iter().any(|n| condition_status(n, "Ready") == Some("True"));
        let want = wanted_taints(node, &have, any_ready, &clock::now());
        if want == have {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": want },
        }));
        self.nodes.observe(api.patch(&key.name, &PatchParams::default(), &patch).await?);
        Ok(())
    }

    /// Pods of a node that does not report are not to get traffic.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.by_index(BY_NODE, node) {
            if !is_ready(&pod) || deleting(&pod.metadata) {
                continue;
            }
            let Some(mut ready) = condition(&pod, "Ready").cloned() else { continue };
            ready.status = "False".into();
            ready.last_transition_time = Some(clock::now());
            let key = Key::of(&*pod);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = Patch::Strategic(json!({
                "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [ready] } }));
            if let Some(written) = ignore_not_found(api.patch_status(&key.name, &PatchParams::default(), &patch).await)? {
                self.pods.observe(written);
                self.recorder.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
            }
        }
        Ok(())
    }
}
