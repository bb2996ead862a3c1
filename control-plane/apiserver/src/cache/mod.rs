//! The watch cache: every object of every kind as bytes, fed by one watch of the store.
//!
//! Reads wait for the freshness they ask for; a write never waits for a reader. What a watcher is sent and what a list
//! holds are the stored bytes with the revision spliced in.

mod entry;
mod kind;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt;
use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use xebec_api::{Document, resource::Resource};
use xebec_store::{Event, RangeRequest, Revision, Store, StoreError, WatchBatch};

use crate::objects::Objects;

pub use entry::{CacheEvent, Entry, from_stored, to_stored};
pub use kind::{KindCache, Start, Subscription, TooOld, WatchScope};

/// Every key of ours starts with it, as kube-apiserver's do.
pub const ROOT: &str = "/registry/";

/// How long a read waits for the cache to reach a revision.
pub const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);

/// All kinds' caches.
pub struct Hub {
    store: Arc<dyn Store>,
    kinds: RwLock<HashMap<String, Arc<KindCache>>>,
    /// Every event up to this revision has been applied.
    revision: watch::Sender<Revision>,
    /// Held while a batch is applied or a kind is added.
    applying: Mutex<()>,
}

impl Hub {
    /// Reads the whole store once.
    pub async fn start(store: Arc<dyn Store>, resources: &[Arc<Resource>]) -> Result<Arc<Hub>, StoreError> {
        let hub = Hub { store, kinds: RwLock::default(), revision: watch::Sender::new(0), applying: Mutex::new(()) };
        let response = hub.store.range(RangeRequest { prefix: ROOT.into(), ..RangeRequest::default() }).await?;
        let mut objects: HashMap<&str, Vec<Entry>> = HashMap::new();
        let by_prefix: HashMap<&str, &Arc<Resource>> = resources
            .iter()
            .filter(|r| r.is_stored() && r.api_version() == r.storage_api_version)
            .map(|r| (r.storage_prefix.as_str(), r))
            .collect();
        for kv in &response.kvs {
            if let Some((prefix, key)) = split(&kv.key, |prefix| by_prefix.contains_key(prefix)) {
                let resource = by_prefix[prefix];
                match Entry::new(key, &kv.value, kv.mod_revision, resource) {
                    Ok(entry) => objects.entry(resource.storage_prefix.as_str()).or_default().push(entry),
                    Err(error) => tracing::error!(%error, "object left out"),
                }
            }
        }
        let kinds = by_prefix
            .into_iter()
            .map(|(prefix, resource)| {
                let entries = objects.remove(prefix).unwrap_or_default();
                (prefix.to_string(), Arc::new(KindCache::new(resource.clone(), entries, response.revision)))
            })
            .collect();
        *hub.kinds.write() = kinds;
        hub.revision.send_replace(response.revision);
        Ok(Arc::new(hub))
    }

    /// The cache of a storage prefix.
    pub fn kind(&self, storage_prefix: &str) -> Option<Arc<KindCache>> {
        self.kinds.read().get(storage_prefix).cloned()
    }

    /// All caches.
    pub fn kinds(&self) -> Vec<Arc<KindCache>> {
        self.kinds.read().values().cloned().collect()
    }

    /// An object of a kind by namespace (empty for cluster scope) and name, as fresh as the cache is.
    pub fn get(&self, storage_prefix: &str, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let kind = self.kind(storage_prefix)?;
        if namespace.is_empty() { kind.get(name) } else { kind.get(&format!("{namespace}/{name}")) }
    }

    /// The revision everything is applied up to.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until the cache has reached `revision`; false when it has not in time.
    pub async fn wait(&self, revision: Revision) -> bool {
        self.wait_at_most(revision, FRESHNESS_TIMEOUT).await
    }

    /// [`Hub::wait`] with a limit of one's own.
    pub async fn wait_at_most(&self, revision: Revision, limit: Duration) -> bool {
        let mut receiver = self.revision.subscribe();
        tokio::time::timeout(limit, receiver.wait_for(|now| *now >= revision)).await.is_ok_and(|r| r.is_ok())
    }

    /// Waits until the cache holds everything that was committed before the call.
    pub async fn wait_for_present(&self) -> Result<(), StoreError> {
        let revision = self.store.revision().await?;
        if self.wait(revision).await {
            Ok(())
        } else {
            Err(StoreError::Unavailable(format!("the watch cache is at revision {}, the store at {revision}", self.revision())))
        }
    }

    /// Adds (or replaces) the cache of a kind that came at run time.
    pub async fn add(&self, resource: Arc<Resource>) -> Result<Arc<KindCache>, StoreError> {
        let _paused = self.applying.lock().await;
        if let Some(kind) = self.kind(&resource.storage_prefix)
            && kind.resource.storage_api_version == resource.storage_api_version
        {
            return Ok(kind);
        }
        let revision = self.revision();
        let entries = self.load(&resource, revision).await?;
        let kind = Arc::new(KindCache::new(resource.clone(), entries, revision));
        if let Some(old) = self.kinds.write().insert(resource.storage_prefix.clone(), kind.clone()) {
            old.reset(Vec::new(), revision);
        }
        Ok(kind)
    }

