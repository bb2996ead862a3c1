//! `xebec status`: what the cluster says of itself.

mod node;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{Api, Client, api::ListParams};
use tokio::time::Instant;

use crate::inspect::{Agent, Output};

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
    /// While waiting, believe a node only if its agent has renewed its lease after this moment (Unix time in microseconds): what is kept
    /// of an earlier run still calls its nodes Ready.
    #[arg(long)]
    renewed_since: Option<i64>,
    /// Ask the agent of this host for its devices, modes, map fill, lag, program sizes and drops, not the cluster for its nodes.
    #[arg(long, conflicts_with_all = ["wait", "nodes", "renewed_since"])]
    node: bool,
    #[command(flatten)]
    agent: Agent,
    /// How to print what the agent says.
    #[arg(short, long, value_enum, default_value = "text", requires = "node")]
    output: Output,
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
    if args.node {
        return node::run(&args.agent, args.output);
    }
    if let Some(seconds) = args.wait {
        wait_ready(&args.cluster, args.nodes, args.renewed_since, Duration::from_secs(seconds)).await?;
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

/// Waits until every node, and so many at least, is Ready and has renewed its lease since.
pub async fn wait_ready(cluster: &Cluster, least: usize, since: Option<i64>, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut client = None;
    loop {
        let lack = match &client {
            None => match cluster.client().await {
                Ok(made) => {
                    client = Some(made);
                    continue;
                }
                Err(error) => Some(format!("{error:#}")),
            },
            Some(client) => match nodes_and_leases(client).await {
                Ok((nodes, leases)) => lack(&nodes, &leases, least, since),
                Err(error) => Some(format!("the API server does not answer: {error}")),
            },
        };
        match lack {
            None => return Ok(()),
            Some(lack) if Instant::now() > deadline => bail!("after {} s: {lack}", patience.as_secs()),
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn nodes_and_leases(client: &Client) -> kube::Result<(Vec<Node>, Vec<Lease>)> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease").list(&ListParams::default()).await?;
    Ok((nodes.items, leases.items))
}

/// What is not yet as wanted; `None`: nothing.
fn lack(nodes: &[Node], leases: &[Lease], least: usize, since: Option<i64>) -> Option<String> {
    if nodes.len() < least {
        return Some(format!("{} of {least} nodes have registered", nodes.len()));
    }
    nodes.iter().find_map(|node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let (ready, message) = readiness(node);
        if !ready {
            return Some(format!("node {name} is not Ready: {message}"));
        }
        let lease = leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(name));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0.as_microsecond());
        let is_fresh = since.is_none_or(|since| renewed.is_some_and(|renewed| renewed >= since));
        (!is_fresh).then(|| format!("node {name} has not been heard of since its agent was started"))
    })
}

/// Whether a node is Ready, and what it says of it.
fn readiness(node: &Node) -> (bool, &str) {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) => (ready.status == "True", ready.message.as_deref().unwrap_or_default()),
        None => (false, "it has reported no condition"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "message": "because"}]}}))
        .unwrap()
    }

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"renewTime": renewed}})).unwrap()
    }

    #[test]
    fn a_node_is_believed_once_its_lease_is_renewed() {
        let since = Some(1_777_629_600_500_000);
        let lack = |nodes: &[Node], leases: &[Lease], since| lack(nodes, leases, 1, since);
        assert!(lack(&[], &[], since).unwrap().contains("0 of 1"));
        assert!(lack(&[node("False")], &[], since).unwrap().contains("because"));
        assert!(lack(&[node("True")], &[], since).unwrap().contains("has not been heard of"));
        assert!(lack(&[node("True")], &[lease("2026-05-01T10:00:00.499999Z")], since).is_some());
        assert_eq!(lack(&[node("True")], &[lease("2026-05-01T10:00:00.500000Z")], since), None);
        assert_eq!(lack(&[node("True")], &[], None), None);
    }
}
