//! Handing an upgraded connection (SPDY/3.1 or WebSocket) through to the container runtime's streaming server.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::{Request, Response, text};

/// Headers of one hop, which are not passed on. `Connection` and `Upgrade` are what an upgrade is made of.
const ONE_HOP: [HeaderName; 5] =
    [header::TRANSFER_ENCODING, header::TE, header::TRAILER, header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION];

/// Sends the request on to `url` and, if that switches protocols, joins both connections until either end closes.
pub(super) async fn forward(mut request: Request, url: &str) -> Response {
    let client_side = hyper::upgrade::on(&mut request);
    let response = match send(&request, url).await {
        Ok(response) => response,
        Err(reason) => {
            warn!("streaming to the container runtime: {reason}");
            return text(502, format!("container runtime's streaming server: {reason}"));
        }
    };
    let (head, body) = response.into_parts();
    let mut answer = http::Response::new(super::full(Bytes::new()));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = end_to_end(&head.headers);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let runtime_side = hyper::upgrade::on(http::Response::from_parts(head, body));
        tokio::spawn(join(client_side, runtime_side));
    } else {
        *answer.body_mut() = body.map_err(std::io::Error::other).boxed_unsync();
    }
    answer
}

async fn send(request: &Request, url: &str) -> Result<http::Response<hyper::body::Incoming>, String> {
    let bad = |error: &dyn std::fmt::Display| format!("bad URL {url:?}: {error}");
    let uri: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| bad(&error))?;
    let authority = uri.authority().ok_or_else(|| bad(&"it names no server"))?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to the container runtime ended");
        }
    });
    let mut onward = http::Request::new(Empty::<Bytes>::new());
    *onward.method_mut() = request.method().clone();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *onward.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| bad(&error))?;
    *onward.headers_mut() = end_to_end(request.headers());
    // Who called is settled; the caller's secrets end here.
    onward.headers_mut().remove(header::AUTHORIZATION);
    onward.headers_mut().remove(header::CONTENT_LENGTH);
    let host = authority.as_str().parse().map_err(|error: http::header::InvalidHeaderValue| bad(&error))?;
    onward.headers_mut().insert(header::HOST, host);
    sender.send_request(onward).await.map_err(|error| error.to_string())
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in &ONE_HOP {
        headers.remove(name);
    }
    headers
}

/// Copies both ways; the end of one direction is passed on while the other goes on.
async fn join(client: OnUpgrade, runtime: OnUpgrade) {
    let (client, runtime) = match tokio::try_join!(client, runtime) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "upgrade failed"),
    };
    match tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime)).await {
        Ok((up, down)) => debug!(up, down, "stream ended"),
        Err(error) => debug!(%error, "stream cut"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrade_headers_pass_and_one_hop_headers_do_not() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        headers.append("x-stream-protocol-version", "v4.channel.k8s.io".parse().unwrap());
        headers.append("x-stream-protocol-version", "v3.channel.k8s.io".parse().unwrap());
        headers.insert(header::TRANSFER_ENCODING, "chunked".parse().unwrap());
        let passed = end_to_end(&headers);
        assert_eq!(passed.get_all("x-stream-protocol-version").iter().count(), 2);
        assert!(passed.contains_key(header::UPGRADE) && passed.contains_key(header::CONNECTION));
        assert!(!passed.contains_key(header::TRANSFER_ENCODING));
    }
}
