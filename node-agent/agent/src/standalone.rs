//! What the agent does beside an upstream kubelet, in place of the Node object, the lease and the kubelet API: it tells how it
//! is over HTTP, says that the node's network is there, keeps the API server's addresses, and notices when it is taken away.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xebec_dataplane::Dataplane;

use crate::{Config, Error, api_server::Known};

/// How often the Node's condition and the API server's addresses are looked at.
const EVERY: Duration = Duration::from_secs(60);
/// How often while the API server does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// `/livez`, `/readyz` and `/metrics` for kubelet's probes and monitoring, where kube-proxy has its metrics.
pub(crate) struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    dataplane: Arc<Dataplane>,
    registry: Registry,
}

impl Server {
    pub async fn new(address: SocketAddr, dataplane: Arc<Dataplane>, registry: Registry) -> Result<Server, Error> {
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        info!(%address, "health and metrics");
        Ok(Server { listener, shared: Arc::new(Shared { dataplane, registry }) })
    }

    pub async fn run(self, cancel: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: accepting again at once would spin.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let shared = self.shared.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let answer = answer(request.uri().path(), &shared);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(hyper_util::rt::TokioTimer::new());
            tokio::spawn(cancel.clone().run_until_cancelled_owned(async move {
                if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                    debug!(%error, "a connection ended");
                }
            }));
        }
    }
}

fn answer(path: &str, shared: &Shared) -> Response<Full<Bytes>> {
    let (code, text) = match path {
        // Forwarding does not depend on the API server, so a restart would mend nothing while that is away.
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => {
            let status = shared.dataplane.status();
            match status.ready {
                true => (StatusCode::OK, "ok\n".to_owned()),
                false => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", status.waiting_for.join(", "))),
            }
        }
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response
}

/// Keeps the API server's addresses and, once pods can be set up, the Node's condition.
pub(crate) async fn look_after(config: Arc<Config>, client: kube::Client, known: Known, dataplane: Arc<Dataplane>) {
    let mut said = None;
    loop {
        let learnt = known.learn(&client).await;
        let told = match dataplane.status().ready {
            true => network_is_there(&config.node_name, &client).await,
            false => Ok(()),
        };
        let failed = learnt.and(told).err().map(|error| error.to_string());
        if let Some(error) = failed.as_ref().filter(|_| failed != said) {
            warn!(%error, "cannot look after the node's object");
        }
        let pause = match failed {
            None if dataplane.status().ready => EVERY,
            _ => RETRY,
        };
        said = failed;
        tokio::time::sleep(pause).await;
    }
}

/// A cloud's controller creates nodes with `NetworkUnavailable`, which keeps pods away until the network's agent takes it back.
async fn network_is_there(name: &str, client: &kube::Client) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(name).await?;
    if !says_unavailable(&node) {
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    let now = format!("{:.0}", now);
    let patch = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable", "status": "False", "reason": "XebecIsUp", "message": "xebec sets up this node's pods",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    info!("the node's condition NetworkUnavailable is taken back");
    Ok(())
}

fn says_unavailable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "NetworkUnavailable" && condition.status != "False")
}

/// The DaemonSet that runs this agent. When it is deleted the node shall be left as it was found; when its pod is replaced,
/// nothing may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub namespace: String,
    pub name: String,
}

impl std::str::FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Owner, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Owner { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
        }
    }
}

/// Keeps `gone` true while the owner is deleted. Its object goes before its pods and, most likely, before its rights: so it is
/// watched, not asked for at the end.
pub(crate) async fn watch_owner(owner: &Owner, client: &kube::Client, gone: &AtomicBool) {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), &owner.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", owner.name));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let before = gone.swap(seen.after(&event), Ordering::SeqCst);
                if gone.load(Ordering::SeqCst) && !before {
                    info!(
                        daemonset = owner.name,
                        namespace = owner.namespace,
                        "deleted: this node is left as it was found when the agent ends"
                    );
                }
            }
            Err(error) => debug!(%error, "the DaemonSet cannot be watched"),
        }
    }
}

/// What the events about one object amount to.
#[derive(Debug, Default)]
struct Seen {
    known: bool,
    listed: bool,
    orphaned: bool,
    gone: bool,
}

impl Seen {
    /// Whether the object is deleted, and its pods with it.
    fn after(&mut self, event: &watcher::Event<DaemonSet>) -> bool {
        match event {
            watcher::Event::Init => self.listed = false,
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                (self.known, self.listed) = (true, true);
                self.orphaned = object.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == "orphan");
                self.gone = object.metadata.deletion_timestamp.is_some() && !self.orphaned;
            }
            // A list without it counts only if it was there before: one that never was did not start this agent.
            watcher::Event::InitDone => self.gone = self.known && !self.listed && !self.orphaned,
            // Pods that were orphaned wait for another DaemonSet of that name.
            watcher::Event::Delete(_) => self.gone = !self.orphaned,
        }
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_namespace_and_name() {
        let owner: Owner = "kube-system/xebec".parse().unwrap();
        assert_eq!((owner.namespace.as_str(), owner.name.as_str()), ("kube-system", "xebec"));
        for bad in ["xebec", "/xebec", "kube-system/", "a/b/c", ""] {
            assert!(bad.parse::<Owner>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_a_condition_that_is_there_is_taken_back() {
        let node = |conditions: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}})).unwrap()
        };
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        assert!(says_unavailable(&node(json!([condition("NetworkUnavailable", "True")]))));
        assert!(says_unavailable(&node(json!([condition("NetworkUnavailable", "Unknown")]))));
        assert!(!says_unavailable(&node(json!([condition("NetworkUnavailable", "False"), condition("Ready", "True")]))));
        assert!(!says_unavailable(&node(json!([]))));
    }

    #[test]
    fn a_deleted_owner_is_told_from_one_that_never_was_and_from_one_whose_pods_stay() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let object = |meta: serde_json::Value| -> DaemonSet { serde_json::from_value(json!({"metadata": meta})).unwrap() };
        let there = || object(json!({"name": "xebec"}));
        let ending = || object(json!({"name": "xebec", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let orphaning = || object(json!({"name": "xebec", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]}));
        let after = |events: Vec<watcher::Event<DaemonSet>>| {
            let mut seen = Seen::default();
            events.iter().fold(false, |_, event| seen.after(event))
        };
        assert!(!after(vec![Init, InitDone]), "never there");
        assert!(!after(vec![Init, InitApply(there()), InitDone]));
        assert!(after(vec![Init, InitApply(there()), InitDone, Delete(there())]));
        assert!(after(vec![Init, InitApply(there()), InitDone, Apply(ending())]));
        assert!(after(vec![Init, InitApply(there()), InitDone, Init, InitDone]), "deleted while the watch was cut");
        assert!(!after(vec![Init, InitApply(there()), InitDone, Delete(there()), Apply(there())]), "made again");
        assert!(!after(vec![Init, InitApply(there()), InitDone, Apply(orphaning()), Delete(there())]));
    }
}
