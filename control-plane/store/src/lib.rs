//! A revisioned key-value store with compare-and-swap, watch, compaction and expiry.
//!
//! One trait, [`Store`], and backends that pass one test suite. The contract follows etcd's data model
//! (<https://etcd.io/docs/v3.5/learning/data_model/>): one revision counter for the whole store, every
//! committed transaction increments it by one, all keys a transaction writes carry that revision.

mod cursor;
pub mod embedded;
mod error;
pub mod etcd;
mod ring;
mod types;

pub use error::StoreError;
pub use types::*;

use async_trait::async_trait;
use futures::stream::BoxStream;

/// Result of a store call.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What can be refused of a transaction without looking at the store.
fn check(txn: &Txn, max_value: usize) -> Result<()> {
    let mut keys = std::collections::HashSet::with_capacity(txn.ops.len());
    for op in &txn.ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = op;
        if key.is_empty() {
            return Err(StoreError::Backend("a key must not be empty".into()));
        }
        if !keys.insert(key) {
            return Err(StoreError::Backend(format!("key {key:?} is written twice in one transaction")));
        }
        if let Op::Put { value, .. } = op
            && value.len() > max_value
        {
            return Err(StoreError::TooLarge { key: key.clone(), size: value.len(), limit: max_value });
        }
    }
    Ok(())
}

/// The end of the keys that start with `prefix`, exclusive; `None` if there is none.
fn prefix_end(prefix: &str) -> Option<String> {
    // The next string in byte order that does not start with the prefix: raise the last character that can be.
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            char::MAX => continue,
            '\u{d7ff}' => '\u{e000}',
            c => char::from_u32(c as u32 + 1)?,
        };
        chars.push(next);
        return Some(chars.into_iter().collect());
    }
    None
}

/// What a backend offers. All methods may be called concurrently.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The live value of `key`, with the store revision at which that was true.
    async fn get(&self, key: &str) -> Result<GetResponse>;

    /// Live keys with the prefix, in byte order of the key, as of [`RangeRequest::revision`].
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that revision is compacted, [`StoreError::FutureRevision`] if it has not happened.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse>;

    /// Number of live keys with the prefix now.
    async fn count(&self, prefix: &str) -> Result<u64>;

    /// Commits all operations if all compares hold; otherwise changes nothing.
    /// A committed transaction is durable when this returns. One that changes nothing (no operations, or only
    /// deletes of absent keys) commits at the present revision.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse>;

    /// All changes to keys with the prefix, from `from` on (inclusive), in revision order, each revision whole
    /// in one batch. The stream ends with an error when it cannot go on; the caller resumes at the last
    /// revision it saw plus one. Reconnects inside a backend neither lose nor repeat a change. `from` may lie
    /// in the future. Batches without events say how far the watch has come when nothing matched.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] (here or as a stream item) if `from` is compacted,
    /// [`StoreError::Lagged`] if the reader fell behind compaction later.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Result<WatchBatch>>>;

    /// Forgets history before `revision`: reads at it and later, and watches from the one after it, still work.
    /// Compacting what is compacted already is no error.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`] if it has not happened.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// The store's current revision.
    async fn revision(&self) -> Result<Revision>;

    /// Bytes on disk as the backend reports them.
    async fn size(&self) -> Result<u64>;
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn prefix_end_is_the_first_string_beyond_the_prefix() {
        assert_eq!(prefix_end("/a/").as_deref(), Some("/a0"));
        assert_eq!(prefix_end(""), None);
        assert_eq!(prefix_end("\u{10ffff}"), None);
        assert_eq!(prefix_end("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{d7ff}").as_deref(), Some("\u{e000}"));
    }
}
