//! Events as kubelet writes them: the same event again raises a count instead of adding an object.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::spec::{self, Kind};

const COMPONENT: &str = "kubelet";
/// Events waiting for the API; beyond it they are dropped, for an event never holds up a pod.
const QUEUE: usize = 1000;
/// A source may write so many events about one object at once, then one every five minutes.
const BURST: f64 = 25.0;
const REFILL: SignedDuration = SignedDuration::from_secs(300);
/// Different messages of one reason about one object within the interval become one event.
const SIMILAR_LIMIT: usize = 10;
const SIMILAR_INTERVAL: SignedDuration = SignedDuration::from_secs(600);
/// Objects remembered for counting.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Normal,
    Warning,
}

/// What happened to a pod or one of its containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub level: Level,
    pub reason: &'static str,
    pub message: String,
    object: ObjectReference,
    at: Timestamp,
}

/// Hands events to a task that writes them. Cheap to clone, never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
}

impl Recorder {
    /// Starts the writing task; it ends when the last recorder is dropped.
    pub fn start(client: kube::Client, node_name: String) -> Recorder {
        let (queue, mut notes) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut correlator = Correlator::default();
            while let Some(note) = notes.recv().await {
                if let Some(write) = correlator.correlate(note, &node_name)
                    && let Err(error) = send(&client, &mut correlator, write).await
                {
                    tracing::debug!(%error, "event not written");
                }
            }
        });
        Recorder { queue }
    }

    pub fn pod(&self, pod: &Pod, level: Level, reason: &'static str, message: impl Into<String>) {
        self.note(pod, None, level, reason, message.into());
    }

    pub fn container(&self, pod: &Pod, kind: Kind, name: &str, level: Level, reason: &'static str, message: impl Into<String>) {
        self.note(pod, Some(kind.field_path(name)), level, reason, message.into());
    }

    fn note(&self, pod: &Pod, field_path: Option<String>, level: Level, reason: &'static str, message: String) {
        let object = ObjectReference {
            kind: Some("Pod".into()),
            api_version: Some("v1".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path,
        };
        let message = truncate(message);
        tracing::debug!(pod = %spec::full_name(pod), reason, %message, "event");
        if self.queue.try_send(Note { level, reason, message, object, at: Timestamp::now() }).is_err() {
            tracing::warn!(reason, "event dropped: the API server does not take events fast enough");
        }
    }
}

