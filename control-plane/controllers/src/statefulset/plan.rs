//! What a StatefulSet does next: pods with names that stay, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use xebec_loops::meta::{controller_reference, deleting, label};
use xebec_loops::pod::{is_available, is_ready, is_terminal, phase};

use crate::deployment::scaled;
use crate::history::HASH_LABEL;

pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// A template and the name of its revision.
#[derive(Clone, Debug)]
pub struct Revision {
    pub name: String,
    pub template: PodTemplateSpec,
}

/// One write.
#[derive(Debug)]
pub enum Step {
    /// Make the pod with this number (and its claims first).
    Create(Box<Pod>, Vec<PersistentVolumeClaim>),
    /// Remove a pod; the text goes into a Warning event when there is one.
    Delete(Arc<Pod>, Option<(&'static str, String)>),
}

/// The number at the end of a pod's name, if the name is one of the set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let suffix = name.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    suffix.parse().ok().filter(|n: &i32| n.to_string() == suffix)
}

fn first_ordinal(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.ordinals.as_ref()?.start).unwrap_or(0)
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn is_on_delete(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.type_.as_deref()) == Some("OnDelete")
}

fn partition(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref()?.partition).unwrap_or(0)
}

fn max_unavailable(set: &StatefulSet) -> i32 {
    let rolling = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref());
    rolling.and_then(|r| r.max_unavailable.as_ref()).map_or(1, |v| scaled(v, replicas(set), true)).max(1)
}

fn is_monotonic(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref()) != Some("Parallel")
}

/// The revision a pod was made from.
pub fn revision_of(pod: &Pod) -> &str {
    label(&pod.metadata, HASH_LABEL).unwrap_or_default()
}

fn is_healthy(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod) && !deleting(&pod.metadata)
}

/// The pod with this number, and the claims it needs.
pub fn new_pod(set: &StatefulSet, revision: &Revision, ordinal: i32) -> (Pod, Vec<PersistentVolumeClaim>) {
    let set_name = set.metadata.name.clone().unwrap_or_default();
    let namespace = set.metadata.namespace.clone();
    let spec = set.spec.clone().unwrap_or_default();
    let name = format!("{set_name}-{ordinal}");
    let meta = revision.template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(POD_NAME_LABEL.into(), name.clone());
    labels.insert(INDEX_LABEL.into(), ordinal.to_string());
    labels.insert(HASH_LABEL.into(), revision.name.clone());
    let mut pod_spec = revision.template.spec.clone().unwrap_or_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec.service_name.clone().filter(|s| !s.is_empty());
    let mut claims = Vec::new();
    for template in spec.volume_claim_templates.iter().flatten() {
        let volume = template.metadata.name.clone().unwrap_or_default();
        let claim_name = format!("{volume}-{name}");
        let mut claim = template.clone();
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.metadata.name = Some(claim_name.clone());
        claim.metadata.namespace = namespace.clone();
        claim.metadata.labels = Some(labels);
        claim.status = None;
        claims.push(claim);
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|v| v.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Default::default()
        });
    }
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace,
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..Default::default()
        },
        spec: Some(pod_spec),
        status: None,
    };
    (pod, claims)
}

/// The next writes. `current` is the template that pods below the partition are made from.
pub fn plan(set: &StatefulSet, pods: &[Arc<Pod>], current: &Revision, update: &Revision, now: &Time) -> Vec<Step> {
    let (start, end) = (first_ordinal(set), first_ordinal(set) + replicas(set));
    let monotonic = is_monotonic(set);
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let by_ordinal: BTreeMap<i32, &Arc<Pod>> = pods.iter().filter_map(|p| Some((ordinal(set, p)?, p))).collect();
    let mut steps = Vec::new();
    for i in start..end {
        let Some(pod) = by_ordinal.get(&i) else {
            let (pod, claims) = new_pod(set, revision_for(set, i, current, update), i);
            steps.push(Step::Create(Box::new(pod), claims));
            if monotonic {
                return steps;
            }
            continue;
        };
        if is_terminal(pod) {
            if deleting(&pod.metadata) {
                if monotonic {
                    return steps;
                }
                continue;
            }
            let (reason, adjective) =
                if phase(pod) == "Failed" { ("RecreatingFailedPod", "failed") } else { ("RecreatingTerminatedPod", "terminated") };
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let set_name = set.metadata.name.as_deref().unwrap_or_default();
            let text = format!("StatefulSet {namespace}/{set_name} is recreating {adjective} Pod {name}");
            steps.push(Step::Delete((*pod).clone(), Some((reason, text))));
            if monotonic {
                return steps;
            }
            continue;
        }
        // In order means: the next only when this one is there, ready, and ready for long enough.
        let settled = is_healthy(pod) && is_available(pod, min_ready, now);
        if monotonic && !settled {
            return steps;
        }
    }
    // From the top down, what is too many.
    let condemned: Vec<&&Arc<Pod>> = by_ordinal.range(..start).chain(by_ordinal.range(end..)).map(|(_, p)| p).collect();
    let first_unhealthy = by_ordinal.values().find(|p| !is_healthy(p)).and_then(|p| p.metadata.uid.clone());
    for pod in condemned.iter().rev() {
        if deleting(&pod.metadata) {
            if monotonic {
                return steps;
            }
            continue;
        }
        if monotonic && !is_healthy(pod) && first_unhealthy != pod.metadata.uid {
            return steps;
        }
        steps.push(Step::Delete((**pod).clone(), None));
        if monotonic {
            return steps;
        }
    }
    if !is_on_delete(set) && steps.is_empty() {
        steps.extend(roll(set, &by_ordinal, update, (start, end), min_ready, now));
    }
    steps
}

