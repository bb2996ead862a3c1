//! The one thread that writes: takes what callers queued meanwhile, applies it in order, commits once
//! (one fsync for all of them), tells watchers, then answers. Expiry and compaction run here as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::{oneshot, watch};

use super::Options;
use super::schema::{
    EXPIRY, LIVE, META, META_COMPACTED, META_REVISION, META_SCRUBBED, Position, VERSIONS, Version, commit, meta, storage, table,
    transaction, version_at,
};
use crate::ring::Ring;
use crate::{Compare, Event, KeyValue, Op, Result, Revision, StoreError, Txn, TxnResponse, WatchBatch, check};

pub(super) enum Command {
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnResponse>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<()>> },
    Stop,
}

/// Transactions in one commit at most, so that no caller waits long behind others.
const GROUP: usize = 512;
/// Bytes of values in one commit at most.
const GROUP_BYTES: usize = 16 << 20;
/// Keys that one commit lets expire at most.
const EXPIRE_STEP: usize = 512;
/// Superseded versions that one commit removes at most.
const SCRUB_STEP: usize = 4096;
/// How often the present revision is noted for periodic compaction.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    pub db: Arc<redb::Database>,
    pub commands: Receiver<Command>,
    pub ring: Arc<Ring>,
    /// The last revision in the ring; dropping it ends every watch.
    pub revision: watch::Sender<Revision>,
    pub options: Options,
    /// (when, revision then), oldest first.
    pub samples: VecDeque<(Instant, Revision)>,
    /// How far this writer has compacted by itself.
    pub compacted: Revision,
    pub next_expiry: Option<u64>,
    pub scrubbing: bool,
}

/// What a commit leaves to do once it is durable.
#[derive(Default)]
struct Outcome {
    answers: Vec<(oneshot::Sender<Result<TxnResponse>>, Result<TxnResponse>)>,
    compacted: Vec<(oneshot::Sender<Result<()>>, Result<()>)>,
    batches: Vec<WatchBatch>,
}

