//! What every request handler shares.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use xebec_store::Store;

use crate::{
    bootstrap,
    cache::Hub,
    config::Config,
    crd,
    documents::Documents,
    error::Result,
    extension::{Extensions, Parts},
    metrics::Metrics,
    pki::Pki,
    proxy::Proxy,
    rows::Rows,
};

/// The server's shared state.
pub struct Core {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub pki: Arc<Pki>,
    pub extensions: Extensions,
    pub rows: Rows,
    pub hub: Arc<Hub>,
    pub documents: Documents,
    pub metrics: Metrics,
    pub proxy: Proxy,
    /// Cancelled when the server is on its way out: watches end, it is no longer ready.
    pub stopping: CancellationToken,
    /// Ends the cache's feeding with the server.
    _feeding: DropGuard,
}

impl Core {
    pub(crate) async fn start(
        config: Config,
        store: Arc<dyn Store>,
        pki: Arc<Pki>,
        extensions: impl FnOnce(&Parts) -> Result<Extensions>,
    ) -> Result<Arc<Core>> {
        let rows = Rows::built_in();
        bootstrap::ensure(store.as_ref(), &bootstrap::Params::new(&config, &pki)).await?;
        let hub = Hub::start(store.clone(), rows.table().rows()).await?;
        let parts = Parts { config, pki, store, hub };
        let extensions = extensions(&parts)?;
        let Parts { config, pki, store, hub } = parts;
        let feeding = CancellationToken::new();
        tokio::spawn(hub.clone().run(feeding.clone()));
        let proxy = Proxy::new(store.clone(), &pki)?;
        let core = Core {
            config,
            store,
            pki,
            extensions,
            rows,
            hub,
            documents: Documents::default(),
            metrics: Metrics::new(),
            proxy,
            stopping: CancellationToken::new(),
            _feeding: feeding.clone().drop_guard(),
        };
        let core = Arc::new(core);
        // Custom resources are there from the first request on.
        if let Err(error) = crd::reconcile(&core).await {
            tracing::warn!(%error, "custom resource definitions not read yet");
        }
        tokio::spawn(crd::run(Arc::downgrade(&core), feeding));
        Ok(core)
    }

    /// Work beside requests, until cancelled.
    pub(crate) async fn background(self: Arc<Self>, cancel: CancellationToken) {
        let params = bootstrap::Params::new(&self.config, &self.pki);
        tokio::join!(
            bootstrap::maintain(self.store.clone(), params, cancel.clone()),
            crate::admission::quota::maintain(self.hub.clone(), self.store.clone(), cancel),
        );
    }

    /// Whether the server is on its way out: not ready, but alive.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}
