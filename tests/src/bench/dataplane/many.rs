//! An API server with many Services and endpoints, as much of it as a node's watches use. Answers are made before anything is
//! measured, so what is measured is the agent.

use std::{convert::Infallible, fmt::Write, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, sync::broadcast};

/// Objects a page, as client libraries ask for.
const PAGE: usize = 500;
const NODES: usize = 1000;

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
}

/// The address of a Service.
pub fn cluster_ip(service: usize) -> [u8; 4] {
    [10, 96, (service / 250) as u8, (service % 250 + 1) as u8]
}

/// The address of an endpoint; each `generation` has one of its own.
pub fn endpoint_ip(size: Size, service: usize, endpoint: usize, generation: usize) -> [u8; 4] {
    let number = service * size.endpoints + endpoint;
    let first = if generation == 0 { 128 } else { 64 };
    [10, first + (number >> 16) as u8, (number >> 8) as u8, (number + generation) as u8]
}

fn text(ip: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(ip).to_string()
}

fn service(number: usize) -> String {
    json!({
        "metadata": {"name": format!("service-{number}"), "namespace": format!("ns-{}", number % 100), "uid": format!("s{number}"), "resourceVersion": "1"},
        "spec": {
            "type": "ClusterIP", "clusterIP": text(cluster_ip(number)), "clusterIPs": [text(cluster_ip(number))], "ipFamilies": ["IPv4"],
            "selector": {"app": format!("app-{number}")}, "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    })
    .to_string()
}

/// A slice; the endpoint 0 is of the given generation.
fn slice(size: Size, number: usize, generation: usize, version: usize) -> String {
    let mut endpoints = String::new();
    for endpoint in 0..size.endpoints {
        let ip = text(endpoint_ip(size, number, endpoint, if endpoint == 0 { generation } else { 0 }));
        let node = (number * size.endpoints + endpoint) % NODES;
        let comma = if endpoint == 0 { "" } else { "," };
        // As an API server writes them, with what the dataplane does not read too.
        write!(
            endpoints,
            r#"{comma}{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{node}","zone":"zone-{}","targetRef":{{"kind":"Pod","namespace":"ns-{}","name":"app-{number}-7d4f8b9c6d-{endpoint}","uid":"0f9b6f9e-0000-4000-8000-{number:06}{endpoint:06}"}}}}"#,
            node % 3,
            number % 100
        )
        .expect("writing to a string");
    }
    format!(
        r#"{{"metadata":{{"name":"service-{number}-abcde","namespace":"ns-{ns}","uid":"e{number}","resourceVersion":"{version}","labels":{{"kubernetes.io/service-name":"service-{number}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{endpoints}]}}"#,
        ns = number % 100
    )
}

/// The server.
#[derive(Clone)]
pub struct Many {
    size: Size,
    services: Arc<Vec<Bytes>>,
    slices: Arc<Vec<Bytes>>,
    changes: broadcast::Sender<Bytes>,
}

impl Many {
    /// Makes every answer.
    pub fn new(size: Size) -> Many {
        let pages = |kind: &str, object: &dyn Fn(usize) -> String| {
            let pages = size.services.div_ceil(PAGE);
            let page = |page: usize| {
                let items: Vec<String> = (page * PAGE..((page + 1) * PAGE).min(size.services)).map(object).collect();
                let next = if page + 1 < pages { format!(r#","continue":"{}""#, page + 1) } else { String::new() };
                list(kind, &next, &items.join(","))
            };
            Arc::new((0..pages).map(page).collect::<Vec<Bytes>>())
        };
        let services = pages("ServiceList", &service);
        let slices = pages("EndpointSliceList", &|number| slice(size, number, 0, 1));
        Many { size, services, slices, changes: broadcast::Sender::new(64) }
    }

    /// Changes one endpoint of a Service, and tells every watch.
    pub fn change(&self, service: usize, generation: usize) {
        let object = slice(self.size, service, generation, 1 + generation);
        let object = object.replacen('{', r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","#, 1);
        let _ = self.changes.send(Bytes::from(format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n")));
    }

    /// Whether the agent watches endpoints.
    pub fn is_watched(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    /// Serves on a loopback port.
    pub async fn serve(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the API server")?;
        let address = listener.local_addr()?;
        let many = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // As API servers do: else a change now and then waits for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                let many = many.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let answer = many.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(address)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let query = request.uri().query().unwrap_or_default();
        let watch = query.contains("watch=");
        let page = query.split('&').find_map(|pair| pair.strip_prefix("continue=")?.parse::<usize>().ok()).unwrap_or(0);
        let body = match (request.uri().path(), watch) {
            ("/apis/discovery.k8s.io/v1/endpointslices", true) => return stream(self.changes.subscribe()),
            (_, true) => return stream(broadcast::channel(1).0.subscribe()),
            ("/api/v1/services", false) => self.services[page.min(self.services.len() - 1)].clone(),
            ("/apis/discovery.k8s.io/v1/endpointslices", false) => self.slices[page.min(self.slices.len() - 1)].clone(),
            ("/api/v1/nodes", false) => list("NodeList", "", r#"{"metadata":{"name":"bench"},"spec":{"podCIDRs":["10.244.7.0/24"]}}"#),
            ("/api/v1/pods", false) => list("PodList", "", ""),
            ("/api/v1/namespaces", false) => list("NamespaceList", "", r#"{"metadata":{"name":"default"}}"#),
            ("/apis/networking.k8s.io/v1/networkpolicies", false) => list("NetworkPolicyList", "", ""),
            (_, false) => list("List", "", ""),
        };
        let response = Response::builder().header("content-type", "application/json");
        response.body(BoxBody::new(Full::new(body))).expect("a response")
    }
}

fn list(kind: &str, next: &str, items: &str) -> Bytes {
    let version = match kind {
        "EndpointSliceList" => "discovery.k8s.io/v1",
        "NetworkPolicyList" => "networking.k8s.io/v1",
        _ => "v1",
    };
    Bytes::from(format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{{"resourceVersion":"1"{next}}},"items":[{items}]}}"#))
}

/// A watch that lasts as long as its client; one without changes is silent.
fn stream(changes: broadcast::Receiver<Bytes>) -> Response<BoxBody<Bytes, Infallible>> {
    let lines = futures::stream::unfold(changes, |mut changes| async move {
        match changes.recv().await {
            Ok(line) => Some((Ok(Frame::data(line)), changes)),
            // Nothing will come.
            Err(_) => std::future::pending().await,
        }
    });
    Response::builder().header("content-type", "application/json").body(BodyExt::boxed(StreamBody::new(lines))).expect("a response")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_what_an_api_server_sends() {
        use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
        let size = Size { services: 3, endpoints: 25 };
        let service: Service = serde_json::from_str(&service(2)).unwrap();
        assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.3"));
        let slice: EndpointSlice = serde_json::from_str(&slice(size, 2, 1, 2)).unwrap();
        let endpoints = slice.endpoints.unwrap();
        assert_eq!(
            (endpoints.len(), endpoints[0].addresses[0].as_str(), endpoints[1].addresses[0].as_str()),
            (25, "10.64.0.51", "10.128.0.51")
        );
    }

    #[test]
    fn no_two_endpoints_have_the_same_address() {
        let size = Size { services: 10_000, endpoints: 25 };
        let mut seen = std::collections::BTreeSet::new();
        assert!((0..10_000).all(|service| seen.insert(cluster_ip(service))));
        assert!((0..10_000).all(|service| (0..25).all(|endpoint| seen.insert(endpoint_ip(size, service, endpoint, 0)))));
    }
}
