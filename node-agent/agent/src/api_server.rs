//! How the API server is reached. A node whose Services are served by this agent cannot rely on the API server's Service
//! address while the agent starts: connections are dialled to addresses that are known otherwise, one after another, and
//! those that were learnt are kept for the next start.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api,
    api::ListParams,
    client::{Body, ConfigExt},
};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tower::BoxError;
use tracing::{info, warn};

use crate::{Config, Error};

/// How long one address may take to accept.
const CONNECT: Duration = Duration::from_secs(3);
/// A peer that answers no keep-alive for so long is gone; a watch on it would wait for ever.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The name every API server's certificate has, whichever address it is reached at.
const NAME: &str = "kubernetes.default.svc";

/// Addresses of the API server, in the order in which they are tried.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// `host:port`, as configured.
    given: Vec<String>,
    learnt: Arc<Mutex<Vec<SocketAddr>>>,
    /// The one that answered last.
    good: Arc<Mutex<Option<String>>>,
    file: PathBuf,
}

impl Known {
    /// What was given, and what was learnt by an earlier life.
    pub fn new(config: &Config) -> Result<Known, Error> {
        let given = config.api_servers.iter().map(|text| authority(text)).collect::<Result<_, _>>()?;
        let file = config.data_dir.join("api-servers.json");
        let learnt = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok(Known { given, learnt: Arc::new(Mutex::new(learnt)), good: Arc::default(), file })
    }

    /// The last good one first, then those given, those learnt, and what the client's own configuration says.
    fn in_order(&self, own: &str) -> Vec<String> {
        let good = self.good.lock().clone();
        let learnt: Vec<String> = self.learnt.lock().iter().map(ToString::to_string).collect();
        let all = good.into_iter().chain(self.given.iter().cloned()).chain(learnt).chain([own.to_owned()]);
        let mut seen = BTreeSet::new();
        all.filter(|address| seen.insert(address.clone())).collect()
    }

    /// Asks where the API server is and keeps the answer; keeps what it had if the answer is empty.
    pub async fn learn(&self, client: &kube::Client) -> Result<(), kube::Error> {
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
        let slices = api.list(&ListParams::default().labels("kubernetes.io/service-name=kubernetes")).await?;
        let found = endpoints(&slices.items);
        if found.is_empty() || *self.learnt.lock() == found {
            return Ok(());
        }
        info!(addresses = ?found, "addresses of the API server");
        if let Err(error) = write(&self.file, &found) {
            warn!(file = %self.file.display(), %error, "the API server's addresses cannot be kept for the next start");
        }
        *self.learnt.lock() = found;
        Ok(())
    }
}

/// Ready addresses of the Service `kubernetes`, at its port `https`.
fn endpoints(slices: &[EndpointSlice]) -> Vec<SocketAddr> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|port| port.name.as_deref().unwrap_or("https") == "https");
        for port in ports.filter_map(|port| u16::try_from(port.port?).ok()) {
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
                let addresses = endpoint.addresses.iter().filter(|_| ready).filter_map(|text| text.parse::<IpAddr>().ok());
                found.extend(addresses.map(|address| SocketAddr::new(address, port)));
            }
        }
    }
    found.into_iter().collect()
}

fn write(file: &Path, addresses: &[SocketAddr]) -> io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(addresses)?)?;
    std::fs::rename(new, file)
}

/// `host:port` of what an operator wrote: a URL, or a host with or without a port.
fn authority(text: &str) -> Result<String, Error> {
    let bad = || Error::Config(format!("API server {text:?} is neither https://HOST[:PORT] nor HOST[:PORT]"));
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(bad());
    }
    own_authority(&uri).ok_or_else(bad)
}

fn own_authority(uri: &Uri) -> Option<String> {
    let host = uri.host().filter(|host| !host.is_empty())?;
    Some(format!("{host}:{}", uri.port_u16().unwrap_or(443)))
}

