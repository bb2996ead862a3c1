//! One backend connection a request: connect, send, hand the answer back, join the two ends of an upgrade.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::target::{Scheme, Target};
use crate::{
    error::Result,
    http::{Request, Response, full},
    pki::Pki,
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that concern one connection (RFC 9110, 7.6.1), and credentials, which never leave the server.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::AUTHORIZATION,
    header::HOST,
];

/// How the server speaks TLS to backends.
pub struct Transport {
    kubelet: Arc<ClientConfig>,
    unverified: Arc<ClientConfig>,
}

/// A connection that could not be made or broke; the text is for the client.
pub struct Unreachable(pub String);

impl Transport {
    /// Trusts kubelets with the cluster's certificates, and shows them the server's own.
    pub fn new(pki: &Pki) -> Result<Transport> {
        let kubelet = tls::client_config(&pki.cluster_ca.cert_pem, Some(&pki.kubelet_client()?))?;
        let unverified = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(tls::provider())))
            .with_no_client_auth();
        Ok(Transport { kubelet: Arc::new(kubelet), unverified: Arc::new(unverified) })
    }

    /// Sends `request` to `target`. The answer may be an upgrade: then bytes are copied both ways until either side ends.
    pub async fn send(&self, target: &Target, mut request: Request) -> Result<Response, Unreachable> {
        let authority = if target.host.contains(':') {
            format!("[{}]:{}", target.host, target.port)
        } else {
            format!("{}:{}", target.host, target.port)
        };
        let connecting = async {
            let socket = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(|e| format!("dial tcp {authority}: {e}"))?;
            let _ = socket.set_nodelay(true);
            let config = match target.scheme {
                Scheme::Http => return Ok(Box::new(socket) as Box<dyn Duplex>),
                Scheme::Kubelet => &self.kubelet,
                Scheme::HttpsUnverified => &self.unverified,
            };
            let name = ServerName::try_from(target.host.clone()).map_err(|e| format!("{}: {e}", target.host))?;
            let stream = TlsConnector::from(config.clone()).connect(name, socket).await.map_err(|e| format!("tls {authority}: {e}"))?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(Unreachable)?,
            Err(_) => return Err(Unreachable(format!("dial tcp {authority}: i/o timeout"))),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| Unreachable(format!("{authority}: {e}")))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "backend connection ended");
            }
        });

        let client = hyper::upgrade::on(&mut request);
        let upgrade = wants_upgrade(request.headers());
        let (parts, body) = request.into_parts();
        let mut outgoing =
            http::Request::builder().method(parts.method).uri(&target.path_and_query).body(body).map_err(|e| Unreachable(e.to_string()))?;
        *outgoing.headers_mut() = forwarded(&parts.headers, upgrade);
        if let Ok(host) = HeaderValue::from_str(&authority) {
            outgoing.headers_mut().insert(header::HOST, host);
        }
        let mut answer = sender.send_request(outgoing).await.map_err(|e| Unreachable(format!("{authority}: {e}")))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let backend = hyper::upgrade::on(&mut answer);
            tokio::spawn(join(client, backend));
            let mut response = http::Response::new(full(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = answer.headers().clone();
            return Ok(response);
        }
        let (mut parts, body) = answer.into_parts();
        parts.version = http::Version::default();
        parts.headers = forwarded(&parts.headers, false);
        Ok(http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }
}

/// Whether the client asks to leave HTTP.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers.get_all(header::CONNECTION).iter().any(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("upgrade")))
}

fn forwarded(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let hop = NOT_FORWARDED.contains(name) || name.as_str().starts_with("impersonate-") || named.iter().any(|n| n == name.as_str());
        if !hop {
            out.append(name.clone(), value.clone());
        }
    }
    if upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        for value in headers.get_all(header::UPGRADE) {
            out.append(header::UPGRADE, value.clone());
        }
    }
    out
}

async fn join(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "upgrade not completed"),
    };
    // Either side may go away at any time; that is how streams end.
    if let Err(error) = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await {
        tracing::debug!(%error, "upgraded connection ended");
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// For pods and Services proxied as `https:`, whose certificates nobody vouches for (as upstream).
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hop_headers_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("connection", "Upgrade, X-Own"),
            ("upgrade", "SPDY/3.1"),
            ("x-own", "1"),
            ("impersonate-user", "a"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(wants_upgrade(&headers));
        let plain = forwarded(&headers, false);
        assert_eq!(plain.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-stream-protocol-version"]);
        let upgraded = forwarded(&headers, true);
        assert_eq!((upgraded["connection"].as_bytes(), upgraded["upgrade"].as_bytes()), (&b"Upgrade"[..], &b"SPDY/3.1"[..]));
    }

    /// Answers one upgrade and sends every byte back; anything else gets the path as its body.
    async fn echo_backend(socket: TcpStream) {
        let service = hyper::service::service_fn(|mut request: http::Request<hyper::body::Incoming>| async move {
            if !wants_upgrade(request.headers()) {
                return Ok::<_, std::convert::Infallible>(http::Response::new(full(request.uri().to_string())));
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
            let mut response = http::Response::new(full(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            response.headers_mut().insert(header::UPGRADE, request.headers()[header::UPGRADE].clone());
            Ok(response)
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await.unwrap();
    }

    async fn listen() -> (tokio::net::TcpListener, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// A front that forwards everything to `backend`; returns its port.
    async fn front(backend: u16) -> u16 {
        let dir = tempfile::tempdir().unwrap();
        let transport = Arc::new(Transport::new(&Pki::open(dir.path()).unwrap()).unwrap());
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let transport = transport.clone();
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let transport = transport.clone();
                    async move {
                        let target =
                            Target { scheme: Scheme::Http, host: "127.0.0.1".into(), port: backend, path_and_query: "/there?x=1".into() };
                        Ok::<Response, std::convert::Infallible>(
                            match transport.send(&target, request.map(|b| b.map_err(Into::into).boxed_unsync())).await {
                                Ok(response) => response,
                                Err(Unreachable(why)) => http::Response::builder().status(503).body(full(why)).unwrap(),
                            },
                        )
                    }
                });
                tokio::spawn(async move {
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
                });
            }
        });
        port
    }

    async fn ask(port: u16, request: &str, more: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        socket.write_all(more.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        socket.read_to_end(&mut head).await.unwrap();
        String::from_utf8(head).unwrap()
    }

    #[tokio::test]
    async fn an_upgrade_is_joined_until_a_side_ends() {
        let (listener, backend) = listen().await;
        tokio::spawn(async move { echo_backend(listener.accept().await.unwrap().0).await });
        let port = front(backend).await;
        let text = ask(port, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", "ping").await;
        assert!(text.starts_with("HTTP/1.1 101 ") && text.to_ascii_lowercase().contains("upgrade: spdy/3.1"), "{text}");
        assert!(text.ends_with("\r\n\r\nping"), "{text}");
    }

    #[tokio::test]
    async fn plain_requests_and_dead_backends() {
        let (listener, backend) = listen().await;
        let serving = tokio::spawn(async move {
            echo_backend(listener.accept().await.unwrap().0).await;
        });
        let port = front(backend).await;
        let text = ask(port, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("/there?x=1"), "{text}");
        serving.await.unwrap();
        let text = ask(port, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "").await;
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("dial tcp 127.0.0.1"), "{text}");
    }
}
