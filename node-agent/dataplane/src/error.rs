//! One error type for the crate; each message says what to look at.

use std::path::PathBuf;

/// Why the dataplane could not start or could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read, written or removed.
    #[error("{what} {path:?}: {source}")]
    Io {
        /// What was tried: "read", "write", "remove", ...
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: names the step and the path.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
