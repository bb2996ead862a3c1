//! A watch is a cursor: it reads the ring, or the file when the ring no longer reaches back so far.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};

use super::{Shared, closed, read, run_blocking};
use crate::{Result, Revision, StoreError, WatchBatch};

/// Batches taken from the ring at a time.
const STEP: usize = 256;
/// Bytes read from the file at a time.
const STEP_BYTES: usize = 1 << 20;

struct Cursor {
    shared: Arc<Shared>,
    prefix: String,
    /// The next revision to read.
    next: Revision,
    /// The first revision asked for; being compacted later than that means the reader fell behind.
    from: Revision,
    ready: VecDeque<WatchBatch>,
}

pub(super) fn stream(shared: Arc<Shared>, prefix: String, from: Revision) -> BoxStream<'static, Result<WatchBatch>> {
    let cursor = Cursor { shared, prefix, next: from, from, ready: VecDeque::new() };
    stream::try_unfold(cursor, |mut cursor| async move {
        let batch = cursor.advance().await?;
        Ok(Some((batch, cursor)))
    })
    .boxed()
}

impl Cursor {
    async fn advance(&mut self) -> Result<WatchBatch> {
        if let Some(batch) = self.ready.pop_front() {
            return Ok(batch);
        }
        let mut revision = self.shared.revision.clone();
        let current = *revision.wait_for(|current| *current >= self.next).await.map_err(|_| closed())?;
        let (batches, reached) = match self.shared.ring.since(&self.prefix, self.next, current, STEP) {
            Some(found) => found,
            None => self.from_file(current).await?,
        };
        self.ready = batches.into();
        if self.ready.back().is_none_or(|batch| batch.revision < reached) {
            self.ready.push_back(WatchBatch { revision: reached, events: Vec::new() });
        }
        self.next = reached + 1;
        self.ready.pop_front().ok_or_else(closed)
    }

    async fn from_file(&self, current: Revision) -> Result<(Vec<WatchBatch>, Revision)> {
        let (shared, prefix, next) = (self.shared.clone(), self.prefix.clone(), self.next);
        let found = run_blocking(move || shared.read(|snapshot| read::history(snapshot, &prefix, next, current, STEP_BYTES))).await;
        match found {
            Err(StoreError::Compacted { .. }) if self.next > self.from => Err(StoreError::Lagged { last: self.next - 1 }),
            other => other,
        }
    }
}
