//! The kubelet's HTTPS API, which the API server uses for logs, exec, attach and port-forward, and monitoring for metrics.

mod auth;
mod files;
mod handle;
mod query;
mod route;
mod tls;
mod upgrade;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{Config, Error, health::Health};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Request = http::Request<hyper::body::Incoming>;
type Response = http::Response<Body>;

/// A client that does not finish its handshake is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The bound server.
pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
}

/// What handlers work on.
struct Shared {
    config: Arc<Config>,
    health: Arc<Health>,
    registry: Registry,
    access: auth::Access,
}

impl Server {
    /// Reads or makes the serving certificate and binds the port.
    pub async fn new(config: Arc<Config>, client: kube::Client, health: Arc<Health>, registry: Registry) -> Result<Server, Error> {
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&config).await?));
        let listen = |source| Error::Listen { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(listen)?;
        info!(address = %config.bind, "kubelet API listens");
        let access = auth::Access::new(client, &config.node_name);
        Ok(Server { listener, acceptor, shared: Arc::new(Shared { config, health, registry, access }) })
    }

    /// Serves until cancelled; connections that are open then are cut.
    pub async fn run(self, cancel: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let serve = serve(stream, peer, self.acceptor.clone(), self.shared.clone());
                    tokio::spawn(cancel.clone().run_until_cancelled_owned(serve));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: accepting again at once would spin.
                    warn!(%error, "cannot accept a connection to the kubelet API");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // A keystroke should not wait for the next one.
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|certificate| auth::user(certificate));
    let service = hyper::service::service_fn(move |request: Request| {
        let (shared, certificate) = (shared.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(answer(request, certificate, shared).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        debug!(%peer, %error, "connection to the kubelet API ended");
    }
}

async fn answer(request: Request, certificate: Option<auth::User>, shared: Arc<Shared>) -> Response {
    let user = match shared.access.authenticate(&request, certificate).await {
        Ok(user) => user,
        Err(refusal) => return refusal,
    };
    let Some(route) = route::parse(request.uri().path()) else { return text(404, "404 page not found\n") };
    if let Err(refusal) = shared.access.authorize(&user, request.method(), &route).await {
        return refusal;
    }
    handle::handle(route, request, &shared).await
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A response with a text body.
fn text(status: u16, body: impl Into<Bytes>) -> Response {
    content(status, "text/plain; charset=utf-8", full(body))
}

fn json(body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => content(200, "application/json", full(bytes)),
        Err(error) => text(500, error.to_string()),
    }
}

fn content(status: u16, type_: &'static str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(type_));
    response
}
