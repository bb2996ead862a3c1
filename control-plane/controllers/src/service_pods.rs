//! What Services and pods have to do with each other: shared by EndpointSlices and Endpoints.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xebec_loops::meta::deleting;
use xebec_loops::pod::{is_ready, is_terminal, node_name};
use xebec_loops::{Cache, Key, Queue, Selector};

/// The Service's selector; matches nothing for Services whose endpoints somebody else makes.
pub fn selector_of(service: &Service) -> Selector {
    let Some(spec) = &service.spec else { return Selector::Nothing };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Selector::Nothing;
    }
    match &spec.selector {
        Some(s) if s.is_empty() => Selector::EVERYTHING,
        Some(s) => Selector::from_map(Some(s)),
        None => Selector::Nothing,
    }
}

/// Whether the Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether the pod has an address and may still serve.
pub fn may_serve(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.status.as_ref().is_some_and(|s| s.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty()))
}

/// The pod's addresses.
pub fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|i| i.ip.as_str()).collect();
    if all.is_empty() { status.pod_ip.as_deref().into_iter().collect() } else { all }
}

/// The pod's number for a Service's port; `None` if the pod has no port of that name.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            ports
                .filter(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|p| p.container_port)
                .next()
        }
    }
}

/// The pod's host name within the Service, if it asked for one there.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|h| !h.is_empty())?;
    (spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace).then_some(name)
}

/// Wakes every Service whose selector matches a pod that changed in a way its endpoints show.
pub fn wake_services(pods: &Arc<Cache<Pod>>, services: Arc<Cache<Service>>, queue: &Arc<Queue<Key>>) {
    let to = queue.clone();
    pods.on_change(move |c| {
        if let (Some(old), Some(new)) = (c.old, c.new)
            && same_endpoint(old, new)
        {
            return;
        }
        let Some(latest) = c.latest() else { return };
        for service in services.in_namespace(latest.metadata.namespace.as_deref().unwrap_or_default()) {
            let selector = selector_of(&service);
            if [c.old, c.new].into_iter().flatten().any(|p| selector.matches(p.metadata.labels.as_ref())) {
                to.add(Key::of(&*service));
            }
        }
    });
}

fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    a.metadata.labels == b.metadata.labels
        && a.metadata.uid == b.metadata.uid
        && deleting(&a.metadata) == deleting(&b.metadata)
        && is_ready(a) == is_ready(b)
        && is_terminal(a) == is_terminal(b)
        && node_name(a) == node_name(b)
        && addresses(a) == addresses(b)
}
