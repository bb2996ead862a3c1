//! Garbage collection by owner reference, over every kind there is.
//!
//! The graph is fed by metadata watches of all kinds. What it says only makes work; before anything is deleted the
//! object and any owner not known to be sound are read from the API, so a graph that lags deletes nothing wrongly.

mod graph;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xebec_loops::cache::{Sink, feed};
use xebec_loops::{Error, Queue, ignore_not_found};

use crate::discovery::{Kind, deletable, group_of};
use crate::setup::Setup;
use graph::{FOREGROUND, Graph, Item, ORPHAN, OwnerState, Policy, Verdict, Work, verdict};

const WORKERS: usize = 10;
/// How often kinds are discovered anew.
const DISCOVERY: Duration = Duration::from_secs(30);
/// How long the first lists may take before work starts without them.
const PATIENCE: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(600);

type Meta = PartialObjectMeta<DynamicObject>;

#[derive(Clone)]
struct Collector {
    client: kube::Client,
    graph: Arc<Mutex<Graph>>,
    queue: Arc<Queue<Work>>,
    kinds: Arc<RwLock<HashMap<(String, String), Arc<Kind>>>>,
    cancel: CancellationToken,
}

/// Registers the collector.
pub fn register(setup: &mut Setup) {
    let collector = Collector {
        client: setup.client.clone(),
        graph: Arc::default(),
        queue: Arc::default(),
        kinds: Arc::default(),
        cancel: setup.cancel.clone(),
    };
    setup.on_start(move |tasks| {
        tasks.spawn(async move {
            let cancel = collector.cancel.clone();
            tokio::select! {
                () = cancel.cancelled() => {}
                () = collector.run() => {}
            }
        });
    });
}

/// One kind's watch, poured into the graph.
struct KindSink {
    collector: Collector,
    kind: Arc<Kind>,
    synced: tokio::sync::watch::Sender<bool>,
}

impl KindSink {
    fn with_graph(&self, f: impl FnOnce(&mut Graph) -> Vec<Work>) {
        let work = f(&mut self.collector.graph.lock());
        work.into_iter().for_each(|w| self.collector.queue.add(w));
    }
}

impl Sink<Meta> for KindSink {
    fn replace(&self, objects: Vec<Meta>) {
        self.with_graph(|graph| {
            let listed: HashSet<&str> = objects.iter().filter_map(|o| o.metadata.uid.as_deref()).collect();
            let gone: Vec<String> = graph.of_kind(&self.kind).into_iter().filter(|u| !listed.contains(u.as_str())).collect();
            let mut work: Vec<Work> = gone.iter().flat_map(|u| graph.remove(u)).collect();
            work.extend(objects.iter().flat_map(|o| graph.apply(Item::new(self.kind.clone(), &o.metadata))));
            work
        });
        self.synced.send_replace(true);
    }

    fn apply(&self, object: Meta) {
        self.with_graph(|graph| graph.apply(Item::new(self.kind.clone(), &object.metadata)));
    }

    fn delete(&self, object: &Meta) {
        self.with_graph(|graph| graph.remove(object.metadata.uid.as_deref().unwrap_or_default()));
    }
}

