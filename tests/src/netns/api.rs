//! A Kubernetes API in memory, as much of it as a node's watches use: get, list, watch.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast};

/// Objects by collection path and "namespace/name".
#[derive(Default)]
struct Objects {
    version: u64,
    by_path: BTreeMap<String, BTreeMap<String, Value>>,
    log: Vec<(u64, String, Value)>,
    posts: Vec<String>,
}

/// The API; clones share their objects.
#[derive(Clone)]
pub struct Api {
    objects: Arc<Mutex<Objects>>,
    news: broadcast::Sender<()>,
    away: Arc<std::sync::atomic::AtomicBool>,
}

const KINDS: &[(&str, &str)] = &[
    ("Service", "/api/v1/services"),
    ("Pod", "/api/v1/pods"),
    ("Namespace", "/api/v1/namespaces"),
    ("Node", "/api/v1/nodes"),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies"),
    (CUSTOM, "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"),
];

/// A custom resource: not found until there is one.
const CUSTOM: &str = "ClusterNetworkPolicy";

fn path_of(object: &Value) -> &'static str {
    let kind = object["kind"].as_str().expect("an object has a kind");
    KINDS.iter().find(|(k, _)| *k == kind).expect("a kind of the fake API").1
}

fn name_of(object: &Value) -> String {
    let meta = &object["metadata"];
    format!("{}/{}", meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().expect("an object has a name"))
}

impl Default for Api {
    fn default() -> Api {
        Api::new()
    }
}

impl Api {
    /// Without any object.
    pub fn new() -> Api {
        Api { objects: Arc::default(), news: broadcast::Sender::new(16), away: Arc::default() }
    }

    /// Creates or replaces an object.
    pub fn put(&self, mut object: Value) {
        let mut objects = self.objects.lock().expect("not poisoned");
        objects.version += 1;
        let version = objects.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let path = path_of(&object);
        let known = objects.by_path.entry(path.into()).or_default().insert(name_of(&object), object.clone());
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        objects.log.push((version, path.into(), json!({"type": kind, "object": object})));
        drop(objects);
        let _ = self.news.send(());
    }

    /// Deletes an object.
    pub fn delete(&self, kind: &str, name: &str) {
        let mut objects = self.objects.lock().expect("not poisoned");
        let path = path_of(&json!({"kind": kind}));
        let Some(mut object) = objects.by_path.get_mut(path).and_then(|of| of.remove(name)) else {
            return;
        };
        objects.version += 1;
        let version = objects.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        objects.log.push((version, path.into(), json!({"type": "DELETED", "object": object})));
        drop(objects);
        let _ = self.news.send(());
    }

    /// From now on every request fails, as with an API server that is down.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, std::sync::atomic::Ordering::SeqCst);
        let _ = self.news.send(());
    }

    /// Where something was to be made, which this API takes no part in.
    pub fn posts(&self) -> Vec<String> {
        self.objects.lock().expect("not poisoned").posts.clone()
    }

    /// A client on it. Call it inside a runtime.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        kube::Client::new(service, "default")
    }

    /// Answers over HTTP for as long as the runtime lives.
    pub async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let api = self.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = api.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<BoxBody<Bytes, Infallible>> {
        let full = |status: StatusCode, body: Value| {
            let body = BoxBody::new(Full::new(Bytes::from(body.to_string())));
            Response::builder().status(status).header("content-type", "application/json").body(body).expect("a response")
        };
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            return full(
                StatusCode::SERVICE_UNAVAILABLE,
                json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": "away"}),
            );
        }
        let path = request.uri().path().trim_end_matches('/').to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut objects = self.objects.lock().expect("not poisoned");
        if request.method() == http::Method::POST {
            objects.posts.push(path.clone());
        }
        let undefined = path == path_of(&json!({"kind": CUSTOM})) && !objects.by_path.contains_key(&path);
        if undefined || !KINDS.iter().any(|(_, p)| *p == path) {
            return match find(&objects, &path) {
                Some(object) => full(StatusCode::OK, object),
                None => full(
                    StatusCode::NOT_FOUND,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": format!("{path} not found")}),
                ),
            };
        }
        if query.contains("watch=") {
            let from = query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok()).unwrap_or(0);
            drop(objects);
            return self.watch(path, from);
        }
        let items: Vec<Value> = objects.by_path.get(&path).into_iter().flat_map(|of| of.values().cloned()).collect();
        let kind = KINDS.iter().find(|(_, p)| *p == path).map(|(k, _)| *k).unwrap_or_default();
        full(
            StatusCode::OK,
            json!({
                "kind": format!("{kind}List"), "apiVersion": "v1",
                "metadata": {"resourceVersion": objects.version.to_string()}, "items": items,
            }),
        )
    }

    fn watch(&self, path: String, from: u64) -> Response<BoxBody<Bytes, Infallible>> {
        let (api, news) = (self.clone(), self.news.subscribe());
        let stream = futures::stream::unfold((api, news, from, path), |(api, mut news, mut from, path)| async move {
            loop {
                if api.away.load(std::sync::atomic::Ordering::SeqCst) {
                    return None;
                }
                let lines: String = {
                    let objects = api.objects.lock().expect("not poisoned");
                    let seen = objects.log.partition_point(|(v, _, _)| *v <= from);
                    let new = objects.log[seen..].iter().filter(|(_, p, _)| *p == path);
                    let lines = new.map(|(_, _, event)| format!("{event}\n")).collect();
                    from = objects.version;
                    lines
                };
                if !lines.is_empty() {
                    return Some((Ok(Frame::data(Bytes::from(lines))), (api, news, from, path)));
                }
                if let Err(broadcast::error::RecvError::Closed) = news.recv().await {
                    return None;
                }
            }
        });
        let body = BodyExt::boxed(StreamBody::new(stream));
        Response::builder().header("content-type", "application/json").body(body).expect("a response")
    }
}

fn find(objects: &Objects, path: &str) -> Option<Value> {
    // .../namespaces/NS/pods/NAME or .../namespaces/NAME.
    let parts: Vec<&str> = path.split('/').collect();
    let (collection, name) = match parts[..] {
        ["", "api", "v1", "namespaces", namespace, plural, name] => (format!("/api/v1/{plural}"), format!("{namespace}/{name}")),
        ["", "api", "v1", plural, name] => (format!("/api/v1/{plural}"), format!("/{name}")),
        _ => return None,
    };
    objects.by_path.get(&collection)?.get(&name).cloned()
}
