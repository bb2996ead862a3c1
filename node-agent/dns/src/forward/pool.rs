//! The servers that are asked for some names, and which of them are worth asking.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::time::Instant;

use super::exchange::{Ask, exchange};
use crate::metrics::{ForwardResult, Metrics};

/// How long one try may take. A datagram may be lost, and a client waits 5 seconds.
const TRY: Duration = Duration::from_millis(1500);
/// How long all tries together may take.
const PATIENCE: Duration = Duration::from_millis(4500);
/// So many failures in a row, and a server is asked only when no other is left.
const DEAD_AFTER: u32 = 2;
/// How often a dead server is looked at again.
const REVIVE: Duration = Duration::from_secs(1);

/// One server.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    failures: AtomicU32,
    looping: AtomicBool,
}

impl Upstream {
    fn is_dead(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= DEAD_AFTER
    }

    /// It asks us what we ask it.
    pub fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// It does, or does no more.
    pub fn set_looping(&self, looping: bool) {
        let before = self.looping.swap(looping, Ordering::Relaxed);
        if looping && !before {
            tracing::error!(
                upstream = %self.address,
                "this name server forwards to cluster DNS, which forwards to it; it is asked no more. Take it out of the node's \
                 resolv.conf, or give the agent another one with --resolv-conf"
            );
        }
    }

    /// Back among those that are asked first.
    fn revive(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= DEAD_AFTER {
            tracing::info!(upstream = %self.address, "name server answers again");
        }
    }

    /// True if that was its end.
    fn fail(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 == DEAD_AFTER
    }
}

/// Servers, the preferred first.
#[derive(Debug, Default)]
pub struct Pool {
    upstreams: Vec<Arc<Upstream>>,
}

/// Why a name could not be asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody to ask.
    #[error("no name server to ask; check the node's resolv.conf")]
    Nobody,
    /// Nobody answered.
    #[error("no name server answered, the last one with: {0}")]
    Silence(Arc<io::Error>),
    /// Too much is being asked already.
    #[error("too many names are being asked for at once")]
    Busy,
}

impl Pool {
    /// Of these.
    pub fn new(addresses: Vec<SocketAddr>) -> Pool {
        let upstream = |address| Arc::new(Upstream { address, failures: AtomicU32::new(0), looping: AtomicBool::new(false) });
        Pool { upstreams: addresses.into_iter().map(upstream).collect() }
    }

    /// The servers.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// Those that answer before those that do not, else in the order they were given.
    fn order(&self) -> Vec<&Arc<Upstream>> {
        let mut order: Vec<&Arc<Upstream>> = self.upstreams.iter().filter(|u| !u.is_looping()).collect();
        order.sort_by_key(|u| u.is_dead());
        order
    }

    /// Asks one after the other, those that do not answer again as long as there is time.
    ///
    /// # Errors
    /// When there is nobody, or nobody answers. A server's own failure is an answer if no other has a better one.
    pub async fn ask(&self, ask: &Ask, metrics: &Metrics) -> Result<Message, Error> {
        let end = Instant::now() + PATIENCE;
        let mut last = Error::Nobody;
        let mut failure = None;
        let mut silent = self.order();
        while !silent.is_empty() {
            let mut still_silent = Vec::new();
            for upstream in silent {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return failure.ok_or(last);
                }
                match exchange(upstream.address, ask, TRY.min(left)).await {
                    Ok(answer) => {
                        upstream.revive();
                        let code = answer.metadata.response_code;
                        if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                            metrics.forwarded(upstream.address, ForwardResult::Answered);
                            return Ok(answer);
                        }
                        metrics.forwarded(upstream.address, ForwardResult::Failure);
                        failure = Some(answer);
                    }
                    Err(error) => {
                        let timed_out = error.kind() == io::ErrorKind::TimedOut;
                        let result = if timed_out { ForwardResult::Timeout } else { ForwardResult::Error };
                        metrics.forwarded(upstream.address, result);
                        if upstream.fail() {
                            tracing::warn!(upstream = %upstream.address, %error, "name server does not answer; others are asked first");
                            tokio::spawn(watch_dead(Arc::downgrade(upstream)));
                        }
                        // Who refuses at once would do so again.
                        if timed_out {
                            still_silent.push(upstream);
                        }
                        last = Error::Silence(Arc::new(error));
                    }
                }
            }
            if failure.is_some() {
                break;
            }
            silent = still_silent;
        }
        failure.ok_or(last)
    }
}

/// Asks a dead server for the root's servers until it answers something.
async fn watch_dead(upstream: Weak<Upstream>) {
    let ask = Ask { query: Query::query(Name::root(), RecordType::NS), dnssec_ok: false, checking_disabled: false };
    loop {
        tokio::time::sleep(REVIVE).await;
        // A new pool has taken its place.
        let Some(upstream) = upstream.upgrade() else { return };
        if !upstream.is_dead() {
            return;
        }
        if exchange(upstream.address, &ask, TRY).await.is_ok() {
            upstream.revive();
            return;
        }
    }
}
