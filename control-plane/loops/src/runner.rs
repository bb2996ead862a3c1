//! Workers that take keys from a queue and reconcile them.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Error, Key, Queue};

/// What a finished reconcile asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Another run after this time, also if nothing changes.
    Again(Duration),
}

/// What every loop is started with.
#[derive(Clone)]
pub struct Context {
    /// The API.
    pub client: kube::Client,
    /// Ends the loop.
    pub cancel: CancellationToken,
}

/// Runs `workers` tasks that reconcile keys of `queue`; `keys` lists every key there is and is asked each `resync`.
///
/// A conflict is retried without a word: somebody else wrote, and the next run reads what they wrote.
#[expect(clippy::too_many_arguments, reason = "each is one word at the call")]
pub fn spawn_loop<F, Fut, L>(
    tasks: &mut JoinSet<()>,
    name: &'static str,
    queue: Arc<Queue<Key>>,
    workers: usize,
    resync: Duration,
    cancel: CancellationToken,
    keys: L,
    reconcile: F,
) where
    F: Fn(Key) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, Error>> + Send,
    L: Fn() -> Vec<Key> + Send + 'static,
{
    for _ in 0..workers {
        let (queue, cancel, reconcile) = (queue.clone(), cancel.clone(), reconcile.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = cancel.cancelled() => return,
                    key = queue.next() => key,
                };
                let result = reconcile(key.clone()).await;
                match result {
                    Ok(Outcome::Done) => queue.forget(&key),
                    Ok(Outcome::Again(delay)) => {
                        queue.forget(&key);
                        queue.add_after(key.clone(), delay);
                    }
                    Err(error) => {
                        if error.is_conflict() || error.is_not_found() {
                            tracing::debug!(controller = name, %key, %error, "reconcile again");
                        } else {
                            tracing::warn!(controller = name, %key, %error, "reconcile failed, will retry");
                        }
                        queue.add_failed(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    tasks.spawn(async move {
        loop {
            // Spread over the loops, so that they do not all resync in the same moment.
            let jitter = rand::random_range(0.9..1.1);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(resync.mul_f64(jitter)) => {}
            }
            for key in keys() {
                queue.add(key);
            }
        }
    });
}
