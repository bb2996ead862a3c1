//! Taint eviction: NoExecute taints remove pods that do not tolerate them, or not for longer.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use xebec_loops::meta::deleting;
use xebec_loops::placement::tolerates;
use xebec_loops::pod::node_name;
use xebec_loops::{Error, EventType, Key, Outcome, clock, ignore_not_found};

use crate::node_health::{BY_NODE, pods_by_node};
use crate::setup::Setup;

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let (client, nodes, pods) = (setup.client.clone(), setup.cache::<Node>(), pods_by_node(setup));
    let recorder = setup.recorder("taint-eviction-controller");
    let (all_nodes, all_pods) = (nodes.clone(), pods.clone());
    let queue = setup.control_loop("taint-eviction", &pods, 8, move |key| {
        let (client, nodes, pods, recorder) = (client.clone(), all_nodes.clone(), all_pods.clone(), recorder.clone());
        async move {
            let Some(pod) = pods.get(&key).filter(|p| !deleting(&p.metadata)) else { return Ok(Outcome::Done) };
            let node = node_name(&pod).and_then(|n| nodes.get(&Key::new("", n)));
            let Some(node) = node else { return Ok(Outcome::Done) };
            match stay(&node, &pod, &clock::now()) {
                Stay::Forever => Ok(Outcome::Done),
                Stay::For(time) => Ok(Outcome::Again(time)),
                Stay::Not => {
                    let text = format!("Marking for deletion Pod {key}");
                    recorder.event(&*pod, EventType::Normal, "TaintManagerEviction", text);
                    evict(&client, &pod).await?;
                    Ok(Outcome::Done)
                }
            }
        }
    });
    nodes.on_change(move |c| {
        let taints = |n: Option<&Arc<Node>>| n.map(|n| no_execute(n).cloned().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(node) = c.new
            && taints(c.old) != taints(c.new)
        {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            pods.by_index(BY_NODE, name).iter().for_each(|p| queue.add(Key::of(&**p)));
        }
    });
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute")
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    Forever,
    For(Duration),
    Not,
}

fn stay(node: &Node, pod: &Pod, now: &Time) -> Stay {
    let tolerations: &[Toleration] = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut left: Option<f64> = None;
    for taint in no_execute(node) {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if covering.is_empty() {
            return Stay::Not;
        }
        let since = taint.time_added.as_ref().map_or(0.0, |t| clock::seconds_between(t, now));
        for seconds in covering.iter().filter_map(|t| t.toleration_seconds) {
            let remaining = seconds.max(0) as f64 - since;
            left = Some(left.map_or(remaining, |l: f64| l.min(remaining)));
        }
    }
    match left {
        None => Stay::Forever,
        Some(seconds) if seconds > 0.0 => Stay::For(Duration::from_secs_f64(seconds)),
        Some(_) => Stay::Not,
    }
}

async fn evict(client: &kube::Client, pod: &Pod) -> Result<(), Error> {
    let key = Key::of(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByTaintManager".into()),
        message: Some("Taint manager: deleting due to NoExecute taint".into()),
        last_transition_time: Some(clock::now()),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    let patch = Patch::Strategic(json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } }));
    ignore_not_found(api.patch_status(&key.name, &PatchParams::default(), &patch).await)?;
    let exactly = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
    ignore_not_found(api.delete(&key.name, &params).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    #[test]
    fn the_shortest_tolerance_counts() {
        let node: Node = from_value(json!({"metadata": {}, "spec": {"taints": [
            {"key": "a", "effect": "NoExecute", "timeAdded": "2024-01-01T00:00:00Z"},
            {"key": "b", "effect": "NoSchedule"}]}}))
        .unwrap();
        let now = from_value(json!("2024-01-01T00:00:10Z")).unwrap();
        let with = |tolerations: Value| {
            let pod: Pod = from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            stay(&node, &pod, &now)
        };
        assert_eq!(with(json!([])), Stay::Not);
        assert_eq!(with(json!([{"key": "a", "operator": "Exists"}])), Stay::Forever);
        assert_eq!(with(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 30}])), Stay::For(Duration::from_secs(20)));
        assert_eq!(with(json!([{"operator": "Exists", "tolerationSeconds": 5}])), Stay::Not);
        assert_eq!(
            with(json!([{"operator": "Exists"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 40}])),
            Stay::For(Duration::from_secs(30))
        );
    }
}
