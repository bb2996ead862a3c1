//! A number of equal pods: what ReplicaSet and ReplicationController share.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use xebec_loops::meta::{annotation, uid};
use xebec_loops::pod::{condition, is_available, is_ready, node_name, phase, restarts};
use xebec_loops::{Cache, Error, EventType, Key, Recorder, api_message, api_namespace_terminating, clock, ignore_not_found};

/// Most pods created or deleted in one run.
pub const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod made from a template for an owner.
pub fn pod_from_template(template: &PodTemplateSpec, namespace: &str, owner_name: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{owner_name}-")),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Writes pods for one owner.
pub struct PodWriter<'a, O> {
    /// The API.
    pub client: &'a kube::Client,
    /// Told about every write.
    pub pods: &'a Cache<Pod>,
    /// For SuccessfulCreate and its like.
    pub recorder: &'a Recorder,
    /// Whom the events are about.
    pub owner: &'a O,
}

impl<O: Resource<DynamicType = ()>> PodWriter<'_, O> {
    fn api(&self) -> Api<Pod> {
        let namespace = self.owner.meta().namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates one pod. `Ok(None)`: the namespace is on its way out, so nobody wants it.
    ///
    /// # Errors
    /// The API's refusal, after saying so in an event.
    pub async fn create(&self, pod: &Pod) -> Result<Option<Pod>, Error> {
        match self.api().create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.clone().unwrap_or_default();
                self.pods.observe(created.clone());
                self.recorder.event(self.owner, EventType::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(Some(created))
            }
            Err(error) if api_namespace_terminating(&error) => Ok(None),
            Err(error) => {
                let text = format!("Error creating: {}", api_message(&error));
                self.recorder.event(self.owner, EventType::Warning, "FailedCreate", text);
                Err(error.into())
            }
        }
    }

    /// Creates `count` equal pods, first one, then twice as many and so on, so that a template nobody accepts costs one
    /// refusal and not many. Says how many were made.
    ///
    /// # Errors
    /// The first refusal, with the number that were made before.
    pub async fn create_many(&self, pod: &Pod, count: usize) -> Result<usize, (usize, Error)> {
        let (mut made, mut batch) = (0, 1);
        while made < count {
            let n = batch.min(count - made);
            let answers = futures::future::join_all((0..n).map(|_| self.create(pod))).await;
            let mut failed = None;
            for answer in answers {
                match answer {
                    Ok(Some(_)) => made += 1,
                    Ok(None) => return Ok(made),
                    Err(e) => failed = failed.or(Some(e)),
                }
            }
            if let Some(error) = failed {
                return Err((made, error));
            }
            batch *= 2;
        }
        Ok(made)
    }

    /// Deletes a pod; one that is gone already counts as deleted.
    ///
    /// # Errors
    /// The API's refusal, after saying so in an event.
    pub async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        self.delete_as(pod, |name| format!("Deleted pod: {name}")).await
    }

    /// [`PodWriter::delete`] with another text for the event.
    ///
    /// # Errors
    /// As there.
    pub async fn delete_as(&self, pod: &Pod, text: impl Fn(&str) -> String) -> Result<(), Error> {
        let key = Key::of(pod);
        let exactly = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        match ignore_not_found(self.api().delete(&key.name, &params).await) {
            Ok(answer) => {
                match answer {
                    Some(either) => match either.left() {
                        Some(deleting) if deleting.metadata.deletion_timestamp.is_some() => self.pods.observe(deleting),
                        _ => self.pods.observe_gone(&key, uid(&pod.metadata)),
                    },
                    None => self.pods.observe_gone(&key, uid(&pod.metadata)),
                }
                self.recorder.event(self.owner, EventType::Normal, "SuccessfulDelete", text(&key.name));
                Ok(())
            }
            Err(error) => {
                let text = format!("Error deleting: {}", api_message(&error));
                self.recorder.event(self.owner, EventType::Warning, "FailedDelete", text);
                Err(error.into())
            }
        }
    }
}

