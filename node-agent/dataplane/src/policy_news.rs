//! What authors of policies and Services are told: a condition in the status of a ClusterNetworkPolicy that says what of it
//! is not understood, and an Event for a policy or a Service that does not fit into the maps, or whose address is another's, and
//! for a pod whose annotations of bandwidth are none.
//!
//! Every node would write the same condition, so it is written only where it is not there yet.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use xebec_ebpf_abi::map;

use crate::compile::cluster::{ClusterNetworkPolicy, ClusterPolicy};
use crate::compile::input::{Key, PodIn};
use crate::compile::services::complaints::{self, Subject};
use crate::shared_event;

/// Type of the condition.
const CONDITION: &str = "xebec.dev/Accepted";

/// Services that are told of in one round: thousands may be without room at once, and none helps more than the first.
const AT_ONCE: usize = 20;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A condition for a ClusterNetworkPolicy.
    Condition(String, Value),
    /// There is no room for this policy.
    Refused(Key),
    /// Something is wrong with this Service, or one of its EndpointSlices.
    Service(Subject, String),
    /// Something is wrong with this pod.
    Pod(PodSubject, String),
    /// The node cannot hold what it shall: this map is too small, as large as it may be.
    Over(&'static str),
}

/// A pod, and its UID.
pub type PodSubject = (Key, String);

/// What has been told and what has not.
#[derive(Debug, Default)]
pub struct PolicyNews {
    conditions: BTreeMap<String, Value>,
    refused: BTreeSet<Key>,
    services: BTreeSet<Subject>,
    /// What is wrong with pods of this node, and whether that has been told.
    pods: BTreeMap<PodSubject, (String, bool)>,
    over: BTreeSet<&'static str>,
}

impl PolicyNews {
    /// A ClusterNetworkPolicy as watched, and what was understood of it.
    pub fn seen(&mut self, name: &str, object: Option<&ClusterNetworkPolicy>, policy: Option<&ClusterPolicy>) {
        self.conditions.remove(name);
        let Some(object) = object else {
            return;
        };
        let wanted = condition(object.metadata.generation.unwrap_or(0), policy);
        let mut there = object.status["conditions"].as_array().into_iter().flatten();
        let same = |c: &Value| wanted.as_object().is_some_and(|w| w.iter().all(|(k, v)| c.get(k) == Some(v)));
        if !there.any(same) {
            self.conditions.insert(name.to_owned(), wanted);
        }
    }

    /// A pod of this node as watched; none when it is gone, or another node's.
    pub fn seen_pod(&mut self, key: &Key, pod: Option<&PodIn>) {
        let now = pod.and_then(|p| Some(((key.clone(), p.uid.clone()), p.bandwidth_complaint.as_deref()?)));
        self.pods.retain(|subject, (text, _)| subject.0 != *key || now.as_ref().is_some_and(|(s, t)| s == subject && t == text));
        if let Some((subject, text)) = now {
            self.pods.entry(subject).or_insert_with(|| (text.to_owned(), false));
        }
    }

    /// What is to be told now, with the policies there is no room for, what is wrong with Services, and maps that are too small.
    pub fn take(&mut self, refused: BTreeSet<Key>, services: BTreeMap<Subject, String>, over: BTreeSet<&'static str>) -> Vec<News> {
        let conditions = std::mem::take(&mut self.conditions).into_iter().map(|(name, condition)| News::Condition(name, condition));
        let new = refused.difference(&self.refused).cloned().map(News::Refused);
        let mut news: Vec<News> = conditions.chain(new).collect();
        self.refused = refused;
        let known = std::mem::replace(&mut self.services, services.keys().cloned().collect());
        let new = services.into_iter().filter(|(subject, _)| !known.contains(subject)).take(AT_ONCE);
        news.extend(new.map(|(subject, why)| News::Service(subject, why)));
        for (subject, (why, told)) in self.pods.iter_mut().filter(|(_, (_, told))| !told).take(AT_ONCE) {
            *told = true;
            news.push(News::Pod(subject.clone(), why.clone()));
        }
        news.extend(over.difference(&self.over).map(|name| News::Over(name)));
        self.over = over;
        news
    }
}

/// The condition without its time.
fn condition(generation: i64, policy: Option<&ClusterPolicy>) -> Value {
    let unknown = ["its tier or subject is not understood; it selects no pod".to_owned()];
    let problems = policy.map_or(&unknown[..], |p| p.problems.as_slice());
    let (status, reason) = if problems.is_empty() { ("True", "Accepted") } else { ("False", "Unsupported") };
    json!({"type": CONDITION, "status": status, "reason": reason, "message": problems.join("; "), "observedGeneration": generation})
}

