//! The API's objects into the records.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, TryStreamExt};
use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::input;
use crate::records::{Key, Records};
use crate::server::Server;

/// How an object of a kind enters the records.
struct Feed<K, N> {
    what: &'static str,
    name: fn(&K) -> N,
    set: fn(&mut Records, N, Option<&K>),
    names: fn(&Records) -> Vec<N>,
}

/// Starts the watches; `changed` is told of every change that may change who has an address.
pub fn start(server: &Arc<Server>, client: &kube::Client, changed: &Arc<Notify>, tasks: &mut JoinSet<()>) {
    let waiting = Arc::new(AtomicUsize::new(3));
    let shared = || Shared { server: server.clone(), waiting: waiting.clone(), changed: changed.clone() };
    let services = Feed {
        what: "Services",
        name: key::<v1::Service>,
        set: |records, key, service| records.set_service(key, service.map(input::service)),
        names: Records::service_keys,
    };
    let slices = Feed {
        what: "EndpointSlices",
        name: key::<discovery::EndpointSlice>,
        set: |records, key, slice| records.set_slice(key, slice.and_then(input::slice)),
        names: Records::slice_keys,
    };
    let namespaces = Feed {
        what: "Namespaces",
        name: |namespace: &PartialObjectMeta<v1::Namespace>| namespace.name_any().into_boxed_str(),
        set: |records, name, namespace| records.set_namespace(&name, namespace.is_some()),
        names: Records::namespaces,
    };
    let all = watcher::Config::default;
    tasks.spawn(follow(shared(), services, watcher(Api::<v1::Service>::all(client.clone()), all())));
    tasks.spawn(follow(shared(), slices, watcher(Api::<discovery::EndpointSlice>::all(client.clone()), all())));
    tasks.spawn(follow(shared(), namespaces, watcher(Api::<PartialObjectMeta<v1::Namespace>>::all(client.clone()), all())));
}

fn key<K: Resource>(object: &K) -> Key {
    Key::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

struct Shared {
    server: Arc<Server>,
    /// Watches that have not answered in full yet.
    waiting: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

async fn follow<K, N>(shared: Shared, feed: Feed<K, N>, events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send)
where
    N: Hash + Eq + Clone + Debug,
{
    let mut events = std::pin::pin!(events.default_backoff());
    let mut listed: HashSet<N> = HashSet::new();
    let (mut first, mut failing) = (true, false);
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                // One line when it starts failing, not one for each retry.
                if !failing {
                    tracing::warn!(%error, "{} cannot be watched; names stay as they are", feed.what);
                }
                failing = true;
                continue;
            }
        };
        failing = false;
        let mut records = shared.server.records.write();
        match event {
            watcher::Event::Init => {
                listed.clear();
                continue;
            }
            watcher::Event::InitApply(object) => {
                let name = (feed.name)(&object);
                listed.insert(name.clone());
                (feed.set)(&mut records, name, Some(&object));
                continue;
            }
            watcher::Event::InitDone => {
                // What was known and is not in the list went while nobody looked.
                for name in (feed.names)(&records) {
                    if !listed.contains(&name) {
                        (feed.set)(&mut records, name, None);
                    }
                }
                listed = HashSet::new();
                if std::mem::take(&mut first) && shared.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                    shared.server.synced.store(true, Ordering::Release);
                }
            }
            watcher::Event::Apply(object) => (feed.set)(&mut records, (feed.name)(&object), Some(&object)),
            watcher::Event::Delete(object) => (feed.set)(&mut records, (feed.name)(&object), None),
        }
        drop(records);
        shared.changed.notify_one();
    }
}
