//! Network actions of probes and hooks: HTTP GET, TCP connect, gRPC health check.

use std::fmt::Display;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of a probe's answer that are looked at.
const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// What an HTTP GET brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// A redirect to another host, which is not followed.
    pub stopped_at: Option<String>,
}

/// A port by number or by its name in the container.
pub fn port(port: &IntOrString, container: Option<&Container>) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let named = container.into_iter().flat_map(|c| c.ports.iter().flatten()).find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => i64::from(port.container_port),
                None => name.parse().map_err(|_| format!("couldn't find port: {name:?} in the container"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// GETs as the action says, following redirects on the same host. TLS is not verified: the node
/// cannot know a workload's names.
pub async fn http_get(action: &HTTPGetAction, container: Option<&Container>, pod_ip: &str, agent: &str) -> Result<Answer, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_owned();
    let mut port = port(&action.port, container)?;
    let mut tls = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = action.path.as_deref().unwrap_or("/");
    let mut path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    for _ in 0..=MAX_REDIRECTS {
        let (status, location, body) = get_once(action, &host, port, tls, &path, agent).await?;
        let Some(location) = location.filter(|_| status.is_redirection()) else {
            return Ok(Answer { status: status.as_u16(), body, stopped_at: None });
        };
        let Ok(uri) = location.parse::<Uri>() else {
            return Ok(Answer { status: status.as_u16(), body, stopped_at: Some(location) });
        };
        if uri.host().is_some_and(|h| h.trim_matches(['[', ']']) != host) {
            return Ok(Answer { status: status.as_u16(), body, stopped_at: Some(location) });
        }
        if uri.host().is_some() {
            tls = uri.scheme_str() == Some("https");
            port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        }
        let target = uri.path_and_query().map_or("/", |p| p.as_str());
        path = match (target.starts_with('/'), path.rsplit_once('/')) {
            (true, _) => target.to_owned(),
            (false, Some((dir, _))) => format!("{dir}/{target}"),
            (false, None) => format!("/{target}"),
        };
    }
    Err("stopped after 10 redirects".into())
}

async fn get_once(
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    tls: bool,
    path: &str,
    agent: &str,
) -> Result<(StatusCode, Option<String>, String), String> {
    let url_host = bracketed(host);
    let scheme = if tls { "https" } else { "http" };
    let failed = |e: &dyn Display| format!("Get \"{scheme}://{url_host}:{port}{path}\": {e}");
    let mut request = Request::get(path).body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    let headers = request.headers_mut();
    for custom in action.http_headers.iter().flatten() {
        let name = header::HeaderName::try_from(custom.name.as_str()).map_err(|e| failed(&e))?;
        let value = header::HeaderValue::try_from(custom.value.as_str()).map_err(|e| failed(&e))?;
        headers.append(name, value);
    }
    let mut default = |name: header::HeaderName, value: String| {
        if let (false, Ok(value)) = (headers.contains_key(&name), header::HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    };
    default(header::HOST, format!("{url_host}:{port}"));
    default(header::USER_AGENT, agent.to_owned());
    default(header::ACCEPT, "*/*".into());
    default(header::CONNECTION, "close".into());
    let stream = TcpStream::connect((host, port)).await.map_err(|e| failed(&format!("dial tcp {url_host}:{port}: {}", plain(&e))))?;
    if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(&e))?;
        let stream = connector().connect(name, stream).await.map_err(|e| failed(&e))?;
        exchange(stream, request).await.map_err(|e| failed(&e))
    } else {
        exchange(stream, request).await.map_err(|e| failed(&e))
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Option<String>, String), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    // The connection ends with the probe, also when the probe is cut off by its timeout.
    let _guard = AbortOnDrop(connection);
    let response = sender.send_request(request).await.map_err(|e| crate::error::chain(&e))?;
    let status = response.status();
    let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    let mut body = Limited::new(response.into_body(), MAX_BODY);
    let mut text = Vec::new();
    // A body that is cut or too long does not change the verdict.
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
    }
    Ok((status, location, String::from_utf8_lossy(&text).into_owned()))
}

