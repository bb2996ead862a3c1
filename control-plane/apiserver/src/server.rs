//! Start, run, and in-process clients.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use xebec_store::Store;

use crate::{
    auth::UserInfo,
    config::Config,
    core::Core,
    error::{Error, Result},
    extension::{Extensions, Parts},
    http::{BoxError, Peer, Response, listener},
    kubeconfig,
    pki::Pki,
    tls,
};

/// How often the serving certificate's end is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(12 * 3600);

/// A started API server: its port is bound, its cache is filled. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    core: Arc<Core>,
    listener: Arc<Mutex<Option<TcpListener>>>,
    address: SocketAddr,
    serving: Arc<tls::Serving>,
}

impl Server {
    /// Makes or reads the certificates, writes `admin.kubeconfig`, binds the port and fills the watch cache.
    /// Nothing is served before [`Server::run`]; [`Server::client`] works at once.
    ///
    /// # Errors
    /// When a file, the port or the store cannot be used.
    pub async fn start(config: Config, store: Arc<dyn Store>) -> Result<Server> {
        Self::start_with(config, store, Extensions::built_in).await
    }

    /// [`Server::start`] with other admission, authorization and so on.
    pub async fn start_with(
        mut config: Config,
        store: Arc<dyn Store>,
        extensions: impl FnOnce(&Parts) -> Result<Extensions>,
    ) -> Result<Server> {
        config.check()?;
        let listener = TcpListener::bind(config.bind).await.map_err(|source| Error::Listen { address: config.bind, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: config.bind, source })?;
        config.bind = address;
        let pki = Arc::new(Pki::open(&config.data_dir)?);
        let (names, ips) = config.serving_names();
        let serving = tls::Serving::new(&pki.serving(&names, &ips)?)?;
        let admin = pki.admin()?;
        let url = format!("https://{}", SocketAddr::new(config.advertised(), address.port()));
        kubeconfig::write(&config.data_dir.join("admin.kubeconfig"), &url, &pki.cluster_ca.cert_pem, &admin.cert_pem, &admin.key_pem)?;
        let core = Core::start(config, store, pki, extensions).await?;
        Ok(Server { core, listener: Arc::new(Mutex::new(Some(listener))), address, serving })
    }

    /// The address the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The cluster's certificates and keys.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.core.pki
    }

    /// What requests work on.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// A client that calls the server without a socket, as `user`.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        let core = self.core.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (core, peer) = (core.clone(), Peer::Internal(user.clone()));
            async move {
                let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
                Ok::<Response, BoxError>(core.serve(request, peer).await)
            }
        });
        kube::Client::new(service, "default")
    }

    /// Serves until cancelled. A second call returns at once.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn run(&self, cancel: CancellationToken) -> Result<()> {
        let Some(listener) = self.listener.lock().take() else { return Ok(()) };
        let clients = tls::ClientCertificates::new(&self.core.pki.cluster_ca.cert_pem)?;
        let config = tls::server_config(self.serving.clone(), &clients)?;
        let background = cancel.child_token();
        tokio::spawn(renew(self.core.clone(), self.serving.clone(), background.clone()));
        let stop = background.clone();
        let core = self.core.clone();
        tokio::spawn(async move { core.background(stop).await });
        listener::serve(listener, config, clients, self.core.clone(), cancel).await;
        background.cancel();
        Ok(())
    }
}

async fn renew(core: Arc<Core>, serving: Arc<tls::Serving>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_CHECK) => {}
        }
        let (names, ips) = core.config.serving_names();
        match core.pki.serving(&names, &ips).and_then(|issued| serving.replace(&issued)) {
            Ok(()) => {}
            Err(error) => tracing::error!(%error, "serving certificate not renewed"),
        }
    }
}
