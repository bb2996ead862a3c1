//! The store in etcd, for a control plane of several servers, or to share data with an upstream kube-apiserver.
//!
//! Revisions, compares and leases are etcd's own. All watches of one process are served from one etcd watch
//! (the [`feed`]) through a ring, so that their number costs etcd nothing and every watch learns of every
//! revision at once.
//!
//! etcd must take values as large as the objects to be stored: its `--max-request-bytes` is 1.5 MiB by
//! default, key and framing included; start it with `--max-request-bytes=4194304` to store all that the API takes.

mod convert;
mod feed;
mod leases;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Certificate, Client, CompareOp, ConnectOptions, GetOptions, Identity, KvClient, TlsOptions, TxnOp, TxnOpResponse};
use futures::stream::BoxStream;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::cursor::{self, Source};
use crate::ring::Ring;
use crate::{
    Compare, GetResponse, Op, RangeRequest, RangeResponse, Result, Revision, Store, StoreError, Txn, TxnResponse, WatchBatch, check,
    prefix_end,
};
use convert::{error, key_value, revision_of};

/// A call that takes longer is given up; it may have been carried out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Values above this are refused before they are sent; etcd may take less, see the module's text.
const MAX_VALUE: usize = 4 << 20;

/// What a TLS connection to etcd needs, all PEM.
#[derive(Clone)]
pub struct Tls {
    /// Authorities that may have signed etcd's certificate.
    pub ca: Vec<u8>,
    /// Client certificate and its key, if etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A connection to an etcd cluster. Dropping it ends its watches.
pub struct Etcd {
    shared: Arc<Shared>,
    feed: JoinHandle<()>,
}

struct Shared {
    client: Client,
    kv: KvClient,
    leases: leases::Leases,
    ring: Ring,
    revision: channel::Receiver<Revision>,
    /// The highest revision known to be compacted; etcd does not tell when asked.
    compacted: AtomicU64,
}

/// Connects to etcd at `endpoints` (`http://` or `https://` URLs; the latter need `tls`).
///
/// # Errors
/// [`StoreError::Unavailable`] if none answers within ten seconds.
pub async fn connect(endpoints: &[String], tls: Option<Tls>) -> Result<Etcd> {
    let mut options = ConnectOptions::new()
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(Duration::from_secs(3));
    if let Some(tls) = tls {
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
        if let Some((cert, key)) = tls.identity {
            config = config.identity(Identity::from_pem(cert, key));
        }
        options = options.with_tls(config);
    }
    let client = Client::connect(endpoints, Some(options)).await.map_err(error)?;
    let kv = client.kv_client().max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);

    let deadline = Instant::now() + PATIENCE;
    let current = loop {
        match within(kv.clone().get("/", Some(GetOptions::new().with_count_only()))).await {
            Ok(response) => break revision_of(response.header())?,
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
            Err(e) => {
                return Err(StoreError::Unavailable(format!("cannot reach etcd at {}: {e}", endpoints.join(", "))));
            }
        }
    };
    let (sender, revision) = channel::channel(current);
    let shared = Arc::new(Shared {
        leases: leases::Leases::new(client.lease_client()),
        client,
        kv,
        ring: Ring::new(current),
        revision,
        compacted: AtomicU64::new(0),
    });
    let feed = tokio::spawn(feed::run(shared.clone(), sender));
    Ok(Etcd { shared, feed })
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

impl Source for Shared {
    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn revision(&self) -> channel::Receiver<Revision> {
        self.revision.clone()
    }

    async fn history(&self, prefix: &str, from: Revision, to: Revision) -> Result<(Vec<WatchBatch>, Revision)> {
        feed::history(self, prefix, from, to).await
    }
}

/// Waits for a call with a deadline.
async fn within<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(error),
        Err(_) => Err(StoreError::Unavailable(format!("etcd did not answer within {} s", PATIENCE.as_secs()))),
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<GetResponse> {
        let mut response = within(self.shared.kv.clone().get(key, None)).await?;
        let revision = revision_of(response.header())?;
        let kv = response.take_kvs().into_iter().next().map(key_value).transpose()?;
        Ok(GetResponse { kv, revision })
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let start = request.start.filter(|s| *s > request.prefix).unwrap_or_else(|| request.prefix.clone());
        let end = prefix_end(&request.prefix);
        if end.as_ref().is_some_and(|end| start >= *end) {
            let revision = match request.revision {
                Some(revision) => revision,
                None => self.revision().await?,
            };
            return Ok(RangeResponse { kvs: Vec::new(), revision, remaining: 0 });
        }
        let (from, to) = bounds(start, end);
        let mut options = GetOptions::new().with_range(to);
        if let Some(limit) = request.limit {
            // etcd takes 0 for no limit.
            options = if limit == 0 { options.with_count_only() } else { options.with_limit(i64::try_from(limit).unwrap_or(i64::MAX)) };
        }
        if let Some(revision) = request.revision {
            options = options.with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
        }
        let mut response = match within(self.shared.kv.clone().get(from, Some(options))).await {
            Err(StoreError::Compacted { .. }) => {
                let requested = request.revision.unwrap_or_default();
                return Err(StoreError::Compacted { requested, oldest: self.shared.compacted.load(Ordering::Relaxed).max(requested + 1) });
            }
            Err(StoreError::FutureRevision { .. }) => {
                let current = self.revision().await?;
                return Err(StoreError::FutureRevision { requested: request.revision.unwrap_or_default(), current });
            }
            other => other?,
        };
        let current = revision_of(response.header())?;
        let kvs = response.take_kvs().into_iter().map(key_value).collect::<Result<Vec<_>>>()?;
        let remaining = (response.count().max(0) as u64).saturating_sub(kvs.len() as u64);
        Ok(RangeResponse { kvs, revision: request.revision.unwrap_or(current), remaining })
    }

