//! The control loops of kube-controller-manager v1.36, one file each, through the Kubernetes API alone.
//!
//! A loop is registered with [`setup::Setup`]: it names the caches it reads, what wakes it, and its reconcile function.
//! What is to be done is decided in pure functions (`plan`, `status`), which is where the tests are.

mod cluster_dns;
mod cluster_network_policy;
mod cluster_role_aggregation;
mod config;
mod csr;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod endpoints;
mod gc;
mod history;
mod job;
mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node_health;
mod node_ipam;
mod owned;
mod pod_gc;
mod replicas;
mod replicaset;
mod service_account_tokens;
mod service_pods;
mod setup;
mod statefulset;
mod taint_eviction;
mod ttl_after_finished;

pub use config::{ClusterSigner, Config};

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
    // Apart from the others, whose caches do not wait for a custom resource to be defined.
    let balancers = load_balancer::run(client.clone(), config.clone(), cancel.clone());
    let policies = cluster_network_policy::define(client.clone(), cancel.clone());
    let mut setup = setup::Setup::new(client, config, cancel);
    namespace_defaults::register(&mut setup);
    cluster_dns::register(&mut setup);
    node_ipam::register(&mut setup);
    replicaset::register(&mut setup);
    deployment::register(&mut setup);
    daemonset::register(&mut setup);
    statefulset::register(&mut setup);
    job::register(&mut setup);
    endpoint_slice::register(&mut setup);
    namespace::register(&mut setup);
    endpoints::register(&mut setup);
    endpoint_slice_mirroring::register(&mut setup);
    node_health::register(&mut setup);
    taint_eviction::register(&mut setup);
    pod_gc::register(&mut setup);
    cluster_role_aggregation::register(&mut setup);
    service_account_tokens::register(&mut setup);
    csr::register(&mut setup);
    disruption::register(&mut setup);
    ttl_after_finished::register(&mut setup);
    gc::register(&mut setup);
    let (ended, ()) = tokio::join!(async { tokio::try_join!(setup.run(), balancers) }, policies);
    ended?;
    Ok(())
}
