//! The live objects of one kind, indexed, fed by a watch and by the answers to own writes.
//!
//! A loop that has just created an object must see it in its next run, or it would create it twice. So the answer to a
//! write is put in the cache at once ([`Cache::observe`]), unless the watch has already gone past it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::meta::{Key, version};

/// What happened to one object; at least one side is there.
pub struct Change<'a, K> {
    /// The object before, if the cache had it.
    pub old: Option<&'a Arc<K>>,
    /// The object now, unless it is gone.
    pub new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The newest version there is.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.or(self.old)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
type IndexFn<K> = fn(&K) -> Vec<String>;

/// All live objects of a kind.
pub struct Cache<K> {
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
    /// The newest version the watch has delivered.
    seen: u64,
    /// Own writes that the watch has not delivered yet.
    ahead: HashMap<Key, u64>,
}

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Cache {
            state: RwLock::new(State { objects: BTreeMap::new(), indexes: HashMap::new(), seen: 0, ahead: HashMap::new() }),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
        }
    }
}

impl<K: Resource> Cache<K> {
    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// Every object, in key order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// Every key.
    pub fn keys(&self) -> Vec<Key> {
        self.state.read().objects.keys().cloned().collect()
    }

    /// The objects of one namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let state = self.state.read();
        state.objects.range(from..).take_while(|(k, _)| k.namespace == namespace).map(|(_, v)| v.clone()).collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index under a name; adding a name again changes nothing.
    pub fn add_index(&self, name: &'static str, values: IndexFn<K>) {
        let mut state = self.state.write();
        if state.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values, keys: HashMap::new() };
        for (key, object) in &state.objects {
            index.insert(key, object);
        }
        state.indexes.insert(name, index);
    }

    /// The objects that the index files under `value`.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let keys = state.indexes.get(name).and_then(|i| i.keys.get(value));
        keys.into_iter().flatten().filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    /// Calls `handler` with every change from now on. Handlers must be quick: they run where the change is seen.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self, so this cannot fail.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// Whether the first list is complete.
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Takes in the API's answer to an own write.
    pub fn observe(&self, object: K) {
        let written = version(object.meta());
        let key = Key::of(&object);
        let object = Arc::new(object);
        let old = {
            let mut state = self.state.write();
            if written <= state.seen || state.objects.get(&key).is_some_and(|o| version(o.meta()) >= written) {
                return;
            }
            state.ahead.insert(key.clone(), written);
            state.insert(key, object.clone())
        };
        self.tell(&Change { old: old.as_ref(), new: Some(&object) });
    }

    /// Takes in that an own delete removed the object with this uid at once.
    pub fn observe_gone(&self, key: &Key, uid: &str) {
        let old = {
            let mut state = self.state.write();
            if state.objects.get(key).is_none_or(|o| o.meta().uid.as_deref() != Some(uid)) {
                return;
            }
            state.remove(key)
        };
        self.tell(&Change { old: old.as_ref(), new: None });
    }

    /// Takes in an added or changed object from the watch.
    pub fn apply(&self, object: K) {
        let v = version(object.meta());
        let key = Key::of(&object);
        let object = Arc::new(object);
        let old = {
            let mut state = self.state.write();
            state.seen = state.seen.max(v);
            if state.ahead.get(&key).is_some_and(|a| *a > v) {
                return;
            }
            state.ahead.remove(&key);
            if state.objects.get(&key).is_some_and(|o| version(o.meta()) == v && v != 0) {
                return;
            }
            state.insert(key, object.clone())
        };
        self.tell(&Change { old: old.as_ref(), new: Some(&object) });
    }

    /// Takes in a deletion from the watch.
    pub fn delete(&self, object: &K) {
        let v = version(object.meta());
        let key = Key::of(object);
        let old = {
            let mut state = self.state.write();
            state.seen = state.seen.max(v);
            if state.ahead.get(&key).is_some_and(|a| *a > v) {
                return;
            }
            state.ahead.remove(&key);
            state.remove(&key)
        };
        if old.is_some() {
            self.tell(&Change { old: old.as_ref(), new: None });
        }
    }

    /// Takes in a whole list; what it lacks is gone, except own writes newer than the list.
    pub fn replace(&self, objects: Vec<K>) {
        let listed = objects.iter().map(|o| version(o.meta())).max().unwrap_or(0);
        let new: BTreeMap<Key, Arc<K>> = objects.into_iter().map(|o| (Key::of(&o), Arc::new(o))).collect();
        let mut changes: Vec<(Option<Arc<K>>, Option<Arc<K>>)> = Vec::new();
        {
            let mut state = self.state.write();
            state.seen = state.seen.max(listed);
            state.ahead.retain(|_, v| *v > listed);
            let gone: Vec<Key> = state.objects.keys().filter(|k| !new.contains_key(*k) && !state.ahead.contains_key(*k)).cloned().collect();
            for key in gone {
                changes.push((state.remove(&key), None));
            }
            for (key, object) in new {
                let have = state.objects.get(&key).map_or(0, |o| version(o.meta()));
                if have == 0 || have < version(object.meta()) {
                    changes.push((state.insert(key, object.clone()), Some(object)));
                }
            }
        }
        for (old, new) in &changes {
            self.tell(&Change { old: old.as_ref(), new: new.as_ref() });
        }
        self.synced.send_replace(true);
    }

    fn tell(&self, change: &Change<'_, K>) {
        for handler in self.handlers.read().iter() {
            handler(change);
        }
    }
}

