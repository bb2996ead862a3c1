//! Accepting TLS connections and serving HTTP/1.1 and HTTP/2 on them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Peer, Response};
use crate::{core::Core, tls::ClientCertificates};

/// A client that has not finished its handshake by then is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may go on after cancellation.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until cancelled, then lets requests under way finish.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, clients: ClientCertificates, core: Arc<Core>, cancel: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    loop {
        let (socket, address) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of descriptors or a connection that died while queued: neither may end the server.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, clients, core, watcher) = (acceptor.clone(), clients.clone(), core.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
            };
            let certificate = stream.get_ref().1.peer_certificates().map(|chain| clients.identify(chain));
            let peer = Peer::Remote { address, certificate };
            let service = service_fn(move |request: http::Request<Incoming>| {
                let (core, peer) = (core.clone(), peer.clone());
                let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                async move { Ok::<Response, std::convert::Infallible>(core.serve(request, peer).await) }.boxed()
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            // 250 streams a connection as upstream; keep-alive pings find clients that are gone.
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(250)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(15));
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                log_connection_end(address, error.as_ref());
            }
        });
    }
    drop(listener);
    // Watches would keep their connections open to the end of the drain.
    core.stopping.cancel();
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::debug!("connections still open at shutdown were cut off");
    }
}

fn log_connection_end(address: SocketAddr, error: &(dyn std::error::Error + 'static)) {
    tracing::debug!(%address, error, "connection ended");
}
