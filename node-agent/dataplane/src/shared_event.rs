//! Events about what every node sees alike, an annotation that means nothing for one: told once in the cluster, not once by each node.
//!
//! The Event's name follows from what it says of which object, so the API server takes it from the first node and tells the others
//! that it is there. When it is said again later, it is counted up.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

/// Nodes see the same change within moments; what comes so much later is said again.
const APART: SignedDuration = SignedDuration::from_mins(1);

/// Tells, as the node `node`, unless another one just did.
pub async fn publish(client: &kube::Client, node: &str, reason: &str, note: String, regarding: ObjectReference) -> Result<(), kube::Error> {
    let regarding = with_uid(client, regarding).await;
    let now = Timestamp::now();
    let name = name(&regarding, reason, &note);
    let api: Api<Event> = Api::namespaced(client.clone(), regarding.namespace.as_deref().unwrap_or("default"));
    let event = event(name.clone(), node, reason, note, regarding, now);
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => return other.map(drop),
    }
    // Nodes may write events but not read them: a patch that changes nothing answers with what is there.
    let there = api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({}))).await?;
    let Some(patch) = again(&there, now) else {
        return Ok(());
    };
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        // Another node was quicker to say it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// The object's UID, by which `kubectl describe` finds its Events. Without one, if it cannot be had: telling matters more. By a list
/// of one, as agents may list what they watch, and need not be allowed to get it.
async fn with_uid(client: &kube::Client, regarding: ObjectReference) -> ObjectReference {
    let (Some(kind), Some(version), Some(name)) = (&regarding.kind, &regarding.api_version, &regarding.name) else {
        return regarding;
    };
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), regarding.namespace.as_deref().unwrap_or("default"), &resource);
    let found = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await;
    let uid = found.ok().and_then(|list| list.items.into_iter().find(|o| o.metadata.name.as_ref() == Some(name))?.metadata.uid);
    ObjectReference { uid, ..regarding }
}

fn event(name: String, node: &str, reason: &str, note: String, regarding: ObjectReference, now: Timestamp) -> Event {
    Event {
        action: Some("Refuse".into()),
        reason: Some(reason.into()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        metadata: ObjectMeta { name: Some(name), namespace: regarding.namespace.clone(), ..ObjectMeta::default() },
        regarding: Some(regarding),
        reporting_controller: Some("xebec-agent".into()),
        reporting_instance: Some(node.into()),
        type_: Some("Warning".into()),
        ..Event::default()
    }
}

/// The same on every node, of every build: FNV-1a over what is said of which object.
fn name(regarding: &ObjectReference, reason: &str, note: &str) -> String {
    let object = regarding.name.as_deref().unwrap_or_default();
    let told =
        [regarding.kind.as_deref(), regarding.namespace.as_deref(), Some(object), regarding.uid.as_deref(), Some(reason), Some(note)];
    let bytes = told.iter().flat_map(|text| text.unwrap_or_default().bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{object}.{hash:016x}")
}

/// What counts an Event up that is there; none if it has only just been told.
fn again(there: &Event, now: Timestamp) -> Option<Value> {
    let last = there.series.as_ref().map(|s| s.last_observed_time.0).or(there.event_time.as_ref().map(|t| t.0));
    if last.is_some_and(|last| now.duration_since(last) < APART) {
        return None;
    }
    let count = there.series.as_ref().map_or(1, |series| series.count) + 1;
    Some(json!({
        "metadata": {"resourceVersion": there.metadata.resource_version},
        "series": {"count": count, "lastObservedTime": MicroTime(now)},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::events::v1::EventSeries;

    fn service(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Service".into()),
            namespace: Some("ns".into()),
            name: Some(name.into()),
            uid: Some("1".into()),
            ..ObjectReference::default()
        }
    }

    #[test]
    fn every_node_gives_the_same_name_to_the_same_and_another_to_anything_else() {
        let of = name(&service("a"), "Reason", "note");
        // Nodes of other versions give it too: it must never change.
        assert_eq!(of, "a.19f47cce4bd01d51");
        let other = [
            name(&service("b"), "Reason", "note"),
            name(&ObjectReference { uid: Some("2".into()), ..service("a") }, "Reason", "note"),
            name(&ObjectReference { kind: Some("EndpointSlice".into()), ..service("a") }, "Reason", "note"),
            name(&service("a"), "Reason2", "note"),
            name(&service("a"), "Reason", "note2"),
            name(&service("a"), "Reasonn", "ote"),
        ];
        assert!(!other.contains(&of), "{other:?}");
    }

    #[test]
    fn what_another_node_has_just_told_is_left_and_what_comes_later_is_counted_up() {
        let told = Timestamp::from_second(1_000_000).expect("a time");
        let mut there = event("a.1".into(), "node-1", "Reason", "note".into(), service("a"), told);
        there.metadata.resource_version = Some("7".into());
        assert_eq!(again(&there, told), None);
        assert_eq!(again(&there, told + SignedDuration::from_secs(59)), None);
        // Another node's clock goes after this one's.
        assert_eq!(again(&there, told - SignedDuration::from_secs(30)), None);
        let later = told + APART;
        let patch = again(&there, later).expect("counted up");
        assert_eq!((&patch["series"]["count"], &patch["metadata"]["resourceVersion"]), (&json!(2), &json!("7")));
        there.series = Some(EventSeries { count: 2, last_observed_time: MicroTime(later) });
        assert_eq!(again(&there, later + SignedDuration::from_secs(1)), None);
        assert_eq!(again(&there, later + APART).expect("counted up")["series"]["count"], json!(3));
    }
}
