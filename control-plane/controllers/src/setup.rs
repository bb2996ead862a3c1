//! How control loops are put together: shared informers, a queue each, workers that start when the caches are full.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xebec_loops::meta::controller_of;
use xebec_loops::{Cache, Change, Error, Informers, Key, Outcome, Queue, Recorder, spawn_loop};

use crate::Config;

/// Every key of every loop is looked at again this often, whether or not it changed.
const RESYNC: Duration = Duration::from_secs(600);

type Start = Box<dyn FnOnce(&mut JoinSet<()>) + Send>;

/// What loops are built from.
pub struct Setup {
    /// The API.
    pub client: kube::Client,
    /// Settings.
    pub config: Arc<Config>,
    /// One informer a kind.
    pub informers: Informers,
    /// Ends everything.
    pub cancel: CancellationToken,
    starts: Vec<Start>,
}

impl Setup {
    /// Nothing yet.
    pub fn new(client: kube::Client, config: Config, cancel: CancellationToken) -> Self {
        let informers = Informers::new(client.clone(), cancel.clone());
        Setup { client, config: Arc::new(config), informers, cancel, starts: Vec::new() }
    }

    /// The shared cache of a kind.
    pub fn cache<K>(&mut self) -> Arc<Cache<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.informers.cache::<K>()
    }

    /// An event recorder that names the controller as upstream does ("deployment-controller").
    pub fn recorder(&self, component: &'static str) -> Recorder {
        Recorder::core(self.client.clone(), component)
    }

    /// A loop over the objects of `primary`: woken by their changes and by a timer. Returns its queue for other wakers.
    pub fn control_loop<K, F, Fut>(&mut self, name: &'static str, primary: &Arc<Cache<K>>, workers: usize, reconcile: F) -> Arc<Queue<Key>>
    where
        K: Resource + Send + Sync + 'static,
        F: Fn(Key) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        let queue = Arc::new(Queue::default());
        let to = queue.clone();
        primary.on_change(move |c| {
            if let Some(object) = c.latest() {
                to.add(Key::of(&**object));
            }
        });
        let (to, cancel, keys) = (queue.clone(), self.cancel.clone(), primary.clone());
        self.on_start(move |tasks| spawn_loop(tasks, name, to, workers, RESYNC, cancel, move || keys.keys(), reconcile));
        queue
    }

    /// Something to spawn once the caches are full.
    pub fn on_start(&mut self, start: impl FnOnce(&mut JoinSet<()>) + Send + 'static) {
        self.starts.push(Box::new(start));
    }

    /// Fills the caches, starts the loops, and waits until they end.
    ///
    /// # Errors
    /// When a loop panicked.
    pub async fn run(mut self) -> Result<(), crate::Error> {
        let synced = self.informers.start();
        tokio::select! {
            () = self.cancel.cancelled() => return Ok(()),
            () = synced => {}
        }
        let mut tasks = JoinSet::new();
        for start in std::mem::take(&mut self.starts) {
            start(&mut tasks);
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

/// Wakes the owner of whatever changes in `children`: before and after, as the owner may have changed.
pub fn wake_controller<K>(children: &Arc<Cache<K>>, queue: &Arc<Queue<Key>>, kind: &'static str)
where
    K: Resource + Send + Sync + 'static,
{
    let to = queue.clone();
    children.on_change(move |c| {
        for object in sides(c) {
            if let Some(owner) = controller_of(object.meta()).filter(|o| o.kind == kind) {
                to.add(Key::new(object.meta().namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
}

/// Both sides of a change.
pub fn sides<'a, K>(change: &'a Change<'_, K>) -> impl Iterator<Item = &'a Arc<K>> {
    change.old.into_iter().chain(change.new)
}
