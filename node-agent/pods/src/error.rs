use std::path::PathBuf;

/// What can go wrong when a caller asks the pod manager for something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd's socket could not be reached.
    #[error("containerd does not answer on {socket}: {message}; check that it runs and that its CRI plugin is enabled")]
    Runtime { socket: PathBuf, message: String },
    /// A CRI call failed.
    #[error("{call} failed: {}", .status.message())]
    Cri { call: &'static str, status: Box<tonic::Status> },
    /// The API server refused or could not be reached.
    #[error("API server: {0}")]
    Api(#[from] kube::Error),
    /// A file of the node could not be read or written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// No such pod, container or log.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be served in the state the container is in.
    #[error("{0}")]
    BadRequest(String),
    /// A command did not end within its timeout.
    #[error("{0}")]
    Timeout(String),
}

impl Error {
    /// The HTTP status the kubelet API answers with.
    pub fn http_status(&self) -> u16 {
        match self {
            Error::NotFound(_) => 404,
            Error::BadRequest(_) => 400,
            Error::Timeout(_) => 504,
            Error::Runtime { .. } | Error::Cri { .. } | Error::Api(_) | Error::Io { .. } => 500,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

/// An error with its sources, for libraries whose outermost message says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