/// A client that dials the known addresses, and verifies the name it means whichever of them answers.
pub(crate) fn client(mut config: kube::Config, known: Known) -> Result<kube::Client, BoxError> {
    let in_cluster = config.root_cert_file.is_some();
    if config.tls_server_name.is_none() && in_cluster {
        config.tls_server_name = Some(NAME.to_owned());
    }
    let connector = config.rustls_https_connector_with_connector(Dial { known })?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}

/// Makes TCP connections.
#[derive(Debug, Clone)]
struct Dial {
    known: Known,
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let known = self.known.clone();
        Box::pin(async move {
            let own = own_authority(&uri).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no host")))?;
            let mut failures = Vec::new();
            for address in known.in_order(&own) {
                match dial(&address).await {
                    Ok(stream) => {
                        *known.good.lock() = Some(address);
                        return Ok(TokioIo::new(stream));
                    }
                    Err(error) => failures.push(format!("{address}: {error}")),
                }
            }
            // What was good is not: the next attempt begins with what was given.
            *known.good.lock() = None;
            Err(io::Error::other(format!("no address of the API server answers ({})", failures.join("; "))))
        })
    }
}

async fn dial(address: &str) -> io::Result<TcpStream> {
    let connect = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2).with_retries(3);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(dir: &Path, servers: &[&str]) -> Config {
        let mut config = Config::new("a", None, dir.to_owned(), "/r".into());
        config.api_servers = servers.iter().map(|text| (*text).to_owned()).collect();
        config
    }

    #[test]
    fn addresses_are_written_in_many_ways() {
        for (text, wanted) in [
            ("https://10.0.0.1:6443", "10.0.0.1:6443"),
            ("https://api.example/", "api.example:443"),
            ("10.0.0.1:6443", "10.0.0.1:6443"),
            ("[2001:db8::1]:6443", "[2001:db8::1]:6443"),
            ("api.example", "api.example:443"),
        ] {
            assert_eq!(authority(text).unwrap(), wanted);
        }
        for text in ["", "http://a:1", "https://a/path", "a b"] {
            assert!(authority(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_was_learnt_is_known_at_the_next_start_and_tried_after_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"metadata": {}, "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}, {"name": "other", "port": 1}],
             "endpoints": [{"addresses": ["192.0.2.9"]}, {"addresses": ["192.0.2.8"], "conditions": {"ready": false}}]},
            {"metadata": {}, "addressType": "IPv6", "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["2001:db8::9"]}]},
        ]))
        .unwrap();
        let found = endpoints(&slices);
        assert_eq!(found, ["192.0.2.9:6443".parse().unwrap(), "[2001:db8::9]:6443".parse().unwrap()]);
        let config = config(dir.path(), &["cp.example:6443"]);
        write(&dir.path().join("api-servers.json"), &found).unwrap();
        let known = Known::new(&config).unwrap();
        let order = ["cp.example:6443", "192.0.2.9:6443", "[2001:db8::9]:6443", "10.96.0.1:443"];
        assert_eq!(known.in_order("10.96.0.1:443"), order);
        *known.good.lock() = Some("10.96.0.1:443".to_owned());
        assert_eq!(known.in_order("10.96.0.1:443")[0], "10.96.0.1:443");
        std::fs::write(dir.path().join("api-servers.json"), "{broken").unwrap();
        assert_eq!(Known::new(&config).unwrap().in_order("x:1"), ["cp.example:6443", "x:1"]);
    }

    #[tokio::test]
    async fn the_next_address_is_dialled_when_one_refuses() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = open.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        let known = Known::new(&config(dir.path(), &[&closed.to_string(), &address])).unwrap();
        let mut dial = Dial { known: known.clone() };
        let own: Uri = format!("https://{closed}").parse().unwrap();
        tower::Service::call(&mut dial, own.clone()).await.unwrap();
        assert_eq!(known.in_order("x:1")[0], address, "the good one comes first from now on");
        drop(open);
        let error = tower::Service::call(&mut dial, own).await.unwrap_err().to_string();
        assert!(error.contains(&closed.to_string()) && error.contains(&address), "{error}");
    }
}
