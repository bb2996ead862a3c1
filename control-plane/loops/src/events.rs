//! Events about objects: folded when they repeat, limited when they flood, written in the background.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::api::core::v1::{Event, EventSeries, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock;

/// Normal or Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something a user may want to act on.
    Warning,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Which of the two event APIs' fields are filled.
#[derive(Clone, Debug)]
enum Style {
    /// `source`, `firstTimestamp`, `lastTimestamp`, `count`.
    Core { component: &'static str },
    /// `eventTime`, `action`, `reportingController`, `reportingInstance`, `series` (KEP-383).
    New { controller: &'static str, instance: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    uid: String,
    namespace: String,
    name: String,
    kind: String,
    type_: EventType,
    reason: String,
    action: String,
    message: String,
}

struct Request {
    about: ObjectReference,
    said: Said,
}

/// Writes events; cheap to clone, never blocks the caller.
#[derive(Clone)]
pub struct Recorder {
    send: mpsc::Sender<Request>,
}

/// Events that wait for the API server; more are dropped, as upstream's broadcaster does.
const BACKLOG: usize = 1000;
/// Different events remembered for folding.
const REMEMBERED: usize = 4096;
/// Events one object may cause at once, and seconds until it may cause one more.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

impl Recorder {
    /// A recorder of controllers: fills the fields of `core/v1` events.
    pub fn core(client: kube::Client, component: &'static str) -> Self {
        Self::start(client, Style::Core { component })
    }

    /// A recorder that fills the fields of `events.k8s.io/v1`, as the scheduler does.
    pub fn new_style(client: kube::Client, controller: &'static str, instance: String) -> Self {
        Self::start(client, Style::New { controller, instance })
    }

    fn start(client: kube::Client, style: Style) -> Self {
        let (send, receive) = mpsc::channel(BACKLOG);
        tokio::spawn(write_events(client, style, receive));
        Recorder { send }
    }

    /// Says something about an object.
    pub fn event<K: Resource<DynamicType = ()>>(&self, about: &K, type_: EventType, reason: &str, message: impl Into<String>) {
        self.event_on(reference(about), type_, reason, "", message);
    }

    /// Says something about an object, with the action that was taken.
    pub fn event_on(&self, about: ObjectReference, type_: EventType, reason: &str, action: &str, message: impl Into<String>) {
        let said = Said {
            uid: about.uid.clone().unwrap_or_default(),
            namespace: about.namespace.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            kind: about.kind.clone().unwrap_or_default(),
            type_,
            reason: reason.to_owned(),
            action: action.to_owned(),
            message: truncate(message.into()),
        };
        if self.send.try_send(Request { about, said }).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

/// What an event points at.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// The API allows 1024 characters in a note.
fn truncate(mut message: String) -> String {
    if message.len() > 1024 {
        let end = (0..=1021).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

struct Written {
    event: String,
    count: i32,
}

async fn write_events(client: kube::Client, style: Style, mut receive: mpsc::Receiver<Request>) {
    let mut written: HashMap<Said, Written> = HashMap::new();
    let mut order: VecDeque<Said> = VecDeque::new();
    let mut buckets: HashMap<String, (f64, Instant)> = HashMap::new();
    while let Some(request) = receive.recv().await {
        if !take_token(&mut buckets, &request.said.uid, Instant::now()) {
            continue;
        }
        let namespace = match request.said.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        if let Some(old) = written.get_mut(&request.said) {
            old.count += 1;
            let patch = repeat_patch(&style, old.count);
            if api.patch(&old.event, &PatchParams::default(), &Patch::Strategic(patch)).await.is_ok() {
                continue;
            }
            written.remove(&request.said);
        }
        let event = compose(&style, &request, namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(event) => {
                let name = event.metadata.name.unwrap_or_default();
                order.push_back(request.said.clone());
                written.insert(request.said, Written { event: name, count: 1 });
                if order.len() > REMEMBERED
                    && let Some(oldest) = order.pop_front()
                {
                    written.remove(&oldest);
                }
            }
            // Events are a courtesy: a namespace on its way out refuses them, and that is fine.
            Err(error) => tracing::debug!(%error, "event not written"),
        }
    }
}

fn take_token(buckets: &mut HashMap<String, (f64, Instant)>, uid: &str, now: Instant) -> bool {
    if buckets.len() > REMEMBERED {
        buckets.retain(|_, (_, last)| now.duration_since(*last).as_secs_f64() < REFILL_SECONDS);
    }
    let (tokens, last) = buckets.entry(uid.to_owned()).or_insert((BURST, now));
    *tokens = (*tokens + now.duration_since(*last).as_secs_f64() / REFILL_SECONDS).min(BURST);
    *last = now;
    if *tokens < 1.0 {
        return false;
    }
    *tokens -= 1.0;
    true
}

fn repeat_patch(style: &Style, count: i32) -> serde_json::Value {
    match style {
        Style::Core { .. } => serde_json::json!({ "count": count, "lastTimestamp": clock::now() }),
        Style::New { .. } => {
            serde_json::json!({ "series": EventSeries { count: Some(count), last_observed_time: Some(clock::now_micro()) } })
        }
    }
}

fn compose(style: &Style, request: &Request, namespace: &str) -> Event {
    let now = clock::now_micro();
    let said = &request.said;
    let mut event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", said.name, now.0.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: request.about.clone(),
        type_: Some(said.type_.name().to_owned()),
        reason: Some(said.reason.clone()),
        message: Some(said.message.clone()),
        ..Default::default()
    };
    match style {
        Style::Core { component } => {
            event.source = Some(EventSource { component: Some((*component).to_owned()), host: None });
            event.reporting_component = Some((*component).to_owned());
            event.first_timestamp = Some(clock::now());
            event.last_timestamp = Some(clock::now());
            event.count = Some(1);
        }
        Style::New { controller, instance } => {
            event.reporting_component = Some((*controller).to_owned());
            event.reporting_instance = Some(instance.clone());
            event.action = Some(if said.action.is_empty() { said.reason.clone() } else { said.action.clone() });
            event.event_time = Some(now);
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_object_cannot_flood() {
        let mut buckets = HashMap::new();
        let start = Instant::now();
        let allowed = (0..100).filter(|_| take_token(&mut buckets, "a", start)).count();
        assert_eq!(allowed, 25);
        assert!(take_token(&mut buckets, "b", start));
        assert!(!take_token(&mut buckets, "a", start + Duration::from_secs(299)));
        assert!(take_token(&mut buckets, "a", start + Duration::from_secs(301)));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let cut = truncate("é".repeat(1000));
        assert!(cut.len() <= 1024 && cut.ends_with("..."));
        assert_eq!(truncate("short".into()), "short");
    }
}