impl Writer {
    /// Runs until told to stop or until every sender is gone.
    pub fn run(mut self) {
        loop {
            let mut group = Vec::new();
            match self.commands.recv_timeout(self.patience()) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(command) => group.push(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let mut stop = false;
            let mut bytes = 0;
            while group.len() < GROUP && bytes < GROUP_BYTES {
                match self.commands.try_recv() {
                    Ok(Command::Stop) => {
                        stop = true;
                        break;
                    }
                    Ok(command) => {
                        bytes += weight(&command);
                        group.push(command);
                    }
                    Err(_) => break,
                }
            }
            self.group(group);
            if stop {
                return;
            }
        }
    }

    /// How long the thread may sleep when nobody writes.
    fn patience(&self) -> Duration {
        if self.scrubbing {
            return Duration::ZERO;
        }
        match self.next_expiry {
            Some(at) => (UNIX_EPOCH + Duration::from_secs(at)).duration_since(SystemTime::now()).unwrap_or_default().min(SAMPLE_EVERY),
            None => SAMPLE_EVERY,
        }
    }

    fn group(&mut self, group: Vec<Command>) {
        let now = unix_millis();
        let due = self.sample(Instant::now());
        let expired = self.next_expiry.is_some_and(|at| at <= now / 1000);
        if group.is_empty() && due.is_none() && !expired && !self.scrubbing {
            return;
        }
        let mut waiting_txns = Vec::new();
        let mut waiting_compactions = Vec::new();
        for command in group {
            match command {
                Command::Txn { txn, reply } => waiting_txns.push((txn, reply)),
                Command::Compact { revision, reply } => waiting_compactions.push((revision, reply)),
                Command::Stop => {}
            }
        }
        let mut outcome = Outcome::default();
        match self.commit(now, due, &waiting_txns, &waiting_compactions, expired) {
            Ok((answers, compacted, batches)) => {
                outcome.answers = waiting_txns.into_iter().map(|(_, reply)| reply).zip(answers).collect();
                outcome.compacted = waiting_compactions.into_iter().map(|(_, reply)| reply).zip(compacted).collect();
                outcome.batches = batches;
            }
            Err(error) => {
                tracing::error!(%error, "the store could not commit");
                outcome.answers = waiting_txns.into_iter().map(|(_, reply)| (reply, Err(error.clone()))).collect();
                outcome.compacted = waiting_compactions.into_iter().map(|(_, reply)| (reply, Err(error.clone()))).collect();
                // Do not spin on a broken disk.
                self.scrubbing = false;
                self.next_expiry = self.next_expiry.map(|at| at.max(now / 1000 + 1));
            }
        }
        if let Some(last) = outcome.batches.last().map(|b| b.revision) {
            self.ring.push(outcome.batches);
            self.revision.send_replace(last);
        }
        for (reply, answer) in outcome.answers {
            // A caller that went away does not want to know.
            let _ = reply.send(answer);
        }
        for (reply, answer) in outcome.compacted {
            let _ = reply.send(answer);
        }
    }

    /// Notes the revision from time to time; returns how far history is old enough to forget.
    fn sample(&mut self, now: Instant) -> Option<Revision> {
        let revision = *self.revision.borrow();
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= SAMPLE_EVERY) {
            self.samples.push_back((now, revision));
        }
        let mut due = None;
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) >= self.options.retain_for) {
            due = self.samples.pop_front().map(|(_, revision)| revision);
        }
        let most = revision.saturating_sub(self.options.retain_revisions);
        // In steps, so that a busy store does not compact with every commit.
        if most >= self.compacted + (self.options.retain_revisions / 16).max(1) {
            due = Some(due.unwrap_or(0).max(most));
        }
        if let Some(due) = due {
            self.compacted = self.compacted.max(due);
        }
        due
    }

    #[allow(clippy::type_complexity)]
    fn commit(
        &mut self,
        now: u64,
        due: Option<Revision>,
        txns: &[(Txn, oneshot::Sender<Result<TxnResponse>>)],
        compactions: &[(Revision, oneshot::Sender<Result<()>>)],
        expired: bool,
    ) -> Result<(Vec<Result<TxnResponse>>, Vec<Result<()>>, Vec<WatchBatch>)> {
        let write = self.db.begin_write().map_err(transaction)?;
        let mut tables = Tables::open(&write)?;
        let before = tables.revision;
        let mut batches = Vec::new();
        let mut answers = Vec::with_capacity(txns.len());
        for (txn, _) in txns {
            answers.push(match check(txn, self.options.max_value) {
                Err(error) => Err(error),
                Ok(()) => Ok(tables.apply(txn, now, &mut batches)?),
            });
        }
        if expired {
            tables.expire(now / 1000, &mut batches)?;
        }
        let mut compacted = Vec::with_capacity(compactions.len());
        for (revision, _) in compactions {
            compacted.push(tables.compact_to(*revision)?);
        }
        if let Some(revision) = due {
            let _ = tables.compact_to(revision)?;
        }
        let scrubbing = tables.scrub(SCRUB_STEP)?;
        let next_expiry = tables.expiry.first().map_err(storage)?.map(|(k, _)| k.value().0);
        if tables.revision != before {
            tables.meta.insert(META_REVISION, tables.revision).map_err(storage)?;
        }
        let changed = tables.changed || tables.revision != before;
        drop(tables);
        if changed {
            write.commit().map_err(commit)?;
        } else {
            write.abort().map_err(storage)?;
        }
        self.scrubbing = scrubbing;
        self.next_expiry = next_expiry;
        Ok((answers, compacted, batches))
    }
}

struct Tables<'t> {
    versions: Table<'t, Position, Version>,
    live: Table<'t, &'static str, (Revision, u32, Revision, u64)>,
    expiry: Table<'t, (u64, &'static str), ()>,
    meta: Table<'t, &'static str, u64>,
    revision: Revision,
    /// Something besides the revision was written.
    changed: bool,
}

impl<'t> Tables<'t> {
    fn open(write: &'t WriteTransaction) -> Result<Self> {
        let counters = write.open_table(META).map_err(table)?;
        let revision = meta(&counters, META_REVISION)?;
        Ok(Self {
            versions: write.open_table(VERSIONS).map_err(table)?,
            live: write.open_table(LIVE).map_err(table)?,
            expiry: write.open_table(EXPIRY).map_err(table)?,
            meta: counters,
            revision,
            changed: false,
        })
    }

    fn live(&self, key: &str) -> Result<Option<(Revision, u32, Revision, u64)>> {
        Ok(self.live.get(key).map_err(storage)?.map(|row| row.value()))
    }

    fn apply(&mut self, txn: &Txn, now: u64, batches: &mut Vec<WatchBatch>) -> Result<TxnResponse> {
        let mut holds = true;
        for compare in &txn.compares {
            holds &= match compare {
                Compare::Absent { key } => self.live(key)?.is_none(),
                Compare::ModRevision { key, revision } => self.live(key)?.is_some_and(|(modified, ..)| modified == *revision),
            };
        }
        if !holds {
            let mut current = Vec::with_capacity(txn.compares.len());
            for compare in &txn.compares {
                let (Compare::Absent { key } | Compare::ModRevision { key, .. }) = compare;
                current.push(match self.live(key)? {
                    Some((revision, place, ..)) => version_at(&self.versions, (revision, place))?,
                    None => None,
                });
            }
            return Ok(TxnResponse::Conflict { current, revision: self.revision });
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            let place = u32::try_from(events.len()).map_err(|_| StoreError::Backend("transaction too large".into()))?;
            match op {
                Op::Put { key, value, ttl } => {
                    let expires = ttl.map_or(0, |ttl| (now + ttl.as_millis() as u64).div_ceil(1000));
                    events.push(self.put(key, value.clone(), expires, (revision, place))?);
                }
                Op::Delete { key } => events.extend(self.delete(key, (revision, place))?),
            }
        }
        if !events.is_empty() {
            self.revision = revision;
            batches.push(WatchBatch { revision, events });
        }
        Ok(TxnResponse::Committed { revision: self.revision })
    }

