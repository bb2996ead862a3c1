//! EndpointSlice: the addresses behind each Service that has a selector.

mod plan;
mod topology;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use xebec_loops::meta::{deleting, label, uid};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, Selector, api_message, api_namespace_terminating, ignore_not_found};

use crate::service_pods::{may_serve, selector_of, wake_services};
use crate::setup::{Setup, sides};
pub use plan::{MANAGED_BY, SERVICE_NAME};
use plan::{MANAGER, Note};
use topology::Topology;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    services: Arc<Cache<Service>>,
    slices: Arc<Cache<EndpointSlice>>,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        services: setup.cache::<Service>(),
        slices: setup.cache::<EndpointSlice>(),
        pods: setup.cache::<Pod>(),
        nodes: setup.cache::<Node>(),
        recorder: setup.recorder("endpoint-slice-controller"),
    };
    let Controller { services, slices, pods, nodes, .. } = controller.clone();
    let queue = setup.control_loop("endpointslice", &services, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    wake_services(&pods, services.clone(), &queue);
    let to = queue.clone();
    slices.on_change(move |c| {
        for slice in sides(c).filter(|s| label(&s.metadata, MANAGED_BY) == Some(MANAGER)) {
            if let Some(service) = label(&slice.metadata, SERVICE_NAME) {
                to.add(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
            }
        }
    });
    nodes.on_change(move |c| {
        if c.old.map(|n| topology::part(n)) != c.new.map(|n| topology::part(n)) {
            services.keys().into_iter().for_each(|k| queue.add(k));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(service) = self.services.get(&key) else { return Ok(Outcome::Done) };
        let selector = selector_of(&service);
        if selector == Selector::Nothing || deleting(&service.metadata) {
            // Slices of a Service without a selector belong to its owner.
            return Ok(Outcome::Done);
        }
        let pods: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|p| may_serve(p) && selector.matches(p.metadata.labels.as_ref()))
            .collect();
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|s| {
                label(&s.metadata, SERVICE_NAME) == Some(&key.name)
                    && label(&s.metadata, MANAGED_BY) == Some(MANAGER)
                    && !deleting(&s.metadata)
            })
            .collect();
        let nodes = self.nodes.list();
        let mut plan = plan::plan(&service, &pods, &Topology::of(nodes.iter().map(|n| &**n)), &existing);
        for note in std::mem::take(&mut plan.notes) {
            match note {
                Note::Enabled(text) => self.recorder.event(&*service, EventType::Normal, "TopologyAwareHintsEnabled", text),
                Note::Disabled(text) => self.recorder.event(&*service, EventType::Warning, "TopologyAwareHintsDisabled", text),
            }
        }
        if let Err(error) = self.execute(&key, plan).await {
            if let Error::Api(e) = &error
                && !error.is_conflict()
            {
                let text = format!("Error updating Endpoint Slices for Service {key}: {}", api_message(e));
                self.recorder.event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", text);
            }
            return Err(error);
        }
        Ok(Outcome::Done)
    }

    /// New slices first, so that no endpoint is missing between two writes.
    async fn execute(&self, key: &Key, plan: plan::Plan) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in plan.create {
            match api.create(&PostParams::default(), &slice).await {
                Ok(created) => self.slices.observe(created),
                Err(error) if api_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in plan.update {
            let name = slice.metadata.name.clone().unwrap_or_default();
            self.slices.observe(api.replace(&name, &PostParams::default(), &slice).await?);
        }
        for slice in plan.delete {
            let slice_key = Key::of(&*slice);
            ignore_not_found(api.delete(&slice_key.name, &DeleteParams::default()).await)?;
            self.slices.observe_gone(&slice_key, uid(&slice.metadata));
        }
        Ok(())
    }
}
