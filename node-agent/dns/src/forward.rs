//! Names that are not ours: asked for elsewhere, once for all who want to know, and remembered.

mod cache;
mod exchange;
mod pool;
mod resolv_conf;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OnceCell, Semaphore};

use crate::answer::Reply;
use crate::metrics::Metrics;
use cache::Cache;
pub use cache::Question;
use exchange::Ask;
pub use pool::Error;
use pool::Pool;
pub use resolv_conf::parse_server;

/// Answers that are kept.
const CACHED: usize = 10_000;
/// Questions that are asked elsewhere at one time.
const AT_ONCE: usize = 1000;
/// How often the resolver configuration is read again.
const REFRESH: Duration = Duration::from_secs(5);
/// How long a looping name server takes to show itself, and how many refreshes pass until it is tried again.
const LOOP_PATIENCE: Duration = Duration::from_secs(2);
const REFRESHES_TO_RETRY: u32 = 12;

/// Names below `domain` go to these servers and to no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The domain.
    pub domain: Name,
    /// Its servers.
    pub servers: Vec<SocketAddr>,
}

type Pending = Arc<OnceCell<Result<Arc<Reply>, Error>>>;

/// Asks other servers.
pub struct Forwarder {
    stubs: Vec<(Name, Arc<Pool>)>,
    resolv_conf: PathBuf,
    own: Vec<IpAddr>,
    default: RwLock<Arc<Pool>>,
    cache: Mutex<Cache>,
    pending: Mutex<HashMap<Question, Pending>>,
    permits: Semaphore,
    /// The name by which a question of ours is known again, and whether it came back.
    probe: Mutex<Option<(Name, bool)>>,
    metrics: Metrics,
}

impl Forwarder {
    /// Names below a stub's domain go to its servers, all others to those of the resolver configuration, never to `own` addresses.
    pub fn new(stubs: Vec<Stub>, resolv_conf: PathBuf, own: Vec<IpAddr>, metrics: Metrics) -> Forwarder {
        let mut stubs: Vec<(Name, Arc<Pool>)> = stubs.into_iter().map(|stub| (stub.domain, Arc::new(Pool::new(stub.servers)))).collect();
        // The closest domain first.
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        let forwarder = Forwarder {
            stubs,
            resolv_conf,
            own,
            default: RwLock::default(),
            cache: Mutex::new(Cache::new(CACHED)),
            pending: Mutex::default(),
            permits: Semaphore::new(AT_ONCE),
            probe: Mutex::default(),
            metrics,
        };
        forwarder.refresh();
        forwarder
    }

    /// An answer from memory.
    pub fn remembered(&self, question: &Question) -> Option<Reply> {
        let found = self.cache.lock().get(question, Instant::now());
        self.metrics.cache(found.is_some());
        found
    }

    /// Asks; who asks for the same meanwhile waits for the same answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask(&self, question: &Question) -> Result<Reply, Error> {
        let cell = self.pending.lock().entry(question.clone()).or_default().clone();
        let asked = cell.get_or_init(|| self.ask_elsewhere(question)).await.clone();
        let mut pending = self.pending.lock();
        if pending.get(question).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            pending.remove(question);
        }
        asked.map(|reply| (*reply).clone())
    }

    async fn ask_elsewhere(&self, question: &Question) -> Result<Arc<Reply>, Error> {
        let _permit = self.permits.try_acquire().map_err(|_| Error::Busy)?;
        let pool = self.pool(&question.name);
        let query = Query::query(question.name.clone(), question.kind);
        let ask = Ask { query, dnssec_ok: question.dnssec_ok, checking_disabled: question.checking_disabled };
        let message = pool.ask(&ask, &self.metrics).await?;
        let reply = Arc::new(Reply {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        });
        let mut cache = self.cache.lock();
        cache.put(question.clone(), reply.clone(), Instant::now());
        self.metrics.cached(cache.len());
        Ok(reply)
    }

    fn pool(&self, name: &Name) -> Arc<Pool> {
        match self.stubs.iter().find(|(domain, _)| domain.zone_of(name)) {
            Some((_, pool)) => pool.clone(),
            None => self.default.read().clone(),
        }
    }

    /// Reads the resolver configuration; true if it names other servers than before.
    fn refresh(&self) -> bool {
        let text = match std::fs::read_to_string(&self.resolv_conf) {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(path = %self.resolv_conf.display(), %error, "the resolver configuration cannot be read; it stays as it was");
                return false;
            }
        };
        let servers = resolv_conf::servers(&text, &self.own);
        let changed = {
            let current = self.default.read();
            !current.upstreams().iter().map(|u| u.address).eq(servers.iter().copied())
        };
        if changed {
            tracing::info!(path = %self.resolv_conf.display(), ?servers, "names outside the cluster are asked for at");
            *self.default.write() = Arc::new(Pool::new(servers));
        }
        changed
    }

    /// Follows the resolver configuration, and looks whether one of its servers leads back here. Never ends.
    pub async fn run(&self) {
        self.look_for_loops().await;
        let mut refreshes = 0u32;
        loop {
            tokio::time::sleep(REFRESH).await;
            refreshes = refreshes.wrapping_add(1);
            let changed = self.refresh();
            let looping = self.default.read().upstreams().iter().any(|u| u.is_looping());
            if changed || (looping && refreshes.is_multiple_of(REFRESHES_TO_RETRY)) {
                self.look_for_loops().await;
            }
        }
    }

    async fn look_for_loops(&self) {
        let pool = self.default.read().clone();
        for upstream in pool.upstreams() {
            // Nobody has such a name, nor is it remembered anywhere.
            let Ok(name) = Name::from_ascii(format!("{:016x}.{:016x}.", rand::random::<u64>(), rand::random::<u64>())) else { return };
            *self.probe.lock() = Some((name.clone(), false));
            let ask = Ask { query: Query::query(name, RecordType::HINFO), dnssec_ok: false, checking_disabled: false };
            // Whether and what it answers is of no interest.
            let _ = exchange::exchange(upstream.address, &ask, LOOP_PATIENCE).await;
            upstream.set_looping(self.probe.lock().take().is_some_and(|(_, came_back)| came_back));
        }
    }

    /// Whether a question is our own, come back.
    pub fn is_probe(&self, name: &Name) -> bool {
        let mut probe = self.probe.lock();
        match probe.as_mut() {
            Some((own, came_back)) if own == name => {
                *came_back = true;
                true
            }
            _ => false,
        }
    }
}
