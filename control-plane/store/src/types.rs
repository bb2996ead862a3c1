use std::time::Duration;

use bytes::Bytes;

/// A point in the store's history. The empty store is at 1, as etcd's is; 0 is never a revision.
pub type Revision = u64;

/// A live key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    /// Revision of the transaction that created the key.
    pub create_revision: Revision,
    /// Revision of the last transaction that wrote the key.
    pub mod_revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetResponse {
    pub kv: Option<KeyValue>,
    pub revision: Revision,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeRequest {
    pub prefix: String,
    /// Start at this key (inclusive) instead of at the prefix; must lie within the prefix.
    pub start: Option<String>,
    /// At most so many keys.
    pub limit: Option<usize>,
    /// Read the store as it was then; `None` is now.
    pub revision: Option<Revision>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResponse {
    pub kvs: Vec<KeyValue>,
    /// The revision the read reflects: the one asked for, else the current one.
    pub revision: Revision,
    /// Keys left beyond the limit.
    pub remaining: u64,
}

/// What must hold of a key for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent { key: String },
    /// The key exists and was last written at this revision.
    ModRevision { key: String, revision: Revision },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        /// The key is deleted (with a watch event) once this has passed without another put of it.
        /// Granularity one second; a put without `ttl` makes the key permanent.
        ttl: Option<Duration>,
    },
    /// Deleting a key that does not exist is no error and no event.
    Delete { key: String },
}

/// Compares and operations; a key may be named by at most one operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnResponse {
    Committed {
        revision: Revision,
    },
    /// Nothing was changed; the present state of each compared key, in the order of the compares.
    Conflict {
        current: Vec<Option<KeyValue>>,
        revision: Revision,
    },
}

/// Everything one transaction did to the watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    /// Empty: nothing happened to the prefix up to `revision` (progress).
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put { kv: KeyValue, prev: Option<KeyValue> },
    Delete { key: String, prev: Option<KeyValue> },
}
