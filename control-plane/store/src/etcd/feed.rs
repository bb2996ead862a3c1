//! The one etcd watch that feeds the ring, and reads of history older than the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch as channel;
use tokio::time::{sleep, timeout};

use super::convert::{error, event};
use super::{PATIENCE, Shared};
use crate::{Event, Result, Revision, StoreError, WatchBatch};

/// Bytes of history that a watch takes at a time.
const HISTORY_STEP: usize = 1 << 20;
/// Revisions without an event that are bridged; etcd makes none, but a restored one may jump.
const GAP: u64 = 1000;

/// Keeps the ring at etcd's present, across lost connections, until it is aborted.
pub(super) async fn run(shared: Arc<Shared>, sender: channel::Sender<Revision>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let last = *sender.borrow();
        match follow(&shared, &sender).await {
            Err(StoreError::Compacted { oldest, .. }) => {
                // What happened meanwhile cannot be had: watches that need it are cut off by the reset.
                tracing::warn!(last, oldest, "etcd compacted past this server while it was not connected");
                shared.compacted.fetch_max(oldest.saturating_sub(1), Ordering::Relaxed);
                let resume = oldest.max(last);
                shared.ring.reset(resume);
                sender.send_replace(resume);
            }
            Err(error) => {
                tracing::warn!(%error, "the watch on etcd broke off, resuming after revision {}", *sender.borrow())
            }
            Ok(()) => {}
        }
        if *sender.borrow() > last {
            pause = Duration::from_millis(50);
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn follow(shared: &Shared, sender: &channel::Sender<Revision>) -> Result<()> {
    let first = *sender.borrow() + 1;
    let mut stream = open(shared, first).await?;
    while let Some(response) = stream.message().await.map_err(error)? {
        let last = *sender.borrow();
        refused(&response, last + 1)?;
        let mut batches: Vec<WatchBatch> = Vec::new();
        for batch in whole_revisions(&response) {
            let mut next = batches.last().map_or(last, |b| b.revision) + 1;
            if batch.revision < next {
                continue;
            }
            if batch.revision - next > GAP {
                shared.ring.reset(batch.revision - 1);
                batches.clear();
                next = batch.revision;
            }
            batches.extend((next..batch.revision).map(|revision| WatchBatch { revision, events: Vec::new() }));
            batches.push(batch);
        }
        if let Some(reached) = batches.last().map(|b| b.revision) {
            shared.ring.push(batches);
            sender.send_replace(reached);
        }
    }
    Ok(())
}

/// Reads what the ring no longer has. All keys are watched, so that every revision shows and the end is seen.
pub(super) async fn history(shared: &Shared, prefix: &str, from: Revision, to: Revision) -> Result<(Vec<WatchBatch>, Revision)> {
    let read = async {
        let mut stream = open(shared, from).await?;
        let mut batches = Vec::new();
        let mut taken = 0;
        while let Some(response) = stream.message().await.map_err(error)? {
            refused(&response, from)?;
            let mut reached = 0;
            for mut batch in whole_revisions(&response) {
                if batch.revision > to {
                    return Ok((batches, to));
                }
                reached = batch.revision;
                batch.events.retain(|event| match event {
                    Event::Put { kv, .. } => kv.key.starts_with(prefix),
                    Event::Delete { key, .. } => key.starts_with(prefix),
                });
                taken += batch.events.iter().map(|e| if let Event::Put { kv, .. } = e { kv.value.len() } else { 0 }).sum::<usize>();
                if !batch.events.is_empty() {
                    batches.push(batch);
                }
            }
            if reached >= to || (reached > 0 && taken >= HISTORY_STEP) {
                return Ok((batches, reached));
            }
        }
        Err(StoreError::Unavailable("etcd ended a watch early".into()))
    };
    timeout(PATIENCE * 3, read).await.map_err(|_| StoreError::Unavailable("etcd did not send its history in time".into()))?
}

async fn open(shared: &Shared, from: Revision) -> Result<WatchStream> {
    let mut client = shared.client.watch_client().max_decoding_message_size(usize::MAX);
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let options = WatchOptions::new().with_all_keys().with_prev_key().with_start_revision(from);
    match timeout(PATIENCE, client.watch("", Some(options))).await {
        Ok(stream) => stream.map_err(error),
        Err(_) => Err(StoreError::Unavailable("etcd did not answer a watch in time".into())),
    }
}

fn refused(response: &WatchResponse, requested: Revision) -> Result<()> {
    if response.compact_revision() > 0 {
        return Err(StoreError::Compacted { requested, oldest: response.compact_revision() as u64 });
    }
    if response.canceled() {
        return Err(StoreError::Unavailable(format!("etcd cancelled a watch: {}", response.cancel_reason())));
    }
    Ok(())
}

/// The response's events by revision. etcd never splits a revision over responses unless asked for fragments.
fn whole_revisions(response: &WatchResponse) -> Vec<WatchBatch> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    for (revision, event) in response.events().iter().filter_map(event) {
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(WatchBatch { revision, events: vec![event] }),
        }
    }
    batches
}
