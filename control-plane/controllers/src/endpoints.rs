//! Endpoints: the older form of EndpointSlices, for clients that still read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};
use xebec_loops::meta::{deleting, label};
use xebec_loops::pod::{is_ready, node_name};
use xebec_loops::{Cache, Error, Key, Outcome, Selector, api_namespace_terminating, ignore_not_found};

use crate::service_pods::{addresses, hostname, is_headless, may_serve, selector_of, target_port, wake_services};
use crate::setup::Setup;

const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object.
const CAPACITY: usize = 1000;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    services: Arc<Cache<Service>>,
    endpoints: Arc<Cache<Endpoints>>,
    pods: Arc<Cache<Pod>>,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        services: setup.cache::<Service>(),
        endpoints: setup.cache::<Endpoints>(),
        pods: setup.cache::<Pod>(),
    };
    let Controller { services, endpoints, pods, .. } = controller.clone();
    let queue = setup.control_loop("endpoints", &services, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_services(&pods, services, &queue);
    endpoints.on_change(move |c| {
        if let Some(e) = c.latest().filter(|e| label(&e.metadata, MANAGED_BY) == Some(MANAGER)) {
            queue.add(Key::of(&**e));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let existing = self.endpoints.get(&key);
        let Some(service) = self.services.get(&key) else {
            if existing.is_some() {
                ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(Outcome::Done);
        };
        let selector = selector_of(&service);
        if selector == Selector::Nothing || deleting(&service.metadata) {
            return Ok(Outcome::Done);
        }
        let pods: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|p| may_serve(p) && selector.matches(p.metadata.labels.as_ref()))
            .collect();
        let wanted = wanted(&service, &pods);
        let Some(existing) = existing else {
            return match api.create(&PostParams::default(), &wanted).await {
                Ok(created) => {
                    self.endpoints.observe(created);
                    Ok(Outcome::Done)
                }
                Err(error) if api_namespace_terminating(&error) => Ok(Outcome::Done),
                Err(error) => Err(error.into()),
            };
        };
        let mut changed = (*existing).clone();
        changed.subsets = wanted.subsets;
        changed.metadata.labels = wanted.metadata.labels;
        let annotations = changed.metadata.annotations.get_or_insert_default();
        match wanted.metadata.annotations.as_ref().and_then(|a| a.get(OVER_CAPACITY)) {
            Some(value) => annotations.insert(OVER_CAPACITY.into(), value.clone()),
            None => annotations.remove(OVER_CAPACITY),
        };
        changed.metadata.annotations = changed.metadata.annotations.filter(|a| !a.is_empty());
        if changed != *existing {
            self.endpoints.observe(api.replace(&key.name, &PostParams::default(), &changed).await?);
        }
        Ok(Outcome::Done)
    }
}

/// The object the Service should have.
fn wanted(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let (subsets, over) = subsets(service, pods);
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: over.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..Default::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

type PortKey = (String, i32, String, Option<String>);

/// Addresses grouped by the ports they have in common, in a stable order.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let v6 = spec.ip_families.as_ref().and_then(|f| f.first()).map(String::as_str) == Some("IPv6");
    let mut groups: BTreeMap<BTreeSet<PortKey>, Vec<(bool, EndpointAddress)>> = BTreeMap::new();
    let (mut count, mut over) = (0, false);
    for pod in pods {
        if deleting(&pod.metadata) && !publish_all {
            continue;
        }
        let Some(ip) = addresses(pod).into_iter().find(|a| a.contains(':') == v6) else { continue };
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(pod, service),
            node_name: node_name(pod).map(str::to_owned),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            }),
        };
        let ports: BTreeSet<PortKey> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                let number = target_port(pod, p)?;
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                Some((p.name.clone().unwrap_or_default(), number, protocol, p.app_protocol.clone()))
            })
            .collect();
        let without_ports = spec.ports.as_ref().is_none_or(Vec::is_empty);
        if ports.is_empty() && !(without_ports && is_headless(service)) {
            continue;
        }
        if count == CAPACITY {
            over = true;
            break;
        }
        count += 1;
        groups.entry(ports).or_default().push((publish_all || is_ready(pod), address));
    }
    let subsets = groups
        .into_iter()
        .map(|(ports, mut addresses)| {
            addresses.sort_by(|a, b| a.1.ip.cmp(&b.1.ip));
            let pick = |ready: bool| -> Option<Vec<EndpointAddress>> {
                let some: Vec<_> = addresses.iter().filter(|(r, _)| *r == ready).map(|(_, a)| a.clone()).collect();
                (!some.is_empty()).then_some(some)
            };
            let ports: Vec<EndpointPort> = ports
                .into_iter()
                .map(|(name, port, protocol, app_protocol)| EndpointPort {
                    name: (!name.is_empty()).then_some(name),
                    port,
                    protocol: Some(protocol),
                    app_protocol,
                })
                .collect();
            EndpointSubset { addresses: pick(true), not_ready_addresses: pick(false), ports: (!ports.is_empty()).then_some(ports) }
        })
        .collect();
    (subsets, over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn addresses_are_grouped_by_ports_and_readiness() {
        let service: Service = from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"a": "b"},
            "clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}))
        .unwrap();
        let pod = |name: &str, ip: &str, port: i32, ready: &str| -> Arc<Pod> {
            Arc::new(
                from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap(),
            )
        };
        let pods = [pod("a", "10.1.0.2", 80, "True"), pod("b", "10.1.0.1", 80, "False"), pod("c", "10.1.0.3", 81, "True")];
        let (subsets, over) = subsets(&service, &pods);
        assert!(!over);
        let ips = |a: &Option<Vec<EndpointAddress>>| a.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>().join(",");
        let shape: Vec<String> = subsets
            .iter()
            .map(|s| format!("{}: {} not ready {}", s.ports.as_ref().unwrap()[0].port, ips(&s.addresses), ips(&s.not_ready_addresses)))
            .collect();
        assert_eq!(shape, ["80: 10.1.0.2 not ready 10.1.0.1", "81: 10.1.0.3 not ready "]);
    }
}
