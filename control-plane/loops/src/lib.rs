//! What control loops are made of: informers with one cache a kind, keyed work queues, loops, events, and the pure
//! helpers that read API objects (selectors, quantities, owners, pod conditions).
//!
//! The contract of a loop: it is woken by a change and by a timer, it reads caches, decides in a pure function, writes
//! through the API, and keeps nothing between two runs that it could not rebuild.

pub mod cache;
pub mod clock;
pub mod events;
pub mod informers;
pub mod meta;
pub mod placement;
pub mod pod;
pub mod quantity;
pub mod queue;
pub mod runner;
pub mod selector;

pub use cache::{Cache, Change};
pub use events::{EventType, Recorder};
pub use informers::Informers;
pub use meta::Key;
pub use queue::Queue;
pub use runner::{Context, Outcome, spawn_loop};
pub use selector::Selector;

/// Why a reconcile did not finish. The key comes back with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// An object could not be written as JSON.
    #[error("object cannot be serialized: {0}")]
    Json(#[from] serde_json::Error),
    /// Anything else that a later run may find gone.
    #[error("{0}")]
    Retry(String),
}

impl Error {
    /// Whether the API server answered 404.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Api(e) if api_not_found(e))
    }

    /// Whether the API server answered 409 because of a stale resourceVersion or a failed precondition.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(e) if api_conflict(e))
    }
}

/// Whether `error` is the API's NotFound.
pub fn api_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.code == 404)
}

/// Whether `error` is the API's Conflict.
pub fn api_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.reason == "Conflict")
}

/// Whether `error` is the API's AlreadyExists.
pub fn api_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.reason == "AlreadyExists")
}

/// Whether `error` says that the namespace of a new object is being deleted.
pub fn api_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let cause = status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"));
    cause || (status.code == 403 && status.message.contains("because it is being terminated"))
}

/// The API's error in the words it used (what events quote), else the error itself.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(s) if !s.message.is_empty() => s.message.clone(),
        other => other.to_string(),
    }
}

/// `Ok(None)` for NotFound, which deleters take as done.
///
/// # Errors
/// Every other error as it is.
pub fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if api_not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}
