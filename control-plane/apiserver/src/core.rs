//! What every request handler shares.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xebec_store::Store;

use crate::{
    config::Config,
    error::Result,
    extension::Extensions,
    http::{Peer, Request, Response, negotiate::Format, respond},
    pki::Pki,
};

/// The server's shared state.
pub struct Core {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub pki: Arc<Pki>,
    pub extensions: Extensions,
}

impl Core {
    pub(crate) async fn start(config: Config, store: Arc<dyn Store>, pki: Arc<Pki>, extensions: Extensions) -> Result<Arc<Core>> {
        store.revision().await?;
        Ok(Arc::new(Core { config, store, pki, extensions }))
    }

    /// Work beside requests, until cancelled.
    pub(crate) async fn background(self: Arc<Self>, cancel: CancellationToken) {
        cancel.cancelled().await;
    }

    /// Answers one request.
    pub async fn serve(self: Arc<Self>, request: Request, _peer: Peer) -> Response {
        match request.uri().path() {
            "/healthz" | "/livez" | "/readyz" => respond::text(StatusCode::OK, "ok"),
            "/version" => respond::document(StatusCode::OK, Format::Json, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0+xebec"})),
            _ => respond::text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}