fn revision_for<'a>(set: &StatefulSet, ordinal: i32, current: &'a Revision, update: &'a Revision) -> &'a Revision {
    let status = set.status.clone().unwrap_or_default();
    let below_partition = ordinal < first_ordinal(set) + partition(set);
    // While nothing of the new revision may run yet, or the pod is on the old side, the old template is used.
    let on_old_side = ordinal < first_ordinal(set) + status.current_replicas.unwrap_or(0) && !is_on_delete(set) && partition(set) > 0;
    if !is_on_delete(set) && (below_partition || on_old_side) { current } else { update }
}

fn roll(
    set: &StatefulSet,
    by_ordinal: &BTreeMap<i32, &Arc<Pod>>,
    update: &Revision,
    (start, end): (i32, i32),
    min_ready: i32,
    now: &Time,
) -> Vec<Step> {
    let settled = |p: &Pod| is_healthy(p) && is_available(p, min_ready, now);
    let mut unavailable = by_ordinal.range(start..end).filter(|(_, p)| !settled(p)).count() as i32;
    unavailable += (end - start) - by_ordinal.range(start..end).count() as i32;
    let mut steps = Vec::new();
    for i in ((start + partition(set)).max(start)..end).rev() {
        let Some(pod) = by_ordinal.get(&i) else { return steps };
        if revision_of(pod) != update.name && !deleting(&pod.metadata) {
            // One that does not serve anyway may go whatever the bound.
            if unavailable >= max_unavailable(set) && settled(pod) {
                return steps;
            }
            unavailable += i32::from(settled(pod));
            steps.push(Step::Delete((*pod).clone(), None));
            if max_unavailable(set) == 1 {
                return steps;
            }
        } else if !settled(pod) && unavailable >= max_unavailable(set) {
            return steps;
        }
    }
    steps
}

