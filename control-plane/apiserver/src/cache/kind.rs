//! The live objects of one kind, its recent events, and those who watch.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::sync::mpsc;
use xebec_api::resource::Resource;
use xebec_store::Revision;

use super::entry::{CacheEvent, Entry};

/// Events always kept for resuming watchers.
const RING: usize = 512;
/// Events are kept longer while younger than this, as upstream's watch cache does,
const RING_AGE: Duration = Duration::from_secs(75);
/// but never more than so many.
const RING_MAX: usize = 16_384;
/// Events a watcher may lag behind before it is cut off.
const QUEUE: usize = 1024;

/// The cache of one storage prefix.
pub struct KindCache {
    /// The row in whose version objects are stored.
    pub resource: Arc<Resource>,
    state: RwLock<State>,
    watchers: AtomicUsize,
}

struct State {
    objects: BTreeMap<Box<str>, Arc<Entry>>,
    ring: VecDeque<(Instant, Arc<CacheEvent>)>,
    /// Every event after this revision is in `ring`.
    complete_after: Revision,
    /// Revision of the last event applied.
    revision: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    scope: WatchScope,
    queue: mpsc::Sender<Arc<CacheEvent>>,
}

/// The objects a watcher is told of, before selectors.
#[derive(Debug, Clone, Default)]
pub struct WatchScope {
    /// Empty: all namespaces.
    pub namespace: String,
    /// Empty: all names.
    pub name: String,
}

impl WatchScope {
    pub fn holds(&self, key: &str) -> bool {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        (self.namespace.is_empty() || self.namespace == namespace) && (self.name.is_empty() || self.name == name)
    }
}

/// Where a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the present objects.
    Present,
    /// With the events after a revision.
    After(Revision),
}

/// A running watch.
pub struct Subscription {
    /// Present objects, for [`Start::Present`].
    pub initial: Vec<Arc<Entry>>,
    /// The revision `initial` reflects.
    pub revision: Revision,
    /// Past events, for [`Start::After`].
    pub backlog: Vec<Arc<CacheEvent>>,
    /// What comes; closed when the watcher was cut off.
    pub events: mpsc::Receiver<Arc<CacheEvent>>,
}

/// The revision asked for is older than what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: Revision,
}

impl KindCache {
    pub(super) fn new(resource: Arc<Resource>, objects: Vec<Entry>, revision: Revision) -> Self {
        let objects = objects.into_iter().map(|entry| (entry.key.clone(), Arc::new(entry))).collect();
        let state = State { objects, ring: VecDeque::new(), complete_after: revision, revision, watchers: Vec::new() };
        KindCache { resource, state: RwLock::new(state), watchers: AtomicUsize::new(0) }
    }

    /// The object at `NAMESPACE/NAME` or `NAME`.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Open watches.
    pub fn watcher_count(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Objects of a namespace (empty: all), in key order, with the revision of the last change among all of the kind.
    pub fn snapshot(&self, namespace: &str) -> (Vec<Arc<Entry>>, Revision) {
        let state = self.state.read();
        (state.select(namespace), state.revision)
    }

    /// Revision of the last change of any object of the kind.
    pub fn last_change(&self) -> Revision {
        self.state.read().revision
    }

    /// Starts a watch; nothing is lost or repeated between what it begins with and its events.
    pub fn subscribe(&self, scope: WatchScope, start: Start) -> Result<Subscription, TooOld> {
        let mut state = self.state.write();
        let (initial, backlog) = match start {
            Start::Present if scope.name.is_empty() => (state.select(&scope.namespace), Vec::new()),
            Start::Present => {
                let all = state.select(&scope.namespace);
                (all.into_iter().filter(|entry| scope.holds(&entry.key)).collect(), Vec::new())
            }
            Start::After(revision) => {
                if revision < state.complete_after {
                    return Err(TooOld { oldest: state.complete_after });
                }
                let first = state.ring.partition_point(|(_, event)| event.revision <= revision);
                let backlog = state.ring.range(first..).map(|(_, event)| event.clone()).filter(|event| scope.holds(event.key())).collect();
                (Vec::new(), backlog)
            }
        };
        let (queue, events) = mpsc::channel(QUEUE);
        state.watchers.push(Watcher { scope, queue });
        self.watchers.store(state.watchers.len(), Ordering::Relaxed);
        Ok(Subscription { initial, revision: state.revision, backlog, events })
    }

    /// Applies what one transaction did to this kind: (key, new entry or none).
    pub(super) fn apply(&self, revision: Revision, changes: Vec<(String, Option<Entry>)>) {
        let now = Instant::now();
        let mut state = self.state.write();
        for (key, entry) in changes {
            let current = entry.map(Arc::new);
            let previous = match &current {
                Some(entry) => state.objects.insert(entry.key.clone(), entry.clone()),
                None => state.objects.remove(key.as_str()),
            };
            if previous.is_none() && current.is_none() {
                continue;
            }
            let event = Arc::new(CacheEvent { revision, previous, current });
            let watchers = state.watchers.len();
            // A full queue is a watcher that does not keep up: it is dropped, its stream ends, it resumes by revision.
            state.watchers.retain(|watcher| {
                if watcher.queue.is_closed() {
                    return false;
                }
                !watcher.scope.holds(event.key()) || watcher.queue.try_send(event.clone()).is_ok()
            });
            if state.watchers.len() != watchers {
                self.watchers.store(state.watchers.len(), Ordering::Relaxed);
            }
            state.ring.push_back((now, event));
        }
        state.revision = state.revision.max(revision);
        while state.ring.len() > RING_MAX
            || (state.ring.len() > RING && state.ring.front().is_some_and(|(at, _)| now.duration_since(*at) > RING_AGE))
        {
            if let Some((_, event)) = state.ring.pop_front() {
                state.complete_after = event.revision;
            }
        }
    }

    /// Starts over after events were lost: watchers are cut off.
    pub(super) fn reset(&self, objects: Vec<Entry>, revision: Revision) {
        let mut state = self.state.write();
        state.objects = objects.into_iter().map(|entry| (entry.key.clone(), Arc::new(entry))).collect();
        state.ring.clear();
        state.complete_after = revision;
        state.revision = revision;
        state.watchers.clear();
        self.watchers.store(0, Ordering::Relaxed);
    }
}

impl State {
    fn select(&self, namespace: &str) -> Vec<Arc<Entry>> {
        if namespace.is_empty() {
            return self.objects.values().cloned().collect();
        }
        let prefix = format!("{namespace}/");
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        self.objects.range::<str, _>(from).take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, entry)| entry.clone()).collect()
    }
}
