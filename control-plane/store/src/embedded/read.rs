//! Reads from a snapshot: one key, a range now or earlier, a stretch of history.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::schema::{Position, Snapshot, storage, version_at};
use crate::{Event, GetResponse, KeyValue, RangeRequest, RangeResponse, Result, Revision, StoreError, WatchBatch, prefix_end};

pub(super) fn get(snapshot: &Snapshot, key: &str) -> Result<GetResponse> {
    let position = snapshot.live.get(key).map_err(storage)?.map(|row| {
        let (revision, place, _, _) = row.value();
        (revision, place)
    });
    let kv = match position {
        Some(position) => version_at(&snapshot.versions, position)?,
        None => None,
    };
    Ok(GetResponse { kv, revision: snapshot.revision })
}

pub(super) fn count(snapshot: &Snapshot, prefix: &str) -> Result<u64> {
    let end = prefix_end(prefix);
    let mut keys = 0;
    for row in snapshot.live.range::<&str>(bounds(prefix, end.as_deref())).map_err(storage)? {
        row.map_err(storage)?;
        keys += 1;
    }
    Ok(keys)
}

pub(super) fn range(snapshot: &Snapshot, request: &RangeRequest) -> Result<RangeResponse> {
    let revision = request.revision.unwrap_or(snapshot.revision);
    if revision > snapshot.revision {
        return Err(StoreError::FutureRevision { requested: revision, current: snapshot.revision });
    }
    if revision < snapshot.compacted {
        return Err(StoreError::Compacted { requested: revision, oldest: snapshot.compacted });
    }
    let start = request.start.as_deref().filter(|s| *s > request.prefix.as_str()).unwrap_or(&request.prefix);
    let end = prefix_end(&request.prefix);
    if end.as_deref().is_some_and(|end| start >= end) {
        return Ok(RangeResponse { kvs: Vec::new(), revision, remaining: 0 });
    }
    let limit = request.limit.unwrap_or(usize::MAX);
    let mut response = RangeResponse { kvs: Vec::new(), revision, remaining: 0 };
    let mut take = |position: Position| -> Result<()> {
        if response.kvs.len() < limit {
            response.kvs.extend(version_at(&snapshot.versions, position)?);
        } else {
            response.remaining += 1;
        }
        Ok(())
    };
    let live = snapshot.live.range::<&str>(bounds(start, end.as_deref())).map_err(storage)?;

    if revision == snapshot.revision {
        for row in live {
            let (modified, place, _, _) = row.map_err(storage)?.1.value();
            take((modified, place))?;
        }
        return Ok(response);
    }

    // Live keys not written since, and for the others what the first change after `revision` replaced.
    let mut then: BTreeMap<String, Option<Position>> = BTreeMap::new();
    for row in snapshot.versions.range((revision + 1, 0)..).map_err(storage)? {
        let row = row.map_err(storage)?;
        let (_, key, _, before, place, _, _) = row.1.value();
        if key >= start && key.starts_with(&request.prefix) && !then.contains_key(key) {
            then.insert(key.to_owned(), (before != 0).then_some((before, place)));
        }
    }
    let mut then = then.into_iter().peekable();
    for row in live {
        let row = row.map_err(storage)?;
        let key = row.0.value();
        while let Some((_, position)) = then.next_if(|(k, _)| k.as_str() < key) {
            position.map(&mut take).transpose()?;
        }
        if let Some((_, position)) = then.next_if(|(k, _)| k.as_str() == key) {
            position.map(&mut take).transpose()?;
        } else {
            let (modified, place, _, _) = row.1.value();
            take((modified, place))?;
        }
    }
    for (_, position) in then {
        position.map(&mut take).transpose()?;
    }
    Ok(response)
}

/// Changes to the prefix from `from` on, up to `to` at most: whole revisions, as many as fit in about `bytes`.
/// Returns the last revision covered.
pub(super) fn history(
    snapshot: &Snapshot,
    prefix: &str,
    from: Revision,
    to: Revision,
    bytes: usize,
) -> Result<(Vec<WatchBatch>, Revision)> {
    if from <= snapshot.compacted {
        return Err(StoreError::Compacted { requested: from, oldest: snapshot.compacted + 1 });
    }
    let mut batches: Vec<WatchBatch> = Vec::new();
    let mut taken = 0;
    let mut reached = from - 1;
    for row in snapshot.versions.range((from, 0)..=(to, u32::MAX)).map_err(storage)? {
        let row = row.map_err(storage)?;
        let (revision, _) = row.0.value();
        if taken >= bytes && revision != reached {
            return Ok((batches, reached));
        }
        reached = revision;
        let (put, key, create_revision, before, place, _, value) = row.1.value();
        if !key.starts_with(prefix) {
            continue;
        }
        taken += key.len() + value.len();
        let prev = match before {
            0 => None,
            before => version_at(&snapshot.versions, (before, place))?,
        };
        let event = if put {
            let value = bytes::Bytes::copy_from_slice(value);
            Event::Put { kv: KeyValue { key: key.to_owned(), value, create_revision, mod_revision: revision }, prev }
        } else {
            Event::Delete { key: key.to_owned(), prev }
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(WatchBatch { revision, events: vec![event] }),
        }
    }
    Ok((batches, to))
}

fn bounds<'a>(start: &'a str, end: Option<&'a str>) -> (Bound<&'a str>, Bound<&'a str>) {
    (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded))
}
