use std::{io, path::PathBuf};

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings contradict each other.
    #[error("bad configuration: {0}")]
    Config(String),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {reason}")]
    Kubeconfig { path: PathBuf, reason: String },
    /// There is no kubeconfig and no service account either.
    #[error(
        "no kubeconfig is given, and the service account of a pod cannot be used: {0}. Check KUBERNETES_SERVICE_HOST and /var/run/secrets/kubernetes.io/serviceaccount, or give --kubeconfig"
    )]
    InCluster(String),
    /// A client of the API server cannot be made.
    #[error("client of the API server: {0}")]
    Client(tower::BoxError),
    /// The system's settings cannot be made writable.
    #[error(
        "/proc/sys is read-only and cannot be made writable: {0}. The container needs CAP_SYS_ADMIN and AppArmor unconfined, or privileged: true"
    )]
    ReadOnlySysctls(std::io::Error),
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// A certificate or key of the kubelet API cannot be used.
    #[error("certificate {path}: {reason}")]
    Certificate { path: PathBuf, reason: String },
    /// TLS cannot be set up.
    #[error("TLS set-up of the kubelet API: {0}")]
    Tls(#[from] rustls::Error),
    /// The kubelet API's address is taken.
    #[error("cannot listen on {address}: {source}. Check that no kubelet or other agent runs on this node")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    /// The dataplane cannot be loaded.
    #[error("dataplane: {0}")]
    Dataplane(#[from] xebec_dataplane::Error),
    /// The pod manager gave up.
    #[error("pods: {0}")]
    Pods(#[from] xebec_pods::Error),
    /// A part panicked: a bug.
    #[error("a task ended unexpectedly: {0}")]
    Task(tokio::task::JoinError),
}

impl Error {
    /// For `map_err`: names the step and the path.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
