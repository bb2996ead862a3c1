//! The cluster DNS address on this node. It lies on the node's loopback device, so pods and processes of the node reach the node's
//! own name server there, and nothing else has to be translated.
//!
//! For policies it is not the node (which a pod may always reach) but what it stands for: a pod `k8s-app: kube-dns` of `kube-system`
//! with the ports `dns` and `dns-tcp`. So the egress rules that people write for CoreDNS mean it, and a pod that may reach nobody may
//! not ask for names either.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::compile::input::{Key, PodIn};
use crate::device::netlink::Netlink;
use crate::{Dataplane, Error};

const LOOPBACK: &str = "lo";
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Stands among the pods; no pod has such a name.
pub fn key() -> Key {
    Key::new("kube-system", "this node's cluster DNS")
}

fn as_pod(addresses: &BTreeSet<IpAddr>) -> Option<PodIn> {
    let port = |name: &str, protocol| (name.to_owned(), (protocol, 53));
    (!addresses.is_empty()).then(|| PodIn {
        labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
        ips: addresses.iter().copied().collect(),
        named_ports: [port("dns", UDP), port("dns-tcp", TCP)].into(),
        ..PodIn::default()
    })
}

/// Which addresses the node was given, so that another agent, or the one that takes the node down, finds them.
fn record(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster-dns.json")
}

