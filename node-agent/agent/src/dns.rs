//! Cluster DNS with the dataplane as the one that has addresses.

use std::net::IpAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use xebec_dataplane::Dataplane;

use crate::{Config, Error};

struct Node(Arc<Dataplane>);

impl xebec_dns::Hold for Node {
    fn held(&self) -> Vec<IpAddr> {
        self.0.cluster_dns()
    }

    async fn hold(&self, addresses: Vec<IpAddr>) -> Result<(), String> {
        self.0.set_cluster_dns(addresses).await.map_err(|error| error.to_string())
    }
}

/// The name server, to be run; without one the node gives back the addresses an earlier agent may have had.
pub(crate) fn start(
    config: &Config,
    client: kube::Client,
    dataplane: Arc<Dataplane>,
    registry: &mut Registry,
    cancel: CancellationToken,
) -> Result<impl Future<Output = Result<(), Error>> + Send + use<>, Error> {
    let settings = config.dns()?;
    let metrics = xebec_dns::Metrics::default();
    if settings.is_some() {
        metrics.register(registry);
    }
    Ok(async move {
        match settings {
            Some(settings) => xebec_dns::run(settings, client, metrics, Arc::new(Node(dataplane)), cancel).await,
            None => {
                dataplane.set_cluster_dns(Vec::new()).await?;
                cancel.cancelled().await;
            }
        }
        Ok(())
    })
}
