//! Pod garbage collection: ended pods beyond a number, and pods whose node is no more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use xebec_loops::meta::deleting;
use xebec_loops::pod::{is_terminal, node_name};
use xebec_loops::{Cache, Error, Key, clock, ignore_not_found};

use crate::setup::Setup;

const PERIOD: Duration = Duration::from_secs(20);
/// Ended pods that are kept (--terminated-pod-gc-threshold).
const KEEP: usize = 12_500;
/// How long a node must be missing before its pods go: it may only be re-created.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let (client, pods, nodes, cancel) = (setup.client.clone(), setup.cache::<Pod>(), setup.cache::<Node>(), setup.cancel.clone());
    setup.on_start(move |tasks| {
        tasks.spawn(async move {
            let mut missing: HashMap<String, Instant> = HashMap::new();
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(PERIOD) => {}
                }
                let all = pods.list();
                let mut gone: Vec<(Arc<Pod>, Option<&'static str>)> = Vec::new();
                gone.extend(ended_beyond(&all, KEEP).into_iter().map(|p| (p, None)));
                gone.extend(unscheduled(&all).into_iter().map(|p| (p, None)));
                for pod in orphans(&client, &all, &nodes, &mut missing, Instant::now()).await {
                    gone.push((pod, Some("PodGC: node no longer exists")));
                }
                for (pod, why) in gone {
                    if let Err(error) = remove(&client, &pod, why).await {
                        tracing::warn!(pod = %Key::of(&*pod), %error, "pod was not removed, will retry");
                    }
                }
            }
        });
    });
}

/// The oldest ended pods beyond `keep`.
fn ended_beyond(pods: &[Arc<Pod>], keep: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<Arc<Pod>> = pods.iter().filter(|p| is_terminal(p) && !deleting(&p.metadata)).cloned().collect();
    ended.sort_by(|a, b| {
        let age = |p: &Pod| (p.metadata.creation_timestamp.clone(), p.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    ended.truncate(ended.len().saturating_sub(keep));
    ended
}

/// Pods on their way out that no kubelet ever saw.
fn unscheduled(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter().filter(|p| deleting(&p.metadata) && node_name(p).is_none()).cloned().collect()
}

async fn orphans(
    client: &kube::Client,
    pods: &[Arc<Pod>],
    nodes: &Cache<Node>,
    missing: &mut HashMap<String, Instant>,
    now: Instant,
) -> Vec<Arc<Pod>> {
    let known: HashSet<String> = nodes.keys().into_iter().map(|k| k.name).collect();
    let unknown: HashSet<&str> = pods.iter().filter_map(|p| node_name(p)).filter(|n| !known.contains(*n)).collect();
    missing.retain(|n, _| unknown.contains(n.as_str()));
    let mut gone = HashSet::new();
    let api: Api<Node> = Api::all(client.clone());
    for node in unknown {
        let since = missing.entry(node.to_owned()).or_insert(now);
        // The cache may lag: only the API's word that there is no such node counts.
        if now.duration_since(*since) >= QUARANTINE && matches!(api.get_opt(node).await, Ok(None)) {
            gone.insert(node.to_owned());
        }
    }
    pods.iter().filter(|p| node_name(p).is_some_and(|n| gone.contains(n))).cloned().collect()
}

async fn remove(client: &kube::Client, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
    let key = Key::of(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    if !is_terminal(pod) {
        let mut status = json!({ "phase": "Failed" });
        if let Some(why) = why {
            status["conditions"] = json!([PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("DeletionByPodGC".into()),
                message: Some(why.into()),
                last_transition_time: Some(clock::now()),
                observed_generation: pod.metadata.generation,
                ..Default::default()
            }]);
        }
        let patch = Patch::Strategic(json!({ "metadata": { "uid": pod.metadata.uid }, "status": status }));
        ignore_not_found(api.patch_status(&key.name, &PatchParams::default(), &patch).await)?;
    }
    let exactly = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(exactly), grace_period_seconds: Some(0), ..DeleteParams::default() };
    ignore_not_found(api.delete(&key.name, &params).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn the_oldest_ended_pods_go_first() {
        let pod = |name: &str, second: u32, phase: &str| -> Arc<Pod> {
            Arc::new(
                from_value(json!({"metadata": {"name": name, "creationTimestamp": format!("2024-01-01T00:00:{second:02}Z")},
                "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let pods = [pod("c", 3, "Failed"), pod("a", 1, "Succeeded"), pod("r", 0, "Running"), pod("b", 2, "Failed")];
        let names: Vec<_> = ended_beyond(&pods, 1).iter().map(|p| p.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(ended_beyond(&pods, 3).is_empty());
    }
}