/// The API takes 1024 characters.
fn truncate(mut message: String) -> String {
    if message.len() > 1000 {
        let mut end = 1000;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

async fn send(client: &kube::Client, correlator: &mut Correlator, write: Write) -> Result<(), kube::Error> {
    let namespace = write.event.metadata.namespace.clone().unwrap_or_else(|| "default".into());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let name = write.event.metadata.name.clone().unwrap_or_default();
    if write.update {
        let patch = json!({ "count": write.event.count, "lastTimestamp": write.event.last_timestamp, "message": write.event.message });
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(()),
            // Expired in the meantime: written anew below.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(e) => return Err(e),
        }
    }
    match api.create(&PostParams::default(), &write.event).await {
        Ok(_) => Ok(()),
        Err(e) => {
            correlator.forget(&write.key);
            Err(e)
        }
    }
}

struct Write {
    key: Key,
    event: Event,
    /// The event is in the API already: only its count changes.
    update: bool,
}

type Key = (ObjectKey, &'static str, String);
type ObjectKey = (Option<String>, Option<String>, Option<String>);

struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// Counting, aggregation and the rate limit: values in, values out.
#[derive(Default)]
struct Correlator {
    seen: HashMap<Key, Seen>,
    similar: HashMap<(ObjectKey, &'static str), (Timestamp, Vec<String>)>,
    buckets: HashMap<Option<String>, Bucket>,
}

impl Correlator {
    fn correlate(&mut self, note: Note, node: &str) -> Option<Write> {
        self.bound();
        let object_key = (note.object.namespace.clone(), note.object.uid.clone(), note.object.field_path.clone());
        let message = self.aggregate(&object_key, &note);
        if !self.allow(note.object.uid.clone(), note.at) {
            return None;
        }
        let key = (object_key, note.reason, message.clone());
        let update = self.seen.contains_key(&key);
        let seen = self.seen.entry(key.clone()).or_insert_with(|| Seen {
            name: event_name(note.object.name.as_deref().unwrap_or(""), note.at),
            count: 0,
            first: note.at,
        });
        seen.count += 1;
        let event = Event {
            metadata: ObjectMeta { name: Some(seen.name.clone()), namespace: note.object.namespace.clone(), ..Default::default() },
            involved_object: note.object,
            reason: Some(note.reason.into()),
            message: Some(message),
            type_: Some(match note.level {
                Level::Normal => "Normal".into(),
                Level::Warning => "Warning".into(),
            }),
            source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(node.into()) }),
            reporting_component: Some(COMPONENT.into()),
            reporting_instance: Some(node.into()),
            first_timestamp: Some(Time(seen.first)),
            last_timestamp: Some(Time(note.at)),
            count: Some(seen.count),
            ..Default::default()
        };
        Some(Write { key, event, update })
    }

    fn aggregate(&mut self, object: &ObjectKey, note: &Note) -> String {
        let entry = self.similar.entry((object.clone(), note.reason)).or_insert((note.at, Vec::new()));
        if note.at.duration_since(entry.0) > SIMILAR_INTERVAL {
            entry.1.clear();
        }
        entry.0 = note.at;
        if !entry.1.contains(&note.message) {
            entry.1.push(note.message.clone());
        }
        if entry.1.len() < SIMILAR_LIMIT {
            return note.message.clone();
        }
        // One key for all of them from here on.
        entry.1.truncate(SIMILAR_LIMIT);
        format!("(combined from similar events): {}", entry.1[0])
    }

    fn allow(&mut self, uid: Option<String>, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(uid).or_insert(Bucket { tokens: BURST, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + gained.max(0.0)).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn forget(&mut self, key: &Key) {
        self.seen.remove(key);
    }

    fn bound(&mut self) {
        if self.seen.len() > REMEMBERED || self.buckets.len() > REMEMBERED || self.similar.len() > REMEMBERED {
            self.seen.clear();
            self.buckets.clear();
            self.similar.clear();
        }
    }
}

/// Upstream's form: the object's name and the time in hexadecimal nanoseconds; the counter keeps
/// two events of one instant apart.
fn event_name(object: &str, at: Timestamp) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = at.as_nanosecond() as u64 + COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{object}.{unique:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str, second: i64) -> Note {
        Note {
            level: Level::Warning,
            reason: "BackOff",
            message: message.into(),
            object: ObjectReference { name: Some("p".into()), namespace: Some("n".into()), uid: Some("u".into()), ..Default::default() },
            at: Timestamp::from_second(1_000_000 + second).unwrap(),
        }
    }

    #[test]
    fn the_same_event_is_counted() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(note("m", 0), "node").unwrap();
        let second = correlator.correlate(note("m", 5), "node").unwrap();
        assert!(!first.update && second.update);
        assert_eq!((first.event.count, second.event.count), (Some(1), Some(2)));
        assert_eq!(first.event.metadata.name, second.event.metadata.name);
        assert_eq!(second.event.first_timestamp, first.event.first_timestamp);
        assert!(!correlator.correlate(note("other", 6), "node").unwrap().update);
    }

    #[test]
    fn similar_events_are_combined() {
        let mut correlator = Correlator::default();
        let messages: Vec<String> =
            (0..12).map(|i| correlator.correlate(note(&format!("m{i}"), i), "node").unwrap().event.message.unwrap()).collect();
        assert_eq!(messages[8], "m8");
        assert!(messages[9].starts_with("(combined from similar events): "));
        assert_eq!(messages[9], messages[11]);
    }

    #[test]
    fn a_flood_is_cut_and_recovers() {
        let mut correlator = Correlator::default();
        let passed = (0..100).filter(|_| correlator.correlate(note("m", 0), "node").is_some()).count();
        assert_eq!(passed, 25);
        assert!(correlator.correlate(note("m", 301), "node").is_some());
        assert!(correlator.correlate(note("m", 302), "node").is_none());
    }
}
