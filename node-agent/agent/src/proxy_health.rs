//! What load balancers outside the cluster ask a node: `healthCheckNodePort` of Services, and `/healthz` and `/livez` of
//! the service proxy.
//!
//! A load balancer that gets no answer takes the node out, while its forwarding goes on without the agent. So another
//! process answers, the responder: it is started by the agent, outlives it, and is found again by the next one at its
//! socket. The agent tells it a [`Report`] at each change. While there is no agent it says what was last reported, which
//! is also what the maps still do.

mod answer;
mod responder;

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use xebec_dataplane::{Dataplane, ProxyHealth};

use crate::Config;
pub use responder::respond;

/// A responder that speaks another version is replaced.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");
/// How often the report is sent if nothing changes: ports that were taken are tried again.
const REPEAT: Duration = Duration::from_secs(10);
/// How long map writes may be late before the proxy counts as broken (kube-proxy's is twice its sync period).
const LATE: Duration = Duration::from_secs(60);
/// Pause before a responder is started again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a responder may take to open its socket.
const START: Duration = Duration::from_secs(10);

/// What is told to the responder, one JSON document a line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Report {
    /// End; nothing else counts then.
    leave: bool,
    /// Port of `/healthz` and `/livez`.
    port: u16,
    /// The maps follow the API.
    healthy: bool,
    /// The node is not about to go.
    eligible: bool,
    /// None: not known yet, so those that are answered for stay.
    services: Option<Vec<Service>>,
}

/// A Service with a health check port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
    local_endpoints: Endpoints,
}

/// Ready endpoints on this node by family: kube-proxy has a proxy for each, which answers at addresses of its own family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Endpoints {
    v4: usize,
    v6: usize,
}

/// What the responder says: at first its version, then after each report which ports it could not open.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reply {
    version: String,
    failed: Vec<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    /// None: the proxy's own port.
    service: Option<(String, String)>,
    port: u16,
    error: String,
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("health.sock")
}