/// The addresses an earlier agent left. A record that cannot be read is none.
pub(crate) fn recorded(state_dir: &Path) -> BTreeSet<IpAddr> {
    let bytes = std::fs::read(record(state_dir)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

impl Dataplane {
    /// The addresses this node answers names at, or an earlier agent did.
    pub fn cluster_dns(&self) -> Vec<IpAddr> {
        self.cluster_dns.lock().iter().copied().collect()
    }

    /// Gives the node these addresses and takes it all other ones it was given here before. Policies know them first.
    pub async fn set_cluster_dns(&self, addresses: Vec<IpAddr>) -> Result<(), Error> {
        let wanted: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let state_dir = &self.config.state_dir;
        let gone: BTreeSet<IpAddr> = &recorded(state_dir) - &wanted;
        if wanted.is_empty() && gone.is_empty() {
            return Ok(());
        }
        crate::file::write_json(&record(state_dir), &(&wanted | &gone))?;
        {
            let mut engine = self.engine.lock();
            engine.state.policies.set_pod(key(), as_pod(&wanted));
            engine.reconcile();
        }
        self.changed.notify_one();
        let index = loopback(&self.netlink).await?;
        for ip in &wanted {
            self.netlink.add_own_address(index, *ip).await.map_err(Error::netlink(format!("give {LOOPBACK} the address {ip}")))?;
        }
        take_away(&self.netlink, index, &gone).await?;
        crate::file::write_json(&record(state_dir), &wanted)?;
        *self.cluster_dns.lock() = wanted;
        Ok(())
    }

    /// Lets policies know from the first round what an earlier agent left.
    pub(crate) fn adopt_cluster_dns(&self) {
        let adopted = self.cluster_dns.lock().clone();
        self.engine.lock().state.policies.set_pod(key(), as_pod(&adopted));
    }
}

/// Takes the node every address it was given here.
pub(crate) async fn remove(netlink: &Netlink, state_dir: &Path) -> Result<(), Error> {
    let recorded = recorded(state_dir);
    if !recorded.is_empty() {
        take_away(netlink, loopback(netlink).await?, &recorded).await?;
    }
    crate::file::remove(&record(state_dir))
}

async fn loopback(netlink: &Netlink) -> Result<u32, Error> {
    let found = netlink.link(LOOPBACK).await.and_then(|link| link.ok_or_else(|| std::io::ErrorKind::NotFound.into()));
    let link = found.map_err(Error::netlink(format!("find {LOOPBACK}")))?;
    if !link.up {
        netlink.up(link.index).await.map_err(Error::netlink(format!("bring {LOOPBACK} up")))?;
    }
    Ok(link.index)
}

async fn take_away(netlink: &Netlink, index: u32, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
    for ip in addresses {
        netlink.remove_address(index, *ip).await.map_err(Error::netlink(format!("take {LOOPBACK} the address {ip}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::policies::{LocalEndpoint, Policies};
    use crate::compile::rules;
    use serde_json::json;
    use xebec_ebpf_abi::{PolicyKey, direction, identity};

    fn dns() -> IpAddr {
        "10.96.0.10".parse().unwrap()
    }

    /// Whether an isolated pod with this egress may ask for names by `protocol`.
    fn may_ask(egress: serde_json::Value, protocol: u8) -> bool {
        let mut policies = Policies::new("node");
        let labels = [("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())].into();
        policies.set_namespace("kube-system", Some(labels));
        policies.set_node_addresses(["192.0.2.1".parse().unwrap()].into());
        policies.set_pod(key(), as_pod(&[dns()].into()));
        let document = json!({
            "metadata": {"namespace": "default", "name": "p"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": egress},
        });
        policies.set_policy(Key::new("default", "p"), Some(rules::policy(&serde_json::from_value(document).unwrap())));
        policies.set_endpoint(LocalEndpoint {
            id: 7,
            ifindex: 7,
            netns_cookie: 0,
            pod_mac: [2; 6],
            host_mac: [4; 6],
            ips: vec!["10.244.0.7".parse().unwrap()],
            pod: Key::new("default", "client"),
            asked: Default::default(),
            last_seen: PodIn::default(),
        });
        policies.compile();
        let address = crate::compile::expand::addr(dns());
        let remote = policies.tables.ipcache.want()[&(address.prefix_len(32), address)];
        assert_eq!(remote.flags, 0, "it is not the node");
        policies.tables.policy.want().keys().any(|(length, key)| {
            [remote.identity, identity::ANY].iter().any(|peer| {
                [PolicyKey::ANY_PROTO, PolicyKey::ANY_PORT, PolicyKey::EXACT].iter().any(|precision| {
                    let port = if *precision == PolicyKey::EXACT { 53 } else { 0 };
                    let proto = if *precision == PolicyKey::ANY_PROTO { 0 } else { protocol };
                    let wanted = PolicyKey::new(7, direction::EGRESS, *peer, proto, xebec_ebpf_abi::Port::new(port));
                    length == precision && *key == wanted
                })
            })
        })
    }

    #[test]
    fn rules_for_core_dns_mean_it() {
        let core_dns = json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        });
        let ports = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
        for egress in [
            json!([{"to": [core_dns], "ports": ports}]),
            json!([{"to": [core_dns]}]),
            json!([{"to": [core_dns], "ports": [{"port": "dns", "protocol": "UDP"}, {"port": "dns-tcp", "protocol": "TCP"}]}]),
            json!([{"to": [{"namespaceSelector": {}}], "ports": ports}]),
            json!([{"ports": ports}]),
            json!([{}]),
            json!([{"to": [{"ipBlock": {"cidr": "10.96.0.0/12"}}]}]),
        ] {
            assert!(may_ask(egress.clone(), UDP) && may_ask(egress.clone(), TCP), "{egress}");
        }
        for egress in [
            json!([]),
            json!([{"to": [{"podSelector": {}}]}]),
            json!([{"to": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]),
            json!([{"to": [core_dns], "ports": [{"port": 80}]}]),
        ] {
            assert!(!may_ask(egress.clone(), UDP), "{egress}");
        }
    }

    #[test]
    fn records_survive_and_broken_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recorded(dir.path()).is_empty());
        crate::file::write_json(&record(dir.path()), &BTreeSet::from([dns()])).unwrap();
        assert_eq!(recorded(dir.path()), [dns()].into());
        std::fs::write(record(dir.path()), "[").unwrap();
        assert!(recorded(dir.path()).is_empty());
    }
}
