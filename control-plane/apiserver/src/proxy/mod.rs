//! The way through the server to nodes, pods and Services: `pods/log`, `exec`, `attach`, `portforward`, and the
//! `proxy` subresources. Upgrades (SPDY, WebSocket) are joined as bytes, so their framing is between client and node.

mod forward;
mod target;

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use xebec_api::status::{self, ApiError};
use xebec_store::{RangeRequest, Store};

use self::{
    forward::{Transport, Unreachable, wants_upgrade},
    target::{Scheme, Target},
};
use crate::{
    error::Result,
    http::{Request, Response, collect, full, respond},
    pki::Pki,
    request_info::RequestInfo,
};

/// Bodies of failed kubelet calls are read up to here for the message.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Forwards requests; reads what it needs to know from the store.
pub struct Proxy {
    store: Arc<dyn Store>,
    transport: Transport,
}

impl Proxy {
    /// # Errors
    /// When the client certificate for kubelets cannot be made.
    pub fn new(store: Arc<dyn Store>, pki: &Pki) -> Result<Proxy> {
        Ok(Proxy { store, transport: Transport::new(pki)? })
    }

    /// Whether `info` is for [`Proxy::handle`].
    pub fn handles(info: &RequestInfo) -> bool {
        info.group.is_empty()
            && matches!(
                (info.resource.as_str(), info.subresource.as_str()),
                ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("services" | "nodes", "proxy")
            )
    }

    /// Answers a request that is authenticated, authorized and admitted.
    pub async fn handle(&self, info: &RequestInfo, request: Request) -> Response {
        let headers = request.headers().clone();
        match self.forward(info, request).await {
            Ok(response) => response,
            Err(error) => respond::error(&headers, &error),
        }
    }