    fn put(&mut self, key: &str, value: bytes::Bytes, expires: u64, at: Position) -> Result<Event> {
        let old = self.live(key)?;
        let prev = match old {
            Some((revision, place, ..)) => version_at(&self.versions, (revision, place))?,
            None => None,
        };
        let (before, before_place, create_revision, expired) = old.map_or((0, 0, at.0, 0), |(r, p, c, e)| (r, p, c, e));
        self.versions.insert(at, (true, key, create_revision, before, before_place, expires, value.as_ref())).map_err(storage)?;
        self.live.insert(key, (at.0, at.1, create_revision, expires)).map_err(storage)?;
        if expired != expires {
            if expired != 0 {
                self.expiry.remove((expired, key)).map_err(storage)?;
            }
            if expires != 0 {
                self.expiry.insert((expires, key), ()).map_err(storage)?;
            }
        }
        Ok(Event::Put { kv: KeyValue { key: key.to_owned(), value, create_revision, mod_revision: at.0 }, prev })
    }

    fn delete(&mut self, key: &str, at: Position) -> Result<Option<Event>> {
        let Some((revision, place, create_revision, expires)) = self.live(key)? else {
            return Ok(None);
        };
        let prev = version_at(&self.versions, (revision, place))?;
        self.versions.insert(at, (false, key, create_revision, revision, place, 0, &[][..])).map_err(storage)?;
        self.live.remove(key).map_err(storage)?;
        if expires != 0 {
            self.expiry.remove((expires, key)).map_err(storage)?;
        }
        Ok(Some(Event::Delete { key: key.to_owned(), prev }))
    }

    /// Deletes keys whose time has come, each in a revision of its own.
    fn expire(&mut self, now: u64, batches: &mut Vec<WatchBatch>) -> Result<()> {
        let mut keys = Vec::new();
        for row in self.expiry.iter().map_err(storage)? {
            let row = row.map_err(storage)?;
            let (at, key) = row.0.value();
            if at > now || keys.len() == EXPIRE_STEP {
                break;
            }
            keys.push(key.to_owned());
        }
        for key in keys {
            let revision = self.revision + 1;
            if let Some(event) = self.delete(&key, (revision, 0))? {
                self.revision = revision;
                batches.push(WatchBatch { revision, events: vec![event] });
            }
        }
        Ok(())
    }

    fn compact_to(&mut self, revision: Revision) -> Result<Result<()>> {
        if revision > self.revision {
            return Ok(Err(StoreError::FutureRevision { requested: revision, current: self.revision }));
        }
        if revision > meta(&self.meta, META_COMPACTED)? {
            self.meta.insert(META_COMPACTED, revision).map_err(storage)?;
            self.changed = true;
        }
        Ok(Ok(()))
    }

    /// Removes versions that were superseded at or before the compacted revision; cost follows the changes
    /// since the last time, not the size of the store. Returns whether there is more to do.
    fn scrub(&mut self, budget: usize) -> Result<bool> {
        let to = meta(&self.meta, META_COMPACTED)?;
        let from = meta(&self.meta, META_SCRUBBED)?;
        if from >= to {
            return Ok(false);
        }
        let mut dead: Vec<Position> = Vec::new();
        let mut reached = to;
        let mut last = from;
        for (seen, row) in self.versions.range((from + 1, 0)..=(to, u32::MAX)).map_err(storage)?.enumerate() {
            let row = row.map_err(storage)?;
            let at = row.0.value();
            if seen >= budget && at.0 != last {
                reached = last;
                break;
            }
            last = at.0;
            let (put, _, _, before, place, _, _) = row.1.value();
            if before != 0 {
                dead.push((before, place));
            }
            if !put {
                dead.push(at);
            }
        }
        for position in dead {
            self.versions.remove(position).map_err(storage)?;
        }
        self.meta.insert(META_SCRUBBED, reached).map_err(storage)?;
        self.changed = true;
        Ok(reached < to)
    }
}

fn weight(command: &Command) -> usize {
    match command {
        Command::Txn { txn, .. } => txn.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum(),
        Command::Compact { .. } | Command::Stop => 0,
    }
}

fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