/// A refusal in words for an operator.
pub fn refusal(key: &Key) -> String {
    format!(
        "policy {key} has more rules than there is room for: pods it selects on this node are isolated, and it allows them nothing (use fewer peers and wider port ranges, or start the agent with --map-entries POLICY=N)"
    )
}

/// A map that is too small, in words for an operator.
pub fn over(name: &str) -> String {
    // Programs write these: they are told of when three quarters are in use.
    let then = match name {
        map::FLOWS | map::NAT => Some("connections that begin are dropped"),
        map::COUNTED => Some("connections to Services that give them to the backend with the fewest are not counted"),
        map::AFFINITY => Some("clients that have not asked for longest lose their backend"),
        map::SOCK_REVERSE => Some("sockets that have not asked for longest are told the address of a backend as their peer"),
        map::GIVEN => Some("connected UDP sockets stay with a backend that goes"),
        _ => None,
    };
    if let Some(then) = then {
        return format!(
            "the map {name} is nearly full and as large as it may be: when it is full, {then} on this node (start the agent with a higher --max-map-entries)"
        );
    }
    format!(
        "the map {name} is full and as large as it may be: what does not fit is not in force on this node (start the agent with a higher --max-map-entries, or without a size for the map)"
    )
}

/// Tells; what fails is told again when the object is seen again.
pub async fn tell(client: kube::Client, node: String, news: Vec<News>) {
    let reporter = Reporter { controller: "xebec-agent".into(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    for one in news {
        let (what, told) = match one {
            News::Condition(name, mut condition) => {
                condition["lastTransitionTime"] = json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
                let patch = json!({
                    "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "status": {"conditions": [condition]},
                });
                let api: Api<ClusterNetworkPolicy> = Api::all(client.clone());
                let told = api.patch_status(&name, &PatchParams::apply("xebec-agent").force(), &Patch::Apply(patch)).await;
                (name, told.map(drop))
            }
            News::Refused(key) => {
                tracing::error!("{}", refusal(&key));
                let told = recorder.publish(&event("PolicyDoesNotFit", refusal(&key)), &reference(&key)).await;
                (key.to_string(), told)
            }
            News::Service((key, reason), why) => {
                tracing::error!(service = %key, "{why}");
                let regarding = subject_reference(&key, reason);
                let told = if complaints::is_nodes_own(reason) {
                    recorder.publish(&event(reason, why), &regarding).await
                } else {
                    shared_event::publish(&client, &node, reason, why, regarding).await
                };
                (key.to_string(), told)
            }
            News::Pod((key, uid), why) => {
                tracing::error!(pod = %key, "{why}");
                let told = recorder.publish(&event("InvalidBandwidth", why), &pod_reference(&key, uid)).await;
                (key.to_string(), told)
            }
            News::Over(name) => {
                tracing::error!("{}", over(name));
                let told = recorder.publish(&event("MapFull", over(name)), &node_reference(&node)).await;
                (name.to_owned(), told)
            }
        };
        if let Err(error) = told {
            tracing::warn!(what, %error, "the author of a policy, a Service or a pod cannot be told about it");
        }
    }
}

fn event(reason: &str, note: String) -> Event {
    Event { type_: EventType::Warning, reason: reason.into(), note: Some(note), action: "Refuse".into(), secondary: None }
}

fn service_reference(key: &Key) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        ..ObjectReference::default()
    }
}

/// What a complaint is about.
fn subject_reference(key: &Key, reason: &str) -> ObjectReference {
    let mut reference = service_reference(key);
    if reason == complaints::SLICE_ANNOTATION_INVALID {
        reference.api_version = Some("discovery.k8s.io/v1".into());
        reference.kind = Some("EndpointSlice".into());
    }
    reference
}

fn pod_reference(key: &Key, uid: String) -> ObjectReference {
    ObjectReference { kind: Some("Pod".into()), uid: Some(uid), ..service_reference(key) }
}

fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        // By which `kubectl describe node` finds what nodes tell of themselves.
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