    async fn forward(&self, info: &RequestInfo, request: Request) -> Result<Response, ApiError> {
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "log") => self.log(info, request).await,
            ("pods", "exec" | "attach" | "portforward") => self.stream(info, request).await,
            _ => self.proxy(info, request).await,
        }
    }

    async fn log(&self, info: &RequestInfo, request: Request) -> Result<Response, ApiError> {
        let pod = self.object("pods", &info.namespace, &info.name).await?;
        let container = target::container(&pod, info.query.get("container"))?;
        let path = target::log_path(&pod, &container, &info.query)?;
        // As upstream: a pod without a node has an empty log.
        let Some((host, port)) = self.node_of(&pod).await? else {
            return Ok(respond::text(StatusCode::OK, ""));
        };
        let backend = Target { scheme: Scheme::Kubelet, host, port, path_and_query: path };
        let answer = self.transport.send(&backend, request).await.map_err(|Unreachable(why)| {
            status::internal(&format!("Get \"https://{}:{}{}\": {why}", backend.host, backend.port, backend.path_and_query))
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(kubelet_error(answer, "pods", &info.name).await)
    }

    async fn stream(&self, info: &RequestInfo, request: Request) -> Result<Response, ApiError> {
        let pod = self.object("pods", &info.namespace, &info.name).await?;
        let path = match info.subresource.as_str() {
            "portforward" => target::port_forward_path(&pod, &info.query),
            verb => {
                target::check_not_completed(&pod)?;
                let container = target::container(&pod, info.query.get("container"))?;
                target::stream_path(verb, &pod, &container, &info.query)?
            }
        };
        let Some((host, port)) = self.node_of(&pod).await? else {
            return Err(status::bad_request(format!("pod {} does not have a host assigned", info.name)));
        };
        if !wants_upgrade(request.headers()) {
            return Err(status::bad_request("Upgrade request required"));
        }
        let backend = Target { scheme: Scheme::Kubelet, host, port, path_and_query: path };
        let answer = self
            .transport
            .send(&backend, request)
            .await
            .map_err(|Unreachable(why)| status::internal(&format!("error dialing backend: {why}")))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(kubelet_error(answer, "pods", &info.name).await)
    }

    async fn proxy(&self, info: &RequestInfo, mut request: Request) -> Result<Response, ApiError> {
        let (scheme, name, port) = target::split_name(&info.name)
            .ok_or_else(|| status::bad_request(format!("invalid {} request {:?}", info.resource.trim_end_matches('s'), info.name)))?;
        let (transport, host, port) = match info.resource.as_str() {
            "pods" => target::pod(&self.object("pods", &info.namespace, name).await?, scheme, port)?,
            "services" => {
                let service = self.object("services/specs", &info.namespace, name).await?;
                let slices = self.endpoint_slices(&info.namespace, name).await?;
                target::service(&service, &slices, scheme, port, rand::random_range(0..usize::MAX))?
            }
            _ => {
                let (host, kubelet_port) = target::kubelet(&self.object("minions", "", name).await?)?;
                match port {
                    "" => (Scheme::Kubelet, host, kubelet_port),
                    text => {
                        let number = text.parse().map_err(|_| status::bad_request(format!("invalid node port {text:?}")))?;
                        let scheme = match scheme {
                            _ if number == kubelet_port => Scheme::Kubelet,
                            "https" => Scheme::HttpsUnverified,
                            _ => Scheme::Http,
                        };
                        (scheme, host, number)
                    }
                }
            }
        };
        let root = info.rest.is_empty() && !request.uri().path().ends_with('/');
        if root && matches!(*request.method(), Method::GET | Method::HEAD) && !wants_upgrade(request.headers()) {
            return Ok(with_slash(request.uri()));
        }
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        let prefix = request.uri().path().strip_suffix(&info.rest).unwrap_or_default().trim_end_matches('/').to_string();
        if let Ok(value) = HeaderValue::from_str(&prefix) {
            request.headers_mut().insert("x-forwarded-uri", value);
        }
        let backend = Target { scheme: transport, host, port, path_and_query: format!("/{}{query}", info.rest) };
        self.transport
            .send(&backend, request)
            .await
            .map_err(|Unreachable(why)| status::service_unavailable(format!("error trying to reach service: {why}")))
    }

    /// Address and port of the kubelet that has the pod; `None` while it has no node.
    async fn node_of(&self, pod: &Value) -> Result<Option<(String, u16)>, ApiError> {
        match pod["spec"]["nodeName"].as_str() {
            None | Some("") => Ok(None),
            Some(name) => target::kubelet(&self.object("minions", "", name).await?).map(Some),
        }
    }

    async fn object(&self, storage: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let key =
            if namespace.is_empty() { format!("/registry/{storage}/{name}") } else { format!("/registry/{storage}/{namespace}/{name}") };
        let found = self.store.get(&key).await.map_err(|e| status::internal(&e.to_string()))?;
        let plural = match storage {
            "services/specs" => "services",
            "minions" => "nodes",
            other => other,
        };
        let kv = found.kv.ok_or_else(|| ApiError {
            code: 404,
            reason: "NotFound",
            message: format!("{plural} {name:?} not found"),
            details: json!({"name": name, "kind": plural}),
        })?;
        serde_json::from_slice(&kv.value).map_err(|e| status::internal(&format!("{key}: {e}")))
    }

    async fn endpoint_slices(&self, namespace: &str, service: &str) -> Result<Vec<Value>, ApiError> {
        let prefix = format!("/registry/endpointslices/{namespace}/");
        let found =
            self.store.range(RangeRequest { prefix, ..RangeRequest::default() }).await.map_err(|e| status::internal(&e.to_string()))?;
        let slices = found.kvs.iter().filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
        Ok(slices.filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == service).collect())
    }
}

/// A path without its last slash would break the relative links of what is served below it.
fn with_slash(uri: &http::Uri) -> Response {
    let location = format!("{}/{}", uri.path(), uri.query().map(|q| format!("?{q}")).unwrap_or_default());
    let mut response = http::Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// What a kubelet's refusal becomes (`GenericHttpResponseChecker` upstream).
async fn kubelet_error(answer: Response, resource: &str, name: &str) -> ApiError {
    let code = answer.status().as_u16();
    let body = collect(answer.into_body(), MAX_ERROR_BODY).await;
    let text = body.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_string()).unwrap_or_default();
    match code {
        400 => status::bad_request(text),
        500 => status::internal(&text),
        404 => ApiError {
            code,
            reason: "NotFound",
            message: format!("the server could not find the requested resource ( {resource} {name})"),
            details: json!({"name": name, "kind": resource, "causes": [{"reason": "UnexpectedServerResponse", "message": text}]}),
        },
        403 => ApiError { code, reason: "Forbidden", message: text, details: json!({"name": name, "kind": resource}) },
        503 => status::service_unavailable(text),
        _ => ApiError {
            code,
            reason: "Unknown",
            message: format!("an error on the server ({text:?}) has prevented the request from succeeding"),
            details: json!({"name": name, "kind": resource, "causes": [{"reason": "UnexpectedServerResponse", "message": text}]}),
        },
    }
}
