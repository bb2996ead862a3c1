//! Why the server could not start or go on.

use std::path::PathBuf;

/// Failures of the server itself; what clients are told is [`xebec_api::status::ApiError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("cannot {action} {path}: {source}. Check that the data directory exists, is writable and not full")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "certificate or key {path} cannot be used: {reason}. Remove the file to have it made again (for ca.crt and ca.key every certificate of the cluster has to be made again)"
    )]
    Pki { path: PathBuf, reason: String },
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS set-up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot listen on {address}: {source}. Check that the address belongs to this host and that no other process has the port")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("store: {0}")]
    Store(#[from] xebec_store::StoreError),
    #[error("bad configuration: {0}")]
    Config(String),
}

/// Result of the server's own operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
