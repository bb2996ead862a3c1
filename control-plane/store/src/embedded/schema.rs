//! Tables of the store file and how rows become [`KeyValue`]s.

use std::path::Path;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, TableDefinition};

use crate::{KeyValue, Result, Revision, StoreError};

/// Where a version lies: its revision and its place within the transaction.
pub(super) type Position = (Revision, u32);

/// (is a put, key, create revision, position of the version before it (revision 0: none), Unix second of expiry (0: never), value).
pub(super) type Version = (bool, &'static str, Revision, Revision, u32, u64, &'static [u8]);

/// Every change that is not compacted away, and the present version of every live key.
pub(super) const VERSIONS: TableDefinition<Position, Version> = TableDefinition::new("versions");
/// Live key → (mod revision, place, create revision, Unix second of expiry).
pub(super) const LIVE: TableDefinition<&str, (Revision, u32, Revision, u64)> = TableDefinition::new("live");
/// Live keys that expire, soonest first.
pub(super) const EXPIRY: TableDefinition<(u64, &str), ()> = TableDefinition::new("expiry");
/// The counters below.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

pub(super) const META_FORMAT: &str = "format";
/// The store's revision.
pub(super) const META_REVISION: &str = "revision";
/// Reads before this revision are refused.
pub(super) const META_COMPACTED: &str = "compacted";
/// Versions superseded at or before this revision have been removed; follows `compacted`.
pub(super) const META_SCRUBBED: &str = "scrubbed";

/// The layout written by this code.
pub(super) const FORMAT: u64 = 1;

pub(super) fn meta(table: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64> {
    Ok(table.get(name).map_err(storage)?.map_or(0, |v| v.value()))
}

/// The key's state at `position`; `None` if that version is a delete.
pub(super) fn version_at(versions: &impl ReadableTable<Position, Version>, position: Position) -> Result<Option<KeyValue>> {
    let row = versions.get(position).map_err(storage)?.ok_or_else(|| {
        StoreError::Backend(format!("version {position:?} is referred to but missing; the file needs a restore from backup"))
    })?;
    let (put, key, create_revision, _, _, _, value) = row.value();
    Ok(put.then(|| KeyValue { key: key.to_owned(), value: Bytes::copy_from_slice(value), create_revision, mod_revision: position.0 }))
}

/// Opens the four tables of a snapshot.
pub(super) struct Snapshot {
    pub versions: redb::ReadOnlyTable<Position, Version>,
    pub live: redb::ReadOnlyTable<&'static str, (Revision, u32, Revision, u64)>,
    pub revision: Revision,
    pub compacted: Revision,
}

impl Snapshot {
    pub fn open(txn: &ReadTransaction) -> Result<Self> {
        let counters = txn.open_table(META).map_err(table)?;
        Ok(Self {
            versions: txn.open_table(VERSIONS).map_err(table)?,
            live: txn.open_table(LIVE).map_err(table)?,
            revision: meta(&counters, META_REVISION)?,
            compacted: meta(&counters, META_COMPACTED)?,
        })
    }
}

pub(super) fn storage(error: redb::StorageError) -> StoreError {
    match error {
        redb::StorageError::Corrupted(reason) => StoreError::Corrupted { path: "(open)".into(), reason },
        redb::StorageError::PreviousIo => {
            StoreError::Unavailable("an earlier write to the store file failed; check the disk and restart the server".into())
        }
        redb::StorageError::Io(error) => StoreError::Unavailable(format!("store file: {error}; check the disk for space and errors")),
        other => StoreError::Backend(other.to_string()),
    }
}

pub(super) fn table(error: redb::TableError) -> StoreError {
    match error {
        redb::TableError::Storage(error) => storage(error),
        other => StoreError::Corrupted { path: "(open)".into(), reason: other.to_string() },
    }
}

pub(super) fn transaction(error: redb::TransactionError) -> StoreError {
    match error {
        redb::TransactionError::Storage(error) => storage(error),
        other => StoreError::Backend(other.to_string()),
    }
}

pub(super) fn commit(error: redb::CommitError) -> StoreError {
    match error {
        redb::CommitError::Storage(error) => storage(error),
        other => StoreError::Backend(other.to_string()),
    }
}

/// Puts the file's name into an error made where it was not known.
pub(super) fn named(error: StoreError, path: &Path) -> StoreError {
    match error {
        StoreError::Corrupted { reason, .. } => StoreError::Corrupted { path: path.display().to_string(), reason },
        other => other,
    }
}
