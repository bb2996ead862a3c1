use crate::Revision;

/// Why a store call failed. Messages tell an operator what to check.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// History before `compacted` is gone; list again and watch from there.
    #[error("revision {requested} has been compacted, the oldest readable revision is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future, the store is at {current}")]
    FutureRevision { requested: Revision, current: Revision },
    /// The value is larger than the backend takes.
    #[error("value of {key:?} has {size} bytes, at most {limit} can be stored")]
    TooLarge { key: String, size: usize, limit: usize },
    /// A watcher was too slow and was cut off; resume by revision.
    #[error("watcher fell behind and was cut off after revision {last}")]
    Lagged { last: Revision },
    /// The backend cannot be reached right now; the call may be tried again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The file on disk cannot be trusted.
    #[error(
        "store file {path} is damaged: {reason}. Stop the server, move the file aside and restore a backup (or start empty without it)"
    )]
    Corrupted { path: String, reason: String },
    /// Another process has the file open.
    #[error("store file {path} is in use by another process. Stop that server first, or give this one its own --data-dir")]
    InUse { path: String },
    /// Anything else the backend said.
    #[error("store: {0}")]
    Backend(String),
}

impl StoreError {
    pub(crate) fn closed() -> Self {
        Self::Unavailable("the store is closed".into())
    }
}
