//! The Service `kube-system/kube-dns`, by which clients find the cluster's name server. Nobody's pods are behind it: its label says
//! that no proxy is to translate it, since every node answers at its address itself.
//!
//! An operator who runs another name server gives the Service a selector, or makes one of their own with the address: it is theirs
//! then, and the nodes step back.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use xebec_loops::{Cache, Error, Key, Outcome, api_already_exists, api_namespace_terminating, api_not_found};

use crate::setup::{Setup, sides};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// Label of Services that proxies leave to somebody else, and who that is here: the nodes' name servers know it.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const NODE_DNS: &str = "xebec-dns";
const DESCRIPTION: &str = "kubernetes.io/description";

/// Registers the loop, if the cluster has a DNS address.
pub fn register(setup: &mut Setup) {
    if setup.config.cluster_dns.is_empty() {
        return;
    }
    let (namespaces, services) = (setup.cache::<Namespace>(), setup.cache::<Service>());
    let (client, config, cache, all) = (setup.client.clone(), setup.config.clone(), services.clone(), namespaces.clone());
    let queue = setup.control_loop("cluster-dns", &namespaces, 1, move |key| {
        let (client, config, cache, all) = (client.clone(), config.clone(), cache.clone(), all.clone());
        async move {
            let is_active = all.get(&key).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
            if &*key.name != NAMESPACE || !is_active {
                return Ok(Outcome::Done);
            }
            reconcile(client, &cache, &config.cluster_dns).await
        }
    });
    services.on_change(move |c| {
        if sides(c).any(|s| s.metadata.namespace.as_deref() == Some(NAMESPACE) && s.metadata.name.as_deref() == Some(NAME)) {
            queue.add(Key::new("", NAMESPACE));
        }
    });
}

async fn reconcile(client: kube::Client, services: &Cache<Service>, addresses: &[IpAddr]) -> Result<Outcome, Error> {
    let api: Api<Service> = Api::namespaced(client, NAMESPACE);
    let taken = || services.list().iter().any(|service| has_one_of(service, addresses));
    match plan(services.get(&Key::new(NAMESPACE, NAME)).as_deref(), taken) {
        Plan::Nothing => {}
        Plan::Create => match api.create(&PostParams::default(), &service(addresses)).await {
            Ok(created) => services.observe(created),
            Err(error) if api_already_exists(&error) || api_namespace_terminating(&error) || api_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        },
        Plan::HandOver => {
            let patch = json!({"metadata": {"labels": {PROXY_NAME: null}, "annotations": {DESCRIPTION: null}}});
            match api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(patched) => services.observe(patched),
                Err(error) if api_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(Outcome::Done)
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Create,
    /// Somebody put pods behind it: proxies shall translate it from now on.
    HandOver,
}

fn plan(found: Option<&Service>, address_is_taken: impl FnOnce() -> bool) -> Plan {
    let Some(found) = found else {
        return if address_is_taken() { Plan::Nothing } else { Plan::Create };
    };
    let ours = found.metadata.labels.as_ref().and_then(|l| l.get(PROXY_NAME)).is_some_and(|name| name == NODE_DNS);
    let selects = found.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty());
    if ours && selects { Plan::HandOver } else { Plan::Nothing }
}

fn has_one_of(service: &Service, addresses: &[IpAddr]) -> bool {
    let own = service.spec.iter().flat_map(|s| s.cluster_ips.iter().flatten().chain(&s.cluster_ip));
    own.filter_map(|ip| ip.parse().ok()).any(|ip: IpAddr| addresses.contains(&ip))
}

fn service(addresses: &[IpAddr]) -> Service {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "targetPort": 53, "protocol": protocol});
    let families: Vec<&str> = addresses.iter().map(|a| if a.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let document = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                PROXY_NAME: NODE_DNS,
            },
            "annotations": {DESCRIPTION: "Every node answers at this address itself."},
        },
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilies": families,
            "ipFamilyPolicy": if addresses.len() > 1 { "PreferDualStack" } else { "SingleStack" },
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    serde_json::from_value(document).expect("the document above is a Service")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<IpAddr> {
        ["10.96.0.10", "fd00:96::a"].map(|a| a.parse().unwrap()).into()
    }

    #[test]
    fn what_clients_look_for() {
        let made = service(&addresses()[..1]);
        assert_eq!(made.metadata.name.as_deref(), Some("kube-dns"));
        let spec = made.spec.unwrap();
        assert_eq!((spec.cluster_ip.as_deref(), spec.ip_family_policy.as_deref()), (Some("10.96.0.10"), Some("SingleStack")));
        assert!(spec.selector.is_none());
        let ports: Vec<_> = spec.ports.unwrap().into_iter().map(|p| (p.name.unwrap(), p.port, p.protocol.unwrap())).collect();
        assert_eq!(ports, [("dns".to_owned(), 53, "UDP".to_owned()), ("dns-tcp".to_owned(), 53, "TCP".to_owned())]);
        let dual = service(&addresses()).spec.unwrap();
        assert_eq!(dual.ip_families.unwrap(), ["IPv4", "IPv6"]);
        assert_eq!(dual.cluster_ips.unwrap(), ["10.96.0.10", "fd00:96::a"]);
    }

    #[test]
    fn whose_the_service_is() {
        let ours = service(&addresses());
        assert_eq!(plan(None, || false), Plan::Create);
        assert_eq!(plan(None, || true), Plan::Nothing);
        assert_eq!(plan(Some(&ours), || true), Plan::Nothing);
        let with_selector = |mut service: Service| {
            service.spec.as_mut().unwrap().selector = Some([("k8s-app".to_owned(), "kube-dns".to_owned())].into());
            service
        };
        let theirs = with_selector(ours.clone());
        assert_eq!(plan(Some(&theirs), || true), Plan::HandOver);
        let mut handed_over = theirs;
        handed_over.metadata.labels.as_mut().unwrap().remove(PROXY_NAME);
        assert_eq!(plan(Some(&handed_over), || true), Plan::Nothing);
        assert!(has_one_of(&ours, &addresses()[1..]) && !has_one_of(&ours, &["10.96.0.11".parse().unwrap()]));
    }
}