    /// Forgets a kind; its watchers are cut off.
    pub fn remove(&self, storage_prefix: &str) {
        if let Some(kind) = self.kinds.write().remove(storage_prefix) {
            kind.reset(Vec::new(), self.revision());
        }
    }

    /// Feeds the cache until cancelled.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.feed() => {}
        }
    }

    async fn feed(&self) {
        loop {
            let error = match self.store.watch(ROOT, self.revision() + 1).await {
                Ok(mut batches) => loop {
                    match batches.next().await {
                        Some(Ok(batch)) => self.apply(batch).await,
                        Some(Err(error)) => break Some(error),
                        None => break None,
                    }
                },
                Err(error) => Some(error),
            };
            match error {
                Some(StoreError::Compacted { .. }) => {
                    tracing::warn!("watch cache fell behind the store's history, reading everything again");
                    if let Err(error) = self.reload().await {
                        tracing::error!(%error, "watch cache cannot be read again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                Some(StoreError::Lagged { .. }) | None => {}
                Some(error) => {
                    tracing::warn!(%error, "watch of the store ended, starting it again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn apply(&self, batch: WatchBatch) {
        let _applying = self.applying.lock().await;
        if batch.revision <= self.revision() {
            return;
        }
        let kinds = self.kinds.read();
        let mut changes: Vec<(&Arc<KindCache>, Vec<(String, Option<Entry>)>)> = Vec::new();
        for event in batch.events {
            let (full_key, value) = match event {
                Event::Put { kv, .. } => (kv.key, Some(kv.value)),
                Event::Delete { key, .. } => (key, None),
            };
            let Some((prefix, key)) = split(&full_key, |prefix| kinds.contains_key(prefix)) else { continue };
            let kind = &kinds[prefix];
            let entry = match value.map(|value| Entry::new(key, &value, batch.revision, &kind.resource)).transpose() {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::error!(%error, "change left out");
                    continue;
                }
            };
            match changes.iter_mut().find(|(k, _)| Arc::ptr_eq(k, kind)) {
                Some((_, list)) => list.push((key.to_string(), entry)),
                None => changes.push((kind, vec![(key.to_string(), entry)])),
            }
        }
        for (kind, list) in changes {
            kind.apply(batch.revision, list);
        }
        drop(kinds);
        self.revision.send_replace(batch.revision);
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let _paused = self.applying.lock().await;
        let revision = self.store.revision().await?;
        for kind in self.kinds() {
            let entries = self.load(&kind.resource, revision).await?;
            kind.reset(entries, revision);
        }
        self.revision.send_replace(revision);
        Ok(())
    }

    async fn load(&self, resource: &Resource, revision: Revision) -> Result<Vec<Entry>, StoreError> {
        let prefix = format!("{ROOT}{}/", resource.storage_prefix);
        let response =
            self.store.range(RangeRequest { prefix: prefix.clone(), revision: Some(revision), ..RangeRequest::default() }).await?;
        let entries =
            response.kvs.iter().filter_map(|kv| match Entry::new(&kv.key[prefix.len()..], &kv.value, kv.mod_revision, resource) {
                Ok(entry) => Some(entry),
                Err(error) => {
                    tracing::error!(%error, "object left out");
                    None
                }
            });
        Ok(entries.collect())
    }
}

impl Objects for Hub {
    fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Document> {
        Hub::get(self, prefix, namespace, name).map(|entry| entry.document())
    }

    fn list(&self, prefix: &str, namespace: &str) -> Vec<Document> {
        let Some(kind) = self.kind(prefix) else { return Vec::new() };
        kind.snapshot(namespace).0.iter().map(|entry| entry.document()).collect()
    }

    fn select(&self, prefix: &str, namespace: &str, field: &str, value: &str) -> Vec<Document> {
        let Some(kind) = self.kind(prefix) else { return Vec::new() };
        kind.snapshot(namespace)
            .0
            .iter()
            .filter(|entry| entry.field(field).unwrap_or_default() == value)
            .map(|entry| entry.document())
            .collect()
    }

    fn changed(&self, prefix: &str) -> u64 {
        self.kind(prefix).map_or(0, |kind| kind.last_change())
    }
}

/// Splits `/registry/PREFIX/REST`; prefixes have one or two segments.
fn split(key: &str, known: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(ROOT)?;
    let (first, behind) = rest.split_once('/')?;
    if let Some((second, tail)) = behind.split_once('/') {
        let both = &rest[..first.len() + 1 + second.len()];
        if known(both) {
            return Some((both, tail));
        }
    }
    known(first).then_some((first, behind))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn keys_are_split_at_the_longest_known_prefix() {
        let known = |prefix: &str| ["pods", "services/specs", "minions", "example.com/widgets"].contains(&prefix);
        assert_eq!(split("/registry/pods/ns/a", known), Some(("pods", "ns/a")));
        assert_eq!(split("/registry/services/specs/ns/a", known), Some(("services/specs", "ns/a")));
        assert_eq!(split("/registry/minions/n", known), Some(("minions", "n")));
        assert_eq!(split("/registry/example.com/widgets/w", known), Some(("example.com/widgets", "w")));
        assert_eq!(split("/registry/unknown/ns/a", known), None);
        assert_eq!(split("/other/pods/ns/a", known), None);
    }
}