/// What a status says of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Active pods.
    pub replicas: i32,
    /// Those that have all labels of the template.
    pub fully_labeled: i32,
    /// Those that are Ready.
    pub ready: i32,
    /// Those that are Ready for long enough.
    pub available: i32,
}

/// Counts active pods.
pub fn counts(active: &[Arc<Pod>], template_labels: &BTreeMap<String, String>, min_ready_seconds: i32, now: &Time) -> Counts {
    let mut c = Counts { replicas: active.len() as i32, ..Counts::default() };
    for pod in active {
        let labels = pod.metadata.labels.as_ref();
        c.fully_labeled += i32::from(template_labels.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)));
        c.ready += i32::from(is_ready(pod));
        c.available += i32::from(is_available(pod, min_ready_seconds, now));
    }
    c
}

/// Which `count` of the active pods go first. `related` are all pods of the same family (for a ReplicaSet those of all
/// ReplicaSets of its Deployment): of two equal pods the one with more relatives on its node goes.
pub fn choose_to_delete(active: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: &Time) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        *on_node.entry(node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut sorted = active.to_vec();
    let rank = |pod: &Pod| on_node.get(node_name(pod).unwrap_or_default()).copied().unwrap_or(0);
    sorted.sort_by(|a, b| less_wanted(a, b, rank(a), rank(b), now));
    sorted.truncate(count);
    sorted
}

fn less_wanted(a: &Pod, b: &Pod, rank_a: usize, rank_b: usize, now: &Time) -> Ordering {
    let phase_rank = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| annotation(&p.metadata, DELETION_COST).and_then(|c| c.parse::<i32>().ok()).unwrap_or(0);
    node_name(a)
        .is_some()
        .cmp(&node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| match (is_ready(a), is_ready(b)) {
            (true, true) => age_order(ready_since(a), ready_since(b), now),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_order(a.metadata.creation_timestamp.as_ref(), b.metadata.creation_timestamp.as_ref(), now))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

fn ready_since(pod: &Pod) -> Option<&Time> {
    condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref())
}

/// The younger first; ages are compared by their order of magnitude (KEP-2185), so that pods of like age are equal.
fn age_order(a: Option<&Time>, b: Option<&Time>, now: &Time) -> Ordering {
    let magnitude = |t: Option<&Time>| match t {
        None => 0,
        Some(t) => (clock::seconds_between(t, now).max(1.0) * 1e9).log2() as i64,
    };
    magnitude(a).cmp(&magnitude(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn pod(name: &str, extra: serde_json::Value) -> Arc<Pod> {
        let mut v = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:10Z"}]}});
        merge(&mut v, extra);
        Arc::new(from_value(v).unwrap())
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
                for (k, v) in b {
                    merge(a.entry(k).or_insert(json!(null)), v);
                }
            }
            (a, b) => *a = b,
        }
    }

    #[test]
    fn pods_nobody_misses_go_first() {
        let now: Time = from_value(json!("2024-01-02T00:00:00Z")).unwrap();
        let ordered = [
            pod("unassigned", json!({"spec": {"nodeName": null}})),
            pod("pending", json!({"status": {"phase": "Pending"}})),
            pod("not-ready", json!({"status": {"conditions": []}})),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
            pod("crowded", json!({"spec": {"nodeName": "n2"}})),
            pod(
                "newly-ready",
                json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T23:59:00Z"}]}}),
            ),
            pod(
                "restarted",
                json!({"status": {"containerStatuses": [
                {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 3}]}}),
            ),
            pod("young", json!({"metadata": {"creationTimestamp": "2024-01-01T23:59:00Z"}})),
            pod("old", json!({})),
        ];
        let mut related: Vec<_> = (0..20).map(|i| pod(&format!("r{i}"), json!({"spec": {"nodeName": "n2"}}))).collect();
        related.extend(ordered.iter().cloned());
        let mut shuffled = ordered.to_vec();
        shuffled.reverse();
        let chosen = choose_to_delete(&shuffled, &related, 9, &now);
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(&chosen), names(&ordered));
        assert_eq!(names(&choose_to_delete(&shuffled, &related, 2, &now)), ["unassigned", "pending"]);
    }
}