impl Collector {
    async fn run(&self) {
        let mut watched: HashMap<Arc<Kind>, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        self.follow_kinds(&mut watched, &mut tasks, true).await;
        for _ in 0..WORKERS {
            let this = self.clone();
            tasks.spawn(async move { this.work().await });
        }
        let mut resync = tokio::time::interval(RESYNC);
        resync.tick().await;
        loop {
            tokio::select! {
                () = tokio::time::sleep(DISCOVERY) => self.follow_kinds(&mut watched, &mut tasks, false).await,
                _ = resync.tick() => {
                    let all = self.graph.lock().interesting();
                    all.into_iter().for_each(|uid| self.queue.add(Work::Delete(uid)));
                }
            }
            while let Some(ended) = tasks.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(%error, "garbage collector task ended unexpectedly");
                }
            }
        }
    }

    /// Starts watches of kinds that are new and ends those of kinds that are gone.
    async fn follow_kinds(&self, watched: &mut HashMap<Arc<Kind>, CancellationToken>, tasks: &mut JoinSet<()>, wait: bool) {
        let kinds = match deletable(&self.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                tracing::warn!(%error, "kinds cannot be discovered; garbage collection goes on with those it knows");
                return;
            }
        };
        let now: HashSet<Arc<Kind>> = kinds.iter().filter(|k| k.watch).cloned().collect();
        *self.kinds.write() = kinds.into_iter().map(|k| ((k.group.clone(), k.kind.clone()), k)).collect();
        watched.retain(|kind, cancel| {
            let stays = now.contains(kind);
            if !stays {
                cancel.cancel();
                let mut graph = self.graph.lock();
                for uid in graph.of_kind(kind) {
                    // Its dependents are not orphans for that: a version of the kind may still be served.
                    graph.remove(&uid);
                }
            }
            stays
        });
        let mut synced = Vec::new();
        for kind in now {
            if watched.contains_key(&kind) {
                continue;
            }
            let cancel = self.cancel.child_token();
            let sink = Arc::new(KindSink { collector: self.clone(), kind: kind.clone(), synced: tokio::sync::watch::Sender::new(false) });
            let mut ready = sink.synced.subscribe();
            synced.push(async move { drop(ready.wait_for(|s| *s).await) });
            let api: Api<Meta> = Api::all_with(self.client.clone(), &kind.resource());
            tasks.spawn(feed(sink, api, watcher::Config::default(), cancel.clone()));
            watched.insert(kind, cancel);
        }
        if wait && tokio::time::timeout(PATIENCE, futures::future::join_all(synced)).await.is_err() {
            tracing::warn!("not every kind could be listed in time; garbage collection starts without");
        }
    }

    async fn work(&self) {
        loop {
            let work = self.queue.next().await;
            let result = match &work {
                Work::Delete(uid) => self.attempt_delete(uid).await,
                Work::Orphan(uid) => self.orphan_dependents(uid).await,
            };
            match result {
                Ok(()) => self.queue.forget(&work),
                Err(error) => {
                    tracing::debug!(?work, %error, "garbage collection will retry");
                    self.queue.add_failed(work.clone());
                }
            }
            self.queue.done(&work);
        }
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<Meta> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
        } else {
            Api::all_with(self.client.clone(), &kind.resource())
        }
    }

    async fn attempt_delete(&self, uid: &str) -> Result<(), Error> {
        let Some(item) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        if item.deleting && !item.foreground {
            return Ok(());
        }
        let api = self.api(&item.kind, &item.namespace);
        let latest = api.get_opt(&item.name).await?;
        let Some(latest) = latest.filter(|l| l.metadata.uid.as_deref() == Some(uid)) else {
            let work = self.graph.lock().remove(uid);
            work.into_iter().for_each(|w| self.queue.add(w));
            return Ok(());
        };
        let latest = Item::new(item.kind.clone(), &latest.metadata);
        if latest.waits_for_dependents() {
            return self.finish_foreground(&api, &latest).await;
        }
        if latest.deleting {
            return Ok(());
        }
        let mut owners = Vec::new();
        for reference in &latest.owners {
            owners.push((reference.clone(), self.owner_state(reference, &latest).await?));
        }
        let verdict = verdict(&self.graph.lock(), &latest, &owners);
        match verdict {
            Verdict::Keep => Ok(()),
            Verdict::DropOwners(uids) => self.drop_owners(&api, &latest, &uids).await,
            Verdict::Delete { policy, unblock } => {
                if unblock {
                    self.unblock_owners(&api, &latest).await?;
                }
                self.delete(&api, &latest, policy).await
            }
        }
    }

    /// An object that waits for its dependents goes when none of them blocks it any more.
    async fn finish_foreground(&self, api: &Api<Meta>, item: &Item) -> Result<(), Error> {
        let blocking: Vec<Item> = self.graph.lock().dependents(&item.uid).filter(|d| d.blocks(&item.uid)).cloned().collect();
        if blocking.is_empty() {
            return self.remove_finalizer(api, item, FOREGROUND).await;
        }
        for dependent in blocking.iter().filter(|d| !d.waits_for_dependents()) {
            self.queue.add(Work::Delete(dependent.uid.clone()));
        }
        Ok(())
    }

    async fn owner_state(&self, reference: &OwnerReference, item: &Item) -> Result<OwnerState, Error> {
        if let Some(state) = self.graph.lock().known_owner(reference, &item.namespace) {
            return Ok(state);
        }
        let key = (group_of(&reference.api_version).to_owned(), reference.kind.clone());
        let Some(kind) = self.kinds.read().get(&key).cloned() else {
            return Err(Error::Retry(format!("owner kind {} of {} is not known", reference.kind, reference.api_version)));
        };
        if kind.namespaced && item.namespace.is_empty() {
            // A cluster-scoped object cannot be owned by one in a namespace: there is no way to say which.
            return Err(Error::Retry(format!("owner {} of cluster-scoped {} lives in a namespace", reference.name, item.name)));
        }
        let owner = self.api(&kind, &item.namespace).get_opt(&reference.name).await?;
        Ok(match owner.filter(|o| o.metadata.uid.as_deref() == Some(&reference.uid)) {
            None => OwnerState::Dangling,
            Some(o) if Item::new(kind, &o.metadata).waits_for_dependents() => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
        })
    }

    async fn delete(&self, api: &Api<Meta>, item: &Item, policy: Policy) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions { uid: Some(item.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        tracing::debug!(kind = item.kind.kind, namespace = item.namespace, name = item.name, ?policy, "deleting: its owners are gone");
        match ignore_not_found(api.delete(&item.name, &params).await) {
            Ok(_) => Ok(()),
            // Somebody else has the name now.
            Err(e) if xebec_loops::api_conflict(&e) => Ok(()),
            // The answer may be the whole object or a Status; only that it was taken matters.
            Err(kube::Error::SerdeError(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the object from the owners of all its dependents, then lets it go.
    async fn orphan_dependents(&self, uid: &str) -> Result<(), Error> {
        let (item, dependents) = {
            let graph = self.graph.lock();
            let Some(item) = graph.get(uid).cloned() else { return Ok(()) };
            let dependents: Vec<Item> = graph.dependents(uid).cloned().collect();
            (item, dependents)
        };
        for dependent in dependents {
            let api = self.api(&dependent.kind, &dependent.namespace);
            self.drop_owners(&api, &dependent, &[uid.to_owned()]).await?;
        }
        self.remove_finalizer(&self.api(&item.kind, &item.namespace), &item, ORPHAN).await
    }

    async fn drop_owners(&self, api: &Api<Meta>, item: &Item, uids: &[String]) -> Result<(), Error> {
        self.rewrite(api, item, |meta| {
            let owners = meta.owner_references.clone().unwrap_or_default();
            let kept: Vec<OwnerReference> = owners.iter().filter(|o| !uids.contains(&o.uid)).cloned().collect();
            (kept.len() != owners.len()).then(|| json!({ "ownerReferences": kept }))
        })
        .await
    }

    async fn unblock_owners(&self, api: &Api<Meta>, item: &Item) -> Result<(), Error> {
        self.rewrite(api, item, |meta| {
            let mut owners = meta.owner_references.clone().unwrap_or_default();
            let blocked = owners.iter().any(|o| o.block_owner_deletion == Some(true));
            owners.iter_mut().for_each(|o| o.block_owner_deletion = o.block_owner_deletion.and(Some(false)));
            blocked.then(|| json!({ "ownerReferences": owners }))
        })
        .await
    }

    async fn remove_finalizer(&self, api: &Api<Meta>, item: &Item, finalizer: &str) -> Result<(), Error> {
        self.rewrite(api, item, |meta| {
            let finalizers = meta.finalizers.clone().unwrap_or_default();
            let kept: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
            (kept.len() != finalizers.len()).then(|| json!({ "finalizers": kept }))
        })
        .await
    }

    /// Reads, decides, and patches against what was read; tries again when somebody else wrote in between.
    async fn rewrite(&self, api: &Api<Meta>, item: &Item, change: impl Fn(&ObjectMeta) -> Option<serde_json::Value>) -> Result<(), Error> {
        for _ in 0..5 {
            let latest = api.get_opt(&item.name).await?;
            let Some(latest) = latest.filter(|l| l.metadata.uid.as_deref() == Some(&item.uid)) else { return Ok(()) };
            let Some(mut metadata) = change(&latest.metadata) else { return Ok(()) };
            metadata["uid"] = json!(item.uid);
            metadata["resourceVersion"] = json!(latest.metadata.resource_version);
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            match ignore_not_found(api.patch(&item.name, &PatchParams::default(), &patch).await) {
                Ok(_) => return Ok(()),
                Err(e) if xebec_loops::api_conflict(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Retry("others keep writing the same object".into()))
    }
}
