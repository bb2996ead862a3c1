//! Assigns pods to nodes, as kube-scheduler v1.36 does, through the Kubernetes API alone.
//!
//! One task owns the picture of the cluster ([`cluster`]) and the waiting pods ([`queue`]). It takes in changes from
//! the watches, asks the pure [`schedule`] where the next pod goes, notes the answer at once (the pod is assumed to be
//! there) and leaves the writing to background tasks. So one decision never waits for another one's write.

pub mod cluster;
pub mod plugins;
pub mod pod_info;
pub mod preempt;
pub mod queue;
pub mod resources;
pub mod schedule;
mod shell;
#[cfg(test)]
mod testing;

use tokio_util::sync::CancellationToken;

/// Pods with this `spec.schedulerName` are ours.
pub const SCHEDULER_NAME: &str = "default-scheduler";

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
    shell::run(client, cancel).await
}
