//! One informer a kind, shared by every loop of the process.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Event;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, feed};

/// The caches a process keeps. A kind is watched from [`Informers::start`] on if anybody asked for its cache before.
pub struct Informers {
    client: kube::Client,
    caches: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    feeds: Vec<BoxFuture<'static, ()>>,
    syncs: Vec<BoxFuture<'static, ()>>,
    cancel: CancellationToken,
}

impl Informers {
    /// No caches yet; watches end when `cancel` fires.
    pub fn new(client: kube::Client, cancel: CancellationToken) -> Self {
        Informers { client, caches: HashMap::new(), feeds: Vec::new(), syncs: Vec::new(), cancel }
    }

    /// The cache of a kind, of all namespaces.
    pub fn cache<K>(&mut self) -> Arc<Cache<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        debug_assert!(TypeId::of::<K>() != TypeId::of::<Event>(), "nobody decides from events");
        let id = TypeId::of::<K>();
        if let Some(cache) = self.caches.get(&id)
            && let Ok(cache) = cache.clone().downcast::<Cache<K>>()
        {
            return cache;
        }
        let cache = Arc::new(Cache::<K>::default());
        self.caches.insert(id, cache.clone());
        let api = Api::<K>::all(self.client.clone());
        self.feeds.push(Box::pin(feed(cache.clone(), api, watcher::Config::default(), self.cancel.clone())));
        let waiting = cache.clone();
        self.syncs.push(Box::pin(async move { waiting.synced().await }));
        cache
    }

    /// Starts the watches of every cache asked for and returns a future that ends when all have their first list.
    pub fn start(&mut self) -> impl Future<Output = ()> + Send + 'static {
        for feed in self.feeds.drain(..) {
            tokio::spawn(feed);
        }
        let syncs = std::mem::take(&mut self.syncs);
        async move {
            futures::future::join_all(syncs).await;
        }
    }
}