fn reference(key: &Key) -> ObjectReference {
    let (api_version, kind) = match key.namespace.is_empty() {
        true => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        false => ("networking.k8s.io/v1", "NetworkPolicy"),
    };
    ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        name: Some(key.name.clone()),
        namespace: (!key.namespace.is_empty()).then(|| key.namespace.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::cluster;

    #[test]
    fn a_condition_is_told_until_it_is_there() {
        let mut object = ClusterNetworkPolicy::default();
        object.metadata.generation = Some(3);
        object.spec = json!({
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": "Accept", "to": [{"domainNames": ["example.com"]}]}],
        });
        let policy = cluster::policy(&object);
        let mut news = PolicyNews::default();
        news.seen("p", Some(&object), policy.as_ref());
        let told = news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let [News::Condition(name, condition)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((name.as_str(), &condition["status"], &condition["reason"]), ("p", &json!("False"), &json!("Unsupported")));
        assert!(condition["message"].as_str().expect("words").contains("domainNames are not supported"));
        assert_eq!(news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new()), vec![], "once");
        let mut there = condition.clone();
        there["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        object.status = json!({"conditions": [{"type": "other"}, there]});
        news.seen("p", Some(&object), policy.as_ref());
        assert_eq!(news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new()), vec![], "another node has told it");
        object.metadata.generation = Some(4);
        news.seen("p", Some(&object), policy.as_ref());
        assert_eq!(news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new()).len(), 1, "of a newer generation it says nothing");
    }

    #[test]
    fn a_pod_with_a_wrong_annotation_is_told_of_once_and_again_when_it_is_another_or_otherwise_wrong() {
        let key = Key::new("ns", "p");
        let pod = |uid: &str, text: Option<&str>| PodIn { uid: uid.into(), bandwidth_complaint: text.map(Into::into), ..PodIn::default() };
        let mut news = PolicyNews::default();
        let mut told = |seen: Option<PodIn>| {
            news.seen_pod(&key, seen.as_ref());
            news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new())
        };
        let of = |uid: &str, text: &str| vec![News::Pod((Key::new("ns", "p"), uid.into()), text.into())];
        assert_eq!(told(Some(pod("1", None))), vec![]);
        assert_eq!(told(Some(pod("1", Some("a")))), of("1", "a"));
        assert_eq!(told(Some(pod("1", Some("a")))), vec![], "once");
        assert_eq!(told(Some(pod("1", Some("b")))), of("1", "b"), "otherwise wrong");
        assert_eq!(told(Some(pod("2", Some("b")))), of("2", "b"), "another pod of the name");
        assert_eq!(told(None), vec![]);
        assert_eq!(told(Some(pod("2", Some("b")))), of("2", "b"));
        assert_eq!(told(Some(pod("2", None))), vec![], "mended");
    }

    #[test]
    fn a_refusal_is_told_when_it_begins() {
        let key = Key::new("default", "large");
        let mut news = PolicyNews::default();
        assert_eq!(news.take(BTreeSet::from([key.clone()]), BTreeMap::new(), BTreeSet::new()), vec![News::Refused(key.clone())]);
        assert_eq!(news.take(BTreeSet::from([key.clone()]), BTreeMap::new(), BTreeSet::new()), vec![]);
        assert_eq!(news.take(BTreeSet::new(), BTreeMap::new(), BTreeSet::new()), vec![]);
        assert_eq!(news.take(BTreeSet::from([key.clone()]), BTreeMap::new(), BTreeSet::new()), vec![News::Refused(key)]);
    }

    #[test]
    fn what_is_wrong_with_services_is_told_when_it_begins_and_not_all_at_once() {
        let mut news = PolicyNews::default();
        let many = |count: usize| {
            (0..count).map(|n| ((Key::new("ns", &format!("s{n:03}")), "NoRoom"), "no room".to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            news.take(BTreeSet::new(), many(1), BTreeSet::new()),
            vec![News::Service((Key::new("ns", "s000"), "NoRoom"), "no room".into())]
        );
        assert_eq!(news.take(BTreeSet::new(), many(1), BTreeSet::new()), vec![]);
        assert_eq!(news.take(BTreeSet::new(), many(500), BTreeSet::new()).len(), AT_ONCE);
        assert_eq!(news.take(BTreeSet::new(), many(0), BTreeSet::new()), vec![]);
        assert_eq!(news.take(BTreeSet::new(), many(2), BTreeSet::new()).len(), 2, "it began again");
    }
    #[test]
    fn a_map_that_is_too_small_is_told_of_when_it_begins() {
        let mut news = PolicyNews::default();
        let mut told = |over: &[&'static str]| news.take(BTreeSet::new(), BTreeMap::new(), over.iter().copied().collect());
        assert_eq!(told(&["IPCACHE"]), vec![News::Over("IPCACHE")]);
        assert_eq!(told(&["IPCACHE", "ENDPOINTS"]), vec![News::Over("ENDPOINTS")]);
        assert_eq!(told(&[]), vec![]);
        assert_eq!(told(&["IPCACHE"]), vec![News::Over("IPCACHE")]);
    }
}
