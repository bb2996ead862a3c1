//! One control plane for all tests of the process, a namespace for each, and a plain HTTPS client.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use xebec_apiserver::{Config, Server, UserInfo, pki};
use xebec_store::embedded;

/// Long enough for a slow machine; a test that passes ends much earlier.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Cluster {
    runtime: Runtime,
    server: Server,
    dir: PathBuf,
}

/// The control plane: API server and controllers, on a temporary folder.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // Removed when the process ends: nothing runs destructors of statics.
        let dir = tempfile::tempdir().unwrap().keep();
        remove_at_exit(&dir);
        let server = runtime.block_on(async {
            let store = Arc::new(embedded::open(dir.join("store"), embedded::Options::default()).unwrap());
            let server = Server::start(Config::new(&dir, "127.0.0.1:0".parse().unwrap()), store).await.unwrap();
            let cancel = CancellationToken::new();
            let controllers = xebec_controllers::Config {
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                ca_pem: server.pki().cluster_ca.cert_pem.clone(),
                ..Default::default()
            };
            let client = server.client(UserInfo::component("system:kube-controller-manager"));
            tokio::spawn(xebec_controllers::run(client, controllers, cancel.clone()));
            let serving = server.clone();
            tokio::spawn(async move { serving.run(cancel).await.unwrap() });
            server
        });
        Cluster { runtime, server, dir }
    })
}

fn remove_at_exit(dir: &std::path::Path) {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(dir) = DIR.get() {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
    if DIR.set(dir.to_path_buf()).is_ok() {
        // SAFETY: the function is of the type atexit asks for and does not unwind.
        unsafe { libc::atexit(remove) };
    }
}

/// Who sends a request.
#[derive(Clone)]
pub enum Identity {
    Nobody,
    Admin,
    /// A client certificate of the cluster's authority: name and groups.
    User(&'static str, &'static [&'static str]),
    /// A client certificate of another authority.
    Foreign(&'static str),
    Token(String),
}

pub struct Response {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, if the request was answered with the code.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }
}

impl Cluster {
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A new namespace with its default service account.
    pub fn namespace(&self, name: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.post("/api/v1/namespaces", &json!({"metadata": {"name": name}})).expect(201);
        self.until("the default service account", || self.get(&format!("/api/v1/namespaces/{name}/serviceaccounts/default")).code == 200);
        name
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < end, "waited too long for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"", &Identity::Admin)
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send_json("POST", path, body)
    }

    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.send_json("PUT", path, body)
    }

    pub fn delete(&self, path: &str) -> Response {
        self.send("DELETE", path, &[], b"", &Identity::Admin)
    }

    /// `kind` is `json`, `merge`, `strategic-merge` or `apply`.
    pub fn patch(&self, path: &str, kind: &str, body: &Value) -> Response {
        let media_type = match kind {
            "apply" => "application/apply-patch+yaml".to_string(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send("PATCH", path, &[("content-type", &media_type)], body.to_string().as_bytes(), &Identity::Admin)
    }

    pub fn send_json(&self, method: &str, path: &str, body: &Value) -> Response {
        self.send(method, path, &[("content-type", "application/json")], body.to_string().as_bytes(), &Identity::Admin)
    }

    /// One request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8], identity: &Identity) -> Response {
        self.try_send(method, path, headers, body, identity).unwrap_or_else(|e| panic!("{method} {path}: {e:#}"))
    }

    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        identity: &Identity,
    ) -> anyhow::Result<Response> {
        self.block_on(async {
            let exchange = async {
                let response = self.open(method, path, headers, body, identity).await?;
                let (parts, body) = response.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok(Response { code: parts.status.as_u16(), headers: parts.headers, body })
            };
            tokio::time::timeout(DEADLINE, exchange).await?
        })
    }

    /// Events of a watch until `enough` says so.
    pub fn watch(&self, path: &str, mut enough: impl FnMut(&[Value]) -> bool) -> Vec<Value> {
        let wait = async {
            let mut response = self.open("GET", path, &[], b"", &Identity::Admin).await.unwrap();
            let mut events: Vec<Value> = Vec::new();
            let mut pending = Vec::new();
            while !enough(&events) {
                let Some(frame) = response.body_mut().frame().await else { break };
                pending.extend_from_slice(frame.unwrap().data_ref().map(|b| &b[..]).unwrap_or_default());
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    events.push(serde_json::from_slice(&line).unwrap());
                }
            }
            events
        };
        self.block_on(async { tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("watch {path} hangs")) })
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        identity: &Identity,
    ) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.server.pki().cluster_ca.cert_pem.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let issued = match identity {
            Identity::Admin => Some(pki::issue_client(&self.server.pki().cluster_ca, "admin", &["system:masters"])?),
            Identity::User(name, groups) => Some(pki::issue_client(&self.server.pki().cluster_ca, name, groups)?),
            Identity::Foreign(name) => {
                let dir = tempfile::tempdir()?;
                Some(pki::issue_client(&pki::Pki::open(dir.path())?.cluster_ca, name, &["system:masters"])?)
            }
            Identity::Nobody | Identity::Token(_) => None,
        };
        let config = match issued {
            Some(issued) => {
                let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?)?
            }
            None => builder.with_no_client_auth(),
        };
        let address = self.server.address();
        let stream = tokio::net::TcpStream::connect(address).await?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Identity::Token(token) = identity {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body)))?).await?;
        // The sender must outlive a response that streams.
        tokio::spawn(async move {
            let _ = sender.ready().await;
        });
        Ok(response)
    }

    /// Runs kubectl; its output, or its complaint.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write;
        let mut child = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.dir)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("kubectl is needed: package kubernetes-client");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &str, input: &str) -> String {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        self.try_kubectl(&words, input).unwrap_or_else(|error| panic!("kubectl {arguments}: {error}"))
    }
}
