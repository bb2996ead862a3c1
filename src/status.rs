//! `xebec status`: what the cluster says of itself.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use tokio::time::Instant;

/// Which cluster, and what to wait for.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Wait up to so many seconds until the API server answers and every node is Ready.
    #[arg(long)]
    wait: Option<u64>,
    /// So many nodes at least must be there.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
}

/// How to reach a cluster.
#[derive(Debug, clap::Args)]
pub struct Cluster {
    /// Credentials.
    #[arg(long, env = "KUBECONFIG", default_value = "/var/lib/xebec/server/admin.kubeconfig")]
    pub kubeconfig: PathBuf,
}

impl Cluster {
    /// A client for it.
    pub async fn client(&self) -> Result<Client> {
        let cannot = || format!("cannot use the kubeconfig {}", self.kubeconfig.display());
        let file = kube::config::Kubeconfig::read_from(&self.kubeconfig).with_context(cannot)?;
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.with_context(cannot)?;
        Client::try_from(config).with_context(cannot)
    }
}

/// Prints nodes and how many pods each has; fails if a node is not Ready.
pub async fn run(args: &Args) -> Result<()> {
    if let Some(seconds) = args.wait {
        wait_ready(&args.cluster, args.nodes, Duration::from_secs(seconds)).await?;
    }
    let client = args.cluster.client().await?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("cannot list nodes")?;
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await.context("cannot list pods")?;
    println!("{:<24} {:<9} {:<16} {:>5}  MESSAGE", "NODE", "STATUS", "ADDRESS", "PODS");
    for node in &nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let (ready, message) = readiness(node);
        let status = node.status.as_ref();
        let address = status.and_then(|status| status.addresses.as_ref()?.first()).map_or("", |address| &address.address);
        let on_it = pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name)).count();
        println!("{name:<24} {:<9} {address:<16} {on_it:>5}  {message}", if ready { "Ready" } else { "NotReady" });
    }
    if nodes.items.len() < args.nodes {
        bail!("{} of {} nodes have registered", nodes.items.len(), args.nodes);
    }
    if !nodes.iter().all(|node| readiness(node).0) {
        bail!("not every node is Ready");
    }
    Ok(())
}

/// Waits until every node, and so many at least, is Ready.
pub async fn wait_ready(cluster: &Cluster, least: usize, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut client = None;
    loop {
        let state = match &client {
            None => match cluster.client().await {
                Ok(made) => {
                    client = Some(made);
                    continue;
                }
                Err(error) => format!("{error:#}"),
            },
            Some(client) => match Api::<Node>::all(client.clone()).list(&ListParams::default()).await {
                Ok(nodes) if nodes.items.len() < least => format!("{} of {least} nodes have registered", nodes.items.len()),
                Ok(nodes) => match nodes.iter().find(|node| !readiness(node).0) {
                    None => return Ok(()),
                    Some(node) => format!("node {} is not Ready: {}", node.metadata.name.as_deref().unwrap_or_default(), readiness(node).1),
                },
                Err(error) => format!("the API server does not answer: {error}"),
            },
        };
        if Instant::now() > deadline {
            bail!("after {} s: {state}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a node is Ready, and what it says of it.
fn readiness(node: &Node) -> (bool, &str) {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) => (ready.status == "True", ready.message.as_deref().unwrap_or_default()),
        None => (false, "it has reported no condition"),
    }
}
