//! `xebec remove-node`: what is left to do in the API when a node is gone for good.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};
use tokio::time::Instant;

use crate::status::Cluster;

/// Which node.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Name of the Node object.
    node: String,
    /// Try for so many seconds while the API server does not answer.
    #[arg(long, default_value_t = 0)]
    wait: u64,
}

/// Deletes the Node object; its pods go with it. One that is gone is no error.
pub async fn run(args: &Args) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    loop {
        let nodes = Api::<Node>::all(args.cluster.client().await?);
        match nodes.delete(&args.node, &DeleteParams::default()).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code < 500 => bail!("cannot delete node {}: {}", args.node, status.message),
            Err(error) if Instant::now() > deadline => return Err(error).context(format!("cannot delete node {}", args.node)),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