/// Keeps a responder running and informed until cancelled, and leaves it running then.
pub(crate) async fn run(config: Arc<Config>, client: kube::Client, dataplane: Arc<Dataplane>, cancel: CancellationToken) {
    let mut said = String::new();
    loop {
        let error = tokio::select! {
            () = cancel.cancelled() => return,
            Err(error) = inform(&config, &client, &dataplane) => error.to_string(),
        };
        if error != said {
            warn!(%error, "load balancers that check this node may get no answer; trying again");
            said = error;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Reports to a responder; ends when that is gone.
async fn inform(config: &Config, client: &kube::Client, dataplane: &Dataplane) -> io::Result<()> {
    let (reader, mut writer) = responder(config).await?.into_split();
    let mut replies = BufReader::new(reader).lines();
    let mut facts = dataplane.proxy_health();
    let mut late_since: Option<Instant> = None;
    let mut failed = Vec::new();
    loop {
        let now = facts.borrow_and_update().clone();
        late_since = if now.settled { None } else { late_since.or(Some(Instant::now())) };
        let healthy = late_since.is_none_or(|since| since.elapsed() < LATE);
        writer.write_all(line(&report(config, &now, healthy))?.as_bytes()).await?;
        let reply: Reply = read(replies.next_line().await?)?;
        for failure in reply.failed.iter().filter(|f| !failed.contains(*f)) {
            tell(config, client, failure).await;
        }
        failed = reply.failed;
        tokio::select! {
            changed = facts.changed() => changed.map_err(io::Error::other)?,
            // The responder speaks only when it is spoken to: this is its end.
            said = replies.next_line() => { read::<Reply>(said?)?; }
            () = tokio::time::sleep(REPEAT) => {}
        }
    }
}

fn report(config: &Config, facts: &ProxyHealth, healthy: bool) -> Report {
    let service = |s: &xebec_dataplane::HealthCheck| Service {
        namespace: s.namespace.clone(),
        name: s.name.clone(),
        port: s.port,
        local_endpoints: Endpoints { v4: s.local_endpoints.v4, v6: s.local_endpoints.v6 },
    };
    Report {
        leave: false,
        port: config.proxy_health_port,
        healthy,
        eligible: !facts.leaving,
        services: facts.synced.then(|| facts.services.iter().map(service).collect()),
    }
}

fn line<T: Serialize>(value: &T) -> io::Result<String> {
    Ok(serde_json::to_string(value).map_err(io::Error::other)? + "\n")
}

fn read<T: for<'a> Deserialize<'a>>(line: Option<String>) -> io::Result<T> {
    let line = line.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the health responder ended"))?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// A connection to the responder that is there, else to a new one.
async fn responder(config: &Config) -> io::Result<UnixStream> {
    let path = socket(&config.run_dir);
    if let Ok(found) = UnixStream::connect(&path).await {
        let mut greeting = BufReader::new(found);
        let mut text = String::new();
        greeting.read_line(&mut text).await?;
        if read::<Reply>(Some(text)).is_ok_and(|r| r.version == VERSION) {
            return Ok(greeting.into_inner());
        }
        info!("replacing the health responder of another version");
        leave(greeting).await?;
    }
    spawn(&path)?;
    let started = Instant::now();
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let mut greeting = BufReader::new(stream);
                let mut text = String::new();
                greeting.read_line(&mut text).await?;
                return Ok(greeting.into_inner());
            }
            Err(error) if started.elapsed() > START => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Asks a responder to end, and waits until it has.
async fn leave(mut stream: BufReader<UnixStream>) -> io::Result<()> {
    stream.get_mut().write_all(line(&Report { leave: true, ..Report::default() })?.as_bytes()).await?;
    let mut rest = String::new();
    while stream.read_line(&mut rest).await? > 0 {}
    Ok(())
}

/// Ends the responder of a node that is taken down.
///
/// # Errors
/// If there is one that does not listen.
pub async fn end(run_dir: &Path) -> io::Result<()> {
    match UnixStream::connect(socket(run_dir)).await {
        Ok(stream) => leave(BufReader::new(stream)).await,
        Err(_) => Ok(()),
    }
}

/// Starts this same program as a responder, in a session of its own: no signal to the agent's group reaches it.
fn spawn(path: &Path) -> io::Result<()> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("health-responder").arg("--socket").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is a system call and may be made between fork and exec.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut child = command.spawn()?;
    // Waits for it, so that it does not stay as a zombie should it end before the agent.
    std::thread::Builder::new().name("health-responder".into()).spawn(move || child.wait()).map(drop)
}

/// As kube-proxy: an event at the Service.
async fn tell(config: &Config, client: &kube::Client, failure: &Failure) {
    let Failure { service, port, error } = failure;
    let Some((namespace, name)) = service else {
        warn!(port, %error, "the port of /healthz cannot be opened: does kube-proxy run on this node?");
        return;
    };
    let message = format!("node {} failed to start healthcheck \"{namespace}/{name}\" on port {port}: {error}", config.node_name);
    warn!("{message}");
    let now = jiff::Timestamp::now();
    let event = Event {
        metadata: ObjectMeta { generate_name: Some(format!("{name}.")), namespace: Some(namespace.clone()), ..Default::default() },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            ..Default::default()
        },
        reason: Some("FailedToStartServiceHealthcheck".into()),
        action: Some("Listen".into()),
        message: Some(message),
        type_: Some("Warning".into()),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        source: Some(EventSource { component: Some("xebec-agent".into()), host: Some(config.node_name.clone()) }),
        reporting_component: Some("xebec-agent".into()),
        reporting_instance: Some(config.node_name.clone()),
        ..Default::default()
    };
    if let Err(error) = Api::<Event>::namespaced(client.clone(), namespace).create(&PostParams::default(), &event).await {
        warn!(%error, "the event about a health check port cannot be written");
    }
}
