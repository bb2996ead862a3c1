//! A server on an embedded store in a directory of its own, asked without a socket.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use xebec_apiserver::{
    Config, Server, UserInfo,
    http::{Body, Peer, full},
};
use xebec_store::embedded;

pub struct Cluster {
    pub server: Server,
    pub dir: TempDir,
    pub store: Arc<embedded::Embedded>,
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
    pub text: String,
}

pub async fn start() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(embedded::open(dir.path().join("store.redb"), embedded::Options::default()).unwrap());
    let server = Server::start(Config::new(dir.path(), "127.0.0.1:0".parse().unwrap()), store.clone()).await.unwrap();
    Cluster { server, dir, store }
}

impl Cluster {
    /// Sends a request as the administrator and returns the head of the answer.
    pub async fn raw(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> http::Response<Body> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(full(body)).unwrap();
        self.server.core().clone().serve(request, Peer::Internal(UserInfo::loopback())).await
    }

    pub async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        read(self.raw(method, path, headers, body).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, doc: Value) -> Answer {
        self.call(Method::POST, path, &[("content-type", "application/json")], doc.to_string()).await
    }

    pub async fn put(&self, path: &str, doc: Value) -> Answer {
        self.call(Method::PUT, path, &[("content-type", "application/json")], doc.to_string()).await
    }

    /// `kind` is `json-patch`, `merge-patch` or `strategic-merge-patch`.
    pub async fn patch(&self, path: &str, kind: &str, patch: Value) -> Answer {
        self.call(Method::PATCH, path, &[("content-type", &format!("application/{kind}+json"))], patch.to_string()).await
    }

    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.call(Method::DELETE, path, &[("content-type", "application/json")], body).await
    }

    /// Creates a namespace and returns its name.
    pub async fn namespace(&self, name: &str) -> String {
        let answer = self.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        name.to_string()
    }

    /// Opens a watch.
    pub async fn watch(&self, path: &str) -> Watch {
        let response = self.raw(Method::GET, path, &[], "").await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

pub async fn read(response: http::Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answer { status: parts.status, headers: parts.headers, body: serde_json::from_slice(&bytes).unwrap_or_default(), text }
}

pub struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    pub fn of(response: http::Response<Body>) -> Watch {
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn expect(&mut self, type_: &str, name: &str) -> Value {
        let event = self.next().await.expect("an event");
        assert_eq!(
            (event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap_or_default()),
            (type_, name),
            "{event}"
        );
        event
    }
}

/// Runs futures at the same time.
pub async fn together<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures::stream::iter(futures).buffer_unordered(16).collect().await
}

pub fn config_map(name: &str, labels: Value, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data})
}