impl<K: Resource> State<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), object.clone());
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        self.ahead.remove(key);
        for index in self.indexes.values_mut() {
            index.remove(key, &old);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

/// What a watch is poured into.
pub trait Sink<K>: Send + Sync {
    /// A whole list; what it lacks is gone.
    fn replace(&self, objects: Vec<K>);
    /// An added or changed object.
    fn apply(&self, object: K);
    /// A deleted object.
    fn delete(&self, object: &K);
}

impl<K: Resource + Send + Sync> Sink<K> for Cache<K> {
    fn replace(&self, objects: Vec<K>) {
        Cache::replace(self, objects);
    }

    fn apply(&self, object: K) {
        Cache::apply(self, object);
    }

    fn delete(&self, object: &K) {
        Cache::delete(self, object);
    }
}

/// Watches until `cancel` fires and keeps `sink` current. Errors are retried with a growing delay.
pub async fn feed<K, S>(sink: Arc<S>, api: Api<K>, config: watcher::Config, cancel: CancellationToken)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    S: Sink<K>,
{
    const DELAY_START: std::time::Duration = std::time::Duration::from_millis(50);
    const DELAY_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
    let url = api.resource_url().to_owned();
    let mut stream = std::pin::pin!(watcher(api, config));
    let mut delay = DELAY_START;
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.next() => event,
        };
        let Some(event) = event else { return };
        match event.map(|e| e.modify(|o| o.managed_fields_mut().clear())) {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(object),
            Ok(watcher::Event::InitDone) => {
                sink.replace(std::mem::take(&mut listed));
                delay = DELAY_START;
            }
            Ok(watcher::Event::Apply(object)) => {
                sink.apply(object);
                delay = DELAY_START;
            }
            Ok(watcher::Event::Delete(object)) => sink.delete(&object),
            Err(error) => {
                tracing::debug!(url, %error, "watch interrupted");
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(DELAY_LIMIT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, version: u64) -> ConfigMap {
        let mut o = ConfigMap::default();
        o.metadata.namespace = Some("ns".into());
        o.metadata.name = Some(name.into());
        o.metadata.uid = Some(format!("uid-{name}"));
        o.metadata.resource_version = Some(version.to_string());
        o
    }

    fn have(cache: &Cache<ConfigMap>) -> Vec<(String, u64)> {
        cache.list().iter().map(|o| (o.name_any(), version(o.meta()))).collect()
    }

    #[test]
    fn own_writes_are_seen_before_the_watch_delivers_them() {
        let cache = Cache::default();
        cache.replace(vec![object("a", 5)]);
        cache.observe(object("b", 7));
        assert_eq!(have(&cache), [("a".into(), 5), ("b".into(), 7)]);
        cache.apply(object("b", 7));
        assert_eq!(have(&cache), [("a".into(), 5), ("b".into(), 7)]);
    }

    #[test]
    fn a_late_answer_does_not_bring_back_a_deleted_object() {
        let cache = Cache::default();
        cache.replace(vec![]);
        cache.apply(object("b", 7));
        cache.delete(&object("b", 8));
        cache.observe(object("b", 7));
        assert_eq!(have(&cache), []);
    }

    #[test]
    fn an_older_event_does_not_undo_an_own_write() {
        let cache = Cache::default();
        cache.replace(vec![object("a", 5)]);
        cache.observe(object("a", 9));
        cache.apply(object("a", 7));
        assert_eq!(have(&cache), [("a".into(), 9)]);
        cache.apply(object("a", 10));
        assert_eq!(have(&cache), [("a".into(), 10)]);
    }

    #[test]
    fn a_list_keeps_own_writes_newer_than_itself_and_drops_the_rest() {
        let cache = Cache::default();
        cache.replace(vec![object("a", 5), object("b", 6)]);
        cache.observe(object("c", 20));
        cache.replace(vec![object("a", 8)]);
        assert_eq!(have(&cache), [("a".into(), 8), ("c".into(), 20)]);
    }

    #[test]
    fn indexes_follow_changes() {
        let cache = Cache::default();
        cache.add_index("label", |o: &ConfigMap| o.labels().values().cloned().collect());
        let mut a = object("a", 1);
        a.labels_mut().insert("k".into(), "v".into());
        cache.apply(a);
        assert_eq!(cache.by_index("label", "v").len(), 1);
        cache.apply(object("a", 2));
        assert_eq!(cache.by_index("label", "v").len(), 0);
    }
}