/// Opens and closes a connection.
pub async fn tcp_connect(host: &str, port: u16) -> Result<(), String> {
    let connected = TcpStream::connect((host, port)).await;
    connected.map(drop).map_err(|e| format!("dial tcp {}:{port}: {}", bracketed(host), plain(&e)))
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.Health/Check` over plain HTTP/2; `Ok(false)` when the service does not serve.
pub async fn grpc_check(host: &str, port: u16, service: &str, agent: &str) -> Result<bool, String> {
    let target = format!("{}:{port}", bracketed(host));
    let failed = |e: &dyn Display| format!("failed to connect service \"{target}\": {e}");
    let stream = TcpStream::connect((host, port)).await.map_err(|e| failed(&plain(&e)))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let _guard = AbortOnDrop(tokio::spawn(connection));
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, agent)
        .body(Full::new(body.freeze()))
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let (parts, body) = response.into_parts();
    let collected = Limited::new(body, MAX_BODY).collect().await.map_err(|e| e.to_string())?;
    let grpc_status = |headers: &http::HeaderMap| headers.get("grpc-status").and_then(|s| s.to_str().ok()).map(str::to_owned);
    let code = collected.trailers().and_then(grpc_status).or_else(|| grpc_status(&parts.headers)).unwrap_or_else(|| "0".into());
    if code != "0" {
        return Err(match code.as_str() {
            "12" => "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
            code => format!("health rpc probe failed: grpc status {code}"),
        });
    }
    let mut data = collected.to_bytes();
    if data.len() < 5 {
        return Err("health rpc probe failed: empty answer".into());
    }
    data.advance(5);
    let answer = HealthCheckResponse::decode(data).map_err(|e| format!("health rpc probe failed: {e}"))?;
    Ok(answer.status == 1)
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// `connect: connection refused`, Go's wording, which users and tests look for.
fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => error.to_string(),
    }
}

fn connector() -> TlsConnector {
    static CONFIG: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(rustls::ALL_VERSIONS);
        // ring supports both protocol versions, so this cannot fail; the fallback keeps it panic-free.
        let builder = builder.unwrap_or_else(|_| rustls::ClientConfig::builder());
        let verifier = Arc::new(AnyServer(provider));
        Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    });
    TlsConnector::from(config.clone())
}

/// Probes ask whether a server answers, not who it is (as kubelet's).
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn serve(answers: Vec<String>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let n = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let answer = answer.replace("ECHO", &request.lines().next().unwrap().len().to_string());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn action(port: u16) -> HTTPGetAction {
        HTTPGetAction { port: IntOrString::Int(i32::from(port)), path: Some("/x".into()), ..Default::default() }
    }

    #[tokio::test]
    async fn follows_redirects_on_one_host_only() {
        let moved = "HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n";
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let port = serve(vec![moved.into(), ok.into()]).await;
        let answer = http_get(&action(port), None, "127.0.0.1", "t").await.unwrap();
        assert_eq!(answer, Answer { status: 200, body: "ok".into(), stopped_at: None });
        let away = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
        let port = serve(vec![away.into()]).await;
        let answer = http_get(&action(port), None, "127.0.0.1", "t").await.unwrap();
        assert_eq!(answer.stopped_at.as_deref(), Some("http://192.0.2.1/"));
    }

    #[tokio::test]
    async fn refused_connections_are_said_as_upstream_says_them() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = http_get(&action(port), None, "127.0.0.1", "t").await.unwrap_err();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"));
        assert!(tcp_connect("127.0.0.1", port).await.is_err());
        assert!(grpc_check("127.0.0.1", port, "", "t").await.is_err());
    }

    #[test]
    fn ports() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 81}]})).unwrap();
        assert_eq!(port(&IntOrString::String("web".into()), Some(&container)), Ok(81));
        assert_eq!(port(&IntOrString::String("80".into()), None), Ok(80));
        assert!(port(&IntOrString::String("none".into()), Some(&container)).is_err());
        assert!(port(&IntOrString::Int(70_000), None).is_err());
    }
}
