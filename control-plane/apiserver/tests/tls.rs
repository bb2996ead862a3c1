//! The server over its socket: certificates, anonymous requests, HTTP/1.1 and HTTP/2, impersonation.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{Cluster, start};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};
use xebec_apiserver::{
    pki::{Issued, Pki, issue_client},
    tls,
};

async fn serving() -> (Cluster, DropGuard) {
    let cluster = start().await;
    let cancel = CancellationToken::new();
    let (server, token) = (cluster.server.clone(), cancel.clone());
    tokio::spawn(async move { server.run(token).await.unwrap() });
    (cluster, cancel.drop_guard())
}

async fn ask(cluster: &Cluster, identity: Option<&Issued>, h2: bool, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Value, String) {
    let mut config = tls::client_config(&cluster.server.pki().cluster_ca.cert_pem, identity).unwrap();
    config.alpn_protocols = if h2 { vec![b"h2".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    let socket = TcpStream::connect(cluster.server.address()).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), socket).await.unwrap();
    let mut request =
        Request::builder().uri(if h2 { format!("https://localhost{path}") } else { path.to_string() }).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = if h2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default(), String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn certificates_decide_who_asks() {
    let (cluster, _running) = serving().await;
    let ca = &cluster.server.pki().cluster_ca;
    let admin = cluster.server.pki().admin().unwrap();
    for h2 in [false, true] {
        let (status, body, _) = ask(&cluster, Some(&admin), h2, "/api/v1/namespaces", &[]).await;
        assert_eq!((status, body["kind"].as_str()), (StatusCode::OK, Some("NamespaceList")));
    }
    let nobody = issue_client(ca, "nobody", &["none"]).unwrap();
    let (status, body, _) = ask(&cluster, Some(&nobody), true, "/api/v1/namespaces", &[]).await;
    assert_eq!(status, 403);
    assert_eq!(
        body["message"],
        "namespaces is forbidden: User \"nobody\" cannot list resource \"namespaces\" in API group \"\" at the cluster scope"
    );
    // Signed by another authority: not broken off, but told so.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = issue_client(&Pki::open(elsewhere.path()).unwrap().cluster_ca, "kubernetes-admin", &["system:masters"]).unwrap();
    let (status, body, _) = ask(&cluster, Some(&foreign), true, "/api/v1/namespaces", &[]).await;
    assert_eq!((status, body["reason"].as_str()), (StatusCode::UNAUTHORIZED, Some("Unauthorized")));
}

#[tokio::test]
async fn without_credentials_there_is_health_and_little_else() {
    let (cluster, _running) = serving().await;
    for path in ["/healthz", "/livez", "/readyz"] {
        let (status, _, text) = ask(&cluster, None, false, path, &[]).await;
        assert_eq!((status.as_u16(), text.as_str()), (200, "ok"), "{path}");
    }
    assert_eq!(ask(&cluster, None, false, "/version", &[]).await.1["minor"], "36");
    let (status, body, _) = ask(&cluster, None, false, "/api/v1/secrets", &[]).await;
    assert_eq!(status, 403);
    assert!(body["message"].as_str().unwrap().contains("system:anonymous"), "{body}");
    let (status, body, _) = ask(&cluster, None, false, "/api/v1/secrets", &[("authorization", "Bearer nonsense")]).await;
    assert_eq!((status.as_u16(), body["reason"].as_str()), (401, Some("Unauthorized")));
}

#[tokio::test]
async fn impersonation_takes_the_others_rights() {
    let (cluster, _running) = serving().await;
    let admin = cluster.server.pki().admin().unwrap();
    let (status, body, _) = ask(&cluster, Some(&admin), true, "/api/v1/secrets", &[("impersonate-user", "jane")]).await;
    assert_eq!(status, 403);
    assert!(body["message"].as_str().unwrap().contains("User \"jane\""), "{body}");
    let headers = [("impersonate-user", "jane"), ("impersonate-group", "system:masters")];
    assert_eq!(ask(&cluster, Some(&admin), true, "/api/v1/secrets", &headers).await.0, 200);
    let nobody = issue_client(&cluster.server.pki().cluster_ca, "nobody", &[]).unwrap();
    let (status, body, _) = ask(&cluster, Some(&nobody), true, "/api/v1/secrets", &headers).await;
    assert_eq!(status, 403);
    assert!(body["message"].as_str().unwrap().contains("cannot impersonate resource \"users\""), "{body}");
    assert_eq!(ask(&cluster, Some(&admin), true, "/api/v1/secrets", &[("impersonate-group", "x")]).await.0, 500);
}

#[tokio::test]
async fn a_server_that_stops_ends_watches_and_leaves() {
    let cluster = start().await;
    let cancel = CancellationToken::new();
    let (server, token) = (cluster.server.clone(), cancel.clone());
    let running = tokio::spawn(async move { server.run(token).await });
    let admin = cluster.server.pki().admin().unwrap();
    assert_eq!(ask(&cluster, Some(&admin), true, "/readyz", &[]).await.0, 200);
    let mut watch = cluster.watch("/api/v1/namespaces?watch=true&resourceVersion=0").await;
    watch.next().await.expect("a namespace there is");
    cancel.cancel();
    while watch.next().await.is_some() {}
    tokio::time::timeout(std::time::Duration::from_secs(20), running).await.expect("stops in time").unwrap().unwrap();
    assert!(TcpStream::connect(cluster.server.address()).await.is_err());
}
