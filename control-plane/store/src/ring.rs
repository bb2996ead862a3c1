//! The last changes in memory, shared by all watches, so that following the store reads no disk.

use std::collections::VecDeque;

use parking_lot::RwLock;

use crate::{Event, KeyValue, Revision, WatchBatch};

/// Bytes of keys and values kept at most.
const BYTES: usize = 4 << 20;
/// Revisions kept at most.
const REVISIONS: usize = 8192;

/// Batches of consecutive revisions, the newest last.
pub(crate) struct Ring(RwLock<Inner>);

struct Inner {
    batches: VecDeque<(usize, WatchBatch)>,
    bytes: usize,
    /// Revision of the first batch, or of the next one to come if there is none.
    first: Revision,
}

impl Ring {
    /// `current` is the last revision before anything is pushed.
    pub fn new(current: Revision) -> Self {
        Self(RwLock::new(Inner { batches: VecDeque::new(), bytes: 0, first: current + 1 }))
    }

    /// Appends batches; every revision must come, in order.
    pub fn push(&self, batches: Vec<WatchBatch>) {
        let mut inner = self.0.write();
        for batch in batches {
            let size = batch.events.iter().map(weight).sum();
            inner.bytes += size;
            inner.batches.push_back((size, batch));
        }
        while inner.batches.len() > REVISIONS || (inner.bytes > BYTES && inner.batches.len() > 1) {
            if let Some((size, _)) = inner.batches.pop_front() {
                inner.bytes -= size;
                inner.first += 1;
            }
        }
    }

    /// Forgets everything: the changes up to `current` cannot be had any more.
    pub fn reset(&self, current: Revision) {
        *self.0.write() = Inner { batches: VecDeque::new(), bytes: 0, first: current + 1 };
    }

    /// What happened to the prefix in `from..=to`, at most `limit` batches, and the last revision covered.
    /// `None` if the ring does not reach back so far.
    pub fn since(&self, prefix: &str, from: Revision, to: Revision, limit: usize) -> Option<(Vec<WatchBatch>, Revision)> {
        let inner = self.0.read();
        let skip = usize::try_from(from.checked_sub(inner.first)?).ok()?;
        let mut found = Vec::new();
        for (_, batch) in inner.batches.iter().skip(skip) {
            if batch.revision > to {
                break;
            }
            let events: Vec<Event> = batch.events.iter().filter(|e| key(e).starts_with(prefix)).cloned().collect();
            if !events.is_empty() {
                found.push(WatchBatch { revision: batch.revision, events });
                if found.len() == limit {
                    return Some((found, batch.revision));
                }
            }
        }
        Some((found, to))
    }
}

fn key(event: &Event) -> &str {
    match event {
        Event::Put { kv, .. } => &kv.key,
        Event::Delete { key, .. } => key,
    }
}

fn weight(event: &Event) -> usize {
    let of = |kv: &KeyValue| kv.key.len() + kv.value.len();
    match event {
        Event::Put { kv, prev } => of(kv) + prev.as_ref().map_or(0, of),
        Event::Delete { key, prev } => key.len() + prev.as_ref().map_or(0, of),
    }
}