    async fn count(&self, prefix: &str) -> Result<u64> {
        let (from, to) = bounds(prefix.to_owned(), prefix_end(prefix));
        let options = GetOptions::new().with_range(to).with_count_only();
        Ok(within(self.shared.kv.clone().get(from, Some(options))).await?.count().max(0) as u64)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        check(&txn, MAX_VALUE)?;
        match self.try_txn(&txn).await {
            // A lease kept for reuse may have been revoked by somebody: nothing was written, ask for a new one.
            Err(StoreError::Backend(reason)) if reason.contains("lease not found") => {
                self.shared.leases.forget();
                self.try_txn(&txn).await
            }
            other => other,
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Result<WatchBatch>>> {
        let compacted = self.shared.compacted.load(Ordering::Relaxed);
        if from <= compacted {
            return Err(StoreError::Compacted { requested: from, oldest: compacted + 1 });
        }
        Ok(cursor::stream(self.shared.clone(), prefix.to_owned(), from))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        match within(self.shared.kv.clone().compact(i64::try_from(revision).unwrap_or(i64::MAX), None)).await {
            Ok(_) => {
                self.shared.compacted.fetch_max(revision, Ordering::Relaxed);
                Ok(())
            }
            Err(StoreError::Compacted { .. }) => Ok(()),
            Err(StoreError::FutureRevision { .. }) => {
                Err(StoreError::FutureRevision { requested: revision, current: self.revision().await? })
            }
            Err(e) => Err(e),
        }
    }

    async fn revision(&self) -> Result<Revision> {
        let response = within(self.shared.kv.clone().get("/", Some(GetOptions::new().with_count_only()))).await?;
        revision_of(response.header())
    }

    async fn size(&self) -> Result<u64> {
        Ok(within(self.shared.client.maintenance_client().status()).await?.db_size().max(0) as u64)
    }
}

impl Etcd {
    async fn try_txn(&self, txn: &Txn) -> Result<TxnResponse> {
        let mut ops = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            ops.push(match op {
                Op::Put { key, value, ttl: None } => TxnOp::put(key.as_str(), value.to_vec(), None),
                Op::Put { key, value, ttl: Some(ttl) } => {
                    let lease = self.shared.leases.for_ttl(*ttl).await?;
                    TxnOp::put(key.as_str(), value.to_vec(), Some(etcd_client::PutOptions::new().with_lease(lease)))
                }
                Op::Delete { key } => TxnOp::delete(key.as_str(), None),
            });
        }
        let mut compares = Vec::with_capacity(txn.compares.len());
        let mut lookups = Vec::with_capacity(txn.compares.len());
        for compare in &txn.compares {
            let (key, revision) = match compare {
                Compare::Absent { key } => (key, 0),
                Compare::ModRevision { key, revision } => (key, *revision),
            };
            compares.push(etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, i64::try_from(revision).unwrap_or(i64::MAX)));
            lookups.push(TxnOp::get(key.as_str(), None));
        }
        let request = etcd_client::Txn::new().when(compares).and_then(ops).or_else(lookups);
        let response = match within(self.shared.kv.clone().txn(request)).await {
            Err(StoreError::TooLarge { limit, .. }) => {
                let sizes = txn.ops.iter().filter_map(|op| match op {
                    Op::Put { key, value, .. } => Some((value.len(), key.clone())),
                    Op::Delete { .. } => None,
                });
                let (size, key) = sizes.max().unwrap_or_default();
                return Err(StoreError::TooLarge { key, size, limit });
            }
            other => other?,
        };
        let revision = revision_of(response.header())?;
        if response.succeeded() {
            return Ok(TxnResponse::Committed { revision });
        }
        let mut current = Vec::with_capacity(txn.compares.len());
        for answer in response.op_responses() {
            let TxnOpResponse::Get(mut get) = answer else {
                return Err(StoreError::Backend("etcd answered a lookup with something else".into()));
            };
            current.push(get.take_kvs().into_iter().next().map(key_value).transpose()?);
        }
        Ok(TxnResponse::Conflict { current, revision })
    }
}

/// etcd's key and range end: a single zero byte stands for the first key, and for "to the end".
fn bounds(start: String, end: Option<String>) -> (Vec<u8>, Vec<u8>) {
    let from = if start.is_empty() { vec![0] } else { start.into_bytes() };
    (from, end.map_or_else(|| vec![0], String::into_bytes))
}