/// The status, and with it the revision that counts as current: when all pods are of the new one, it becomes that.
pub fn status(set: &StatefulSet, pods: &[Arc<Pod>], current: &str, update: &str, now: &Time) -> StatefulSetStatus {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let old = set.status.clone().unwrap_or_default();
    let mut s = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
        update_revision: Some(update.to_owned()),
        ..Default::default()
    };
    let (mut ready, mut available, mut of_current, mut of_update) = (0, 0, 0, 0);
    for pod in pods.iter().filter(|p| ordinal(set, p).is_some()) {
        s.replicas += 1;
        if phase(pod) == "Running" && is_ready(pod) {
            ready += 1;
            available += i32::from(is_available(pod, min_ready, now));
        }
        if !deleting(&pod.metadata) {
            of_current += i32::from(revision_of(pod) == current);
            of_update += i32::from(revision_of(pod) == update);
        }
    }
    let done = !is_on_delete(set) && of_update == s.replicas && ready == s.replicas && s.replicas == replicas(set);
    let some = |n: i32| (n != 0).then_some(n);
    s.current_revision = Some(if done { update } else { current }.to_owned());
    s.current_replicas = some(if done { of_update } else { of_current });
    s.updated_replicas = some(of_update);
    s.ready_replicas = some(ready);
    // Always written: that it is there tells clients that minReadySeconds is understood.
    s.available_replicas = Some(available);
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn set(replicas: i32, extra: Value) -> StatefulSet {
        let mut v = json!({"metadata": {"name": "s", "namespace": "n", "uid": "s"}, "spec": {"replicas": replicas, "serviceName": "svc",
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}});
        for (k, x) in extra.as_object().unwrap() {
            v["spec"][k] = x.clone();
        }
        from_value(v).unwrap()
    }

    fn revision(name: &str) -> Revision {
        Revision {
            name: name.into(),
            template: from_value(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}})).unwrap(),
        }
    }

    fn pod(i: i32, revision: &str, ready: bool) -> Arc<Pod> {
        Arc::new(from_value(json!({"metadata": {"name": format!("s-{i}"), "namespace": "n", "uid": format!("u{i}"), "labels": {HASH_LABEL: revision}},
            "spec": {"containers": []}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": "2024-01-01T00:00:00Z"}]}}))
        .unwrap())
    }

    fn run(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
        let steps = plan(set, pods, &revision("v1"), &revision("v2"), &xebec_loops::clock::now());
        steps
            .iter()
            .map(|s| match s {
                Step::Create(p, _) => format!("+{}@{}", p.metadata.name.as_ref().unwrap(), revision_of(p)),
                Step::Delete(p, _) => format!("-{}", p.metadata.name.as_ref().unwrap()),
            })
            .collect()
    }

    #[test]
    fn pods_come_in_order_and_go_in_reverse() {
        let s = set(3, json!({}));
        assert_eq!(run(&s, &[]), ["+s-0@v2"]);
        assert!(run(&s, &[pod(0, "v2", false)]).is_empty());
        assert_eq!(run(&s, &[pod(0, "v2", true)]), ["+s-1@v2"]);
        let all = [pod(0, "v2", true), pod(1, "v2", true), pod(2, "v2", true)];
        assert!(run(&s, &all).is_empty());
        assert_eq!(run(&set(1, json!({})), &all), ["-s-2"]);
        let parallel = set(3, json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(run(&parallel, &[]), ["+s-0@v2", "+s-1@v2", "+s-2@v2"]);
    }

    #[test]
    fn scale_down_waits_for_unhealthy_pods() {
        let s = set(1, json!({}));
        assert!(run(&s, &[pod(0, "v2", false), pod(1, "v2", true)]).is_empty());
        assert_eq!(run(&s, &[pod(0, "v2", true), pod(1, "v2", false)]), ["-s-1"]);
    }

    #[test]
    fn updates_go_from_the_top_down_to_the_partition() {
        let old = [pod(0, "v1", true), pod(1, "v1", true), pod(2, "v1", true)];
        assert_eq!(run(&set(3, json!({})), &old), ["-s-2"]);
        let half = [pod(0, "v1", true), pod(1, "v1", true), pod(2, "v2", false)];
        assert!(run(&set(3, json!({})), &half).is_empty());
        let next = [pod(0, "v1", true), pod(1, "v1", true), pod(2, "v2", true)];
        assert_eq!(run(&set(3, json!({})), &next), ["-s-1"]);
        let partitioned = set(3, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}));
        assert!(run(&partitioned, &next).is_empty());
        assert_eq!(
            run(&partitioned, &[pod(1, "v1", true), pod(2, "v2", true)]),
            ["+s-0@v1"],
            "below the partition the old template is used"
        );
        assert!(run(&set(3, json!({"updateStrategy": {"type": "OnDelete"}})), &old).is_empty());
    }

    #[test]
    fn a_pod_has_its_identity_and_claims() {
        let s = set(1, json!({"ordinals": {"start": 5}, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
        let (pod, claims) = new_pod(&s, &revision("v1"), 5);
        let spec = pod.spec.unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-5"), Some("svc")));
        assert_eq!(pod.metadata.labels.unwrap()[INDEX_LABEL], "5");
        assert_eq!(claims[0].metadata.name.as_deref(), Some("data-s-5"));
        assert_eq!(spec.volumes.unwrap()[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-s-5");
        assert_eq!(run(&s, &[]), ["+s-5@v2"]);
    }

    #[test]
    fn the_current_revision_moves_when_the_update_is_done() {
        let now = xebec_loops::clock::now();
        let s = set(2, json!({}));
        let half = status(&s, &[pod(0, "v1", true), pod(1, "v2", true)], "v1", "v2", &now);
        assert_eq!((half.current_revision.as_deref(), half.current_replicas, half.updated_replicas), (Some("v1"), Some(1), Some(1)));
        let done = status(&s, &[pod(0, "v2", true), pod(1, "v2", true)], "v1", "v2", &now);
        assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("v2"), Some(2)));
    }
}
