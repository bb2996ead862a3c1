//! The running name server: follows the API, and answers at the addresses that nobody else has.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::answer::Zones;
use crate::forward::Forwarder;
use crate::listen::listen;
use crate::records::Records;
use crate::server::Server;
use crate::{Config, Metrics, watch};

/// Where clients expect a name server.
const PORT: u16 = 53;
/// How soon an address that could not be had is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// The node, which has addresses and tells its pods' policies what is behind them.
pub trait Hold: Send + Sync + 'static {
    /// The addresses it has since before the start.
    fn held(&self) -> Vec<IpAddr>;
    /// Makes these addresses, and no others, the node's own name server's. May be called again with the same.
    fn hold(&self, addresses: Vec<IpAddr>) -> impl Future<Output = Result<(), String>> + Send;
}

/// Answers until cancelled.
pub async fn run(config: Config, client: kube::Client, metrics: Metrics, node: Arc<impl Hold>, cancel: CancellationToken) {
    let Config { domain, addresses, ranges, resolv_conf, stubs } = config;
    let server = Arc::new(Server {
        zones: Zones { domain, servers: addresses.clone(), ranges },
        records: RwLock::new(Records::default()),
        synced: AtomicBool::new(false),
        forwarder: Forwarder::new(stubs, resolv_conf, addresses, metrics.clone()),
        metrics,
    });
    let changed = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    watch::start(&server, &client, &changed, &mut tasks);
    tasks.spawn({
        let server = server.clone();
        async move { server.forwarder.run().await }
    });
    // Until the API has said who has the addresses, what was so before stands.
    let mut wanted = node.held();
    wanted.retain(|address| server.zones.servers.contains(address));
    let mut held: Option<Vec<IpAddr>> = None;
    let mut listeners = Listeners::default();
    let mut said = String::new();
    loop {
        if server.synced.load(Ordering::Acquire) {
            wanted = ours(&server.zones, &server.records.read());
        }
        if held.as_ref() != Some(&wanted) {
            listeners.keep(&wanted).await;
            match node.hold(wanted.clone()).await {
                Ok(()) => {
                    if held.is_some() || !wanted.is_empty() {
                        tracing::info!(addresses = ?wanted, "cluster DNS of this node has");
                    }
                    wanted.iter().for_each(|address| listeners.start(&server, SocketAddr::new(*address, PORT)));
                    server.metrics.serving(wanted.len());
                    held = Some(wanted.clone());
                }
                Err(error) if error != said => {
                    tracing::error!(addresses = ?wanted, %error, "cluster DNS cannot have its addresses; trying again");
                    said = error;
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = changed.notified() => {}
            () = tokio::time::sleep(RETRY), if held.as_ref() != Some(&wanted) => {}
        }
    }
    listeners.keep(&[]).await;
}

/// The addresses that no Service has but the one that stands for the nodes' own name servers.
fn ours(zones: &Zones, records: &Records) -> Vec<IpAddr> {
    let free = |address: &&IpAddr| records.service_at(**address).is_none_or(|(_, service)| service.is_node_dns);
    zones.servers.iter().filter(free).copied().collect()
}

#[derive(Default)]
struct Listeners(BTreeMap<IpAddr, (CancellationToken, JoinHandle<()>)>);

impl Listeners {
    fn start(&mut self, server: &Arc<Server>, address: SocketAddr) {
        self.0.entry(address.ip()).or_insert_with(|| {
            let cancel = CancellationToken::new();
            (cancel.clone(), tokio::spawn(listen(server.clone(), address, cancel)))
        });
    }

    /// Ends those at other addresses, and waits until their sockets are closed.
    async fn keep(&mut self, addresses: &[IpAddr]) {
        let gone: Vec<IpAddr> = self.0.keys().filter(|address| !addresses.contains(address)).copied().collect();
        for address in gone {
            if let Some((cancel, task)) = self.0.remove(&address) {
                cancel.cancel();
                if let Err(error) = task.await {
                    tracing::error!(%address, %error, "a listener of cluster DNS ended unexpectedly");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Key, Service, Target};
    use hickory_proto::rr::Name;

    #[test]
    fn an_address_is_ours_unless_a_service_has_it() {
        let addresses: Vec<IpAddr> = ["10.96.0.10", "fd00:96::a"].map(|a| a.parse().unwrap()).into();
        let zones = Zones { domain: Name::from_ascii("cluster.local.").unwrap(), servers: addresses.clone(), ranges: Vec::new() };
        let mut records = Records::default();
        assert_eq!(ours(&zones, &records), addresses);
        let key = Key::new("kube-system", "kube-dns");
        let with = |is_node_dns| Service { target: Target::Addresses(vec![addresses[0]]), ports: Vec::new(), is_node_dns };
        records.set_service(key.clone(), Some(with(true)));
        assert_eq!(ours(&zones, &records), addresses);
        records.set_service(key.clone(), Some(with(false)));
        assert_eq!(ours(&zones, &records), addresses[1..]);
        records.set_service(key, None);
        assert_eq!(ours(&zones, &records), addresses);
    }
}
