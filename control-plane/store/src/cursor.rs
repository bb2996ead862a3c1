//! A watch is a cursor: it reads the ring, or the backend's history when the ring does not reach back so far.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use crate::ring::Ring;
use crate::{Result, Revision, StoreError, WatchBatch};

/// Batches taken from the ring at a time.
const STEP: usize = 256;

/// What a backend provides for its watches.
pub(crate) trait Source: Send + Sync + 'static {
    /// Recent changes.
    fn ring(&self) -> &Ring;

    /// The last revision in the ring. Closed when there will be no more.
    fn revision(&self) -> watch::Receiver<Revision>;

    /// Changes to the prefix from `from` on, up to `to` at most, whole revisions, a reasonable amount;
    /// and the last revision covered, at least `from`.
    fn history(&self, prefix: &str, from: Revision, to: Revision) -> impl Future<Output = Result<(Vec<WatchBatch>, Revision)>> + Send;
}

struct Cursor<S> {
    source: Arc<S>,
    prefix: String,
    /// The next revision to read.
    next: Revision,
    /// The first revision asked for; being compacted later than that means the reader fell behind.
    from: Revision,
    ready: VecDeque<WatchBatch>,
}

pub(crate) fn stream<S: Source>(source: Arc<S>, prefix: String, from: Revision) -> BoxStream<'static, Result<WatchBatch>> {
    let cursor = Cursor { source, prefix, next: from, from, ready: VecDeque::new() };
    stream::try_unfold(cursor, |mut cursor| async move {
        let batch = cursor.advance().await?;
        Ok(Some((batch, cursor)))
    })
    .boxed()
}

impl<S: Source> Cursor<S> {
    async fn advance(&mut self) -> Result<WatchBatch> {
        if let Some(batch) = self.ready.pop_front() {
            return Ok(batch);
        }
        let mut revision = self.source.revision();
        let current = *revision.wait_for(|current| *current >= self.next).await.map_err(|_| StoreError::closed())?;
        let (batches, reached) = match self.source.ring().since(&self.prefix, self.next, current, STEP) {
            Some(found) => found,
            None => match self.source.history(&self.prefix, self.next, current).await {
                Err(StoreError::Compacted { .. }) if self.next > self.from => {
                    return Err(StoreError::Lagged { last: self.next - 1 });
                }
                other => other?,
            },
        };
        self.ready = batches.into();
        if self.ready.back().is_none_or(|batch| batch.revision < reached) {
            self.ready.push_back(WatchBatch { revision: reached, events: Vec::new() });
        }
        self.next = reached + 1;
        self.ready.pop_front().ok_or_else(StoreError::closed)
    }
}
