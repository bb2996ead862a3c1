//! The node agent: what kubelet, kube-proxy and a CNI plugin are elsewhere.
//!
//! This crate is the wiring. It registers the Node and renews its lease, serves the kubelet's HTTPS API, and runs the pod
//! manager and the dataplane. Ending it, in whatever way, ends no container and no forwarding. Beside an upstream kubelet it is
//! the dataplane alone (see [`Config::dataplane_only`]), which goes only with the DaemonSet that brought it.

mod api_server;
mod config;
mod dns;
mod error;
mod health;
mod host_root;
mod lease;
mod metrics;
mod node;
pub mod proxy_health;
mod removal;
mod server;
mod standalone;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

pub use config::Config;
pub use error::Error;
use health::Health;
pub use removal::{install_cni, take_down};
pub use standalone::Owner;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The Kubernetes release whose behaviour this agent has, as `kubectl get nodes` shows it.
pub const KUBELET_VERSION: &str = "v1.36.0";

/// Runs the node until cancelled.
///
/// # Errors
/// When something that a restart would not mend is wrong: the kubeconfig, a certificate, a port, the BPF programs. What comes
/// and goes (the API server, containerd) is waited for, and told in the Node's Ready condition.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), Error> {
    config.check()?;
    let config = Arc::new(config);
    for dir in [&config.data_dir, &config.run_dir] {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    if config.dataplane_only {
        removal::make_sysctls_writable().map_err(Error::ReadOnlySysctls)?;
        removal::pins_outlive_us(&config.pin_dir)?;
    }
    let known = api_server::Known::new(&config)?;
    let kube_config = config.kube_config().await?;
    let client = match config.dataplane_only {
        true => api_server::client(kube_config, known.clone()),
        false => kube::Client::try_from(kube_config).map_err(Into::into),
    }
    .map_err(Error::Client)?;
    let health = Arc::new(Health::default());
    let mut registry = prometheus_client::registry::Registry::default();

    let dataplane = xebec_dataplane::Dataplane::start(config.dataplane()?, client.clone()).await?;
    dataplane.register_metrics(&mut registry);
    metrics::register(&mut registry, &config.node_name, health.clone());
    // Any task that ends takes the agent down with it: a supervisor's restart is better than half a node.
    let stop = cancel.child_token();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let (dataplane, stop) = (dataplane.clone(), stop.clone());
        async move { dataplane.run(stop).await.map_err(Error::from) }
    });
    tasks.spawn({
        let (config, client, dataplane, stop) = (config.clone(), client.clone(), dataplane.clone(), stop.clone());
        async move {
            proxy_health::run(config, client, dataplane, stop).await;
            Ok(())
        }
    });
    tasks.spawn(dns::start(&config, client.clone(), dataplane.clone(), &mut registry, stop.clone())?);
    let gone = Arc::new(AtomicBool::new(false));
    if config.dataplane_only {
        let server = standalone::Server::new(config.bind, dataplane.clone(), registry).await?;
        let (config, client, gone, stop) = (config.clone(), client.clone(), gone.clone(), stop.clone());
        tasks.spawn(async move {
            let owner = async {
                match &config.owner {
                    Some(owner) => standalone::watch_owner(owner, &client, &gone).await,
                    None => std::future::pending().await,
                }
            };
            let look_after = standalone::look_after(config.clone(), client.clone(), known, dataplane);
            tokio::select! {
                () = server.run(stop.clone()) => {}
                () = async { tokio::join!(owner, look_after); } => {}
            }
            Ok(())
        });
    } else {
        let server = server::Server::new(config.clone(), client.clone(), health.clone(), registry).await?;
        tasks.spawn({
            let stop = stop.clone();
            async move {
                server.run(stop).await;
                Ok(())
            }
        });
        tasks.spawn(health::watch(config.clone(), client.clone(), health.clone(), dataplane, stop.clone()));
        tasks.spawn({
            let (config, client, health, stop) = (config.clone(), client.clone(), health.clone(), stop.clone());
            async move {
                let Some(node) = node::register(&config, &client, &health, &stop).await else { return Ok(()) };
                let report = async {
                    if node.adopted {
                        health.settled().await;
                    }
                    node::report(&config, &client, &health, &stop).await;
                };
                tokio::join!(report, lease::renew(&config.node_name, &node.uid, &client, &stop));
                Ok(())
            }
        });
    }
    info!(node = config.node_name, "agent started");
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        stop.cancel();
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) if result.is_ok() => result = Err(error),
            Ok(Err(error)) => warn!(%error, "while stopping"),
            Err(error) if error.is_panic() => result = Err(Error::Task(error)),
            Err(_) => {}
        }
    }
    if gone.load(Ordering::SeqCst) && cancel.is_cancelled() {
        for failure in take_down(&config).await {
            warn!("{failure}");
        }
        info!("this node is left as it was found");
    }
    result
}
