//! EndpointSlice mirroring: Endpoints that somebody writes for a Service without a selector become EndpointSlices,
//! which is all that proxies read.

mod plan;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use xebec_loops::meta::{annotation, deleting, label, uid};
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, api_namespace_terminating, ignore_not_found};

use crate::endpoint_slice::{MANAGED_BY, SERVICE_NAME};
use crate::setup::{Setup, sides};
use plan::{MANAGER, MAX_ENDPOINTS};

const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Old leader elections keep their record in an Endpoints object: that is no Service's.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    services: Arc<Cache<Service>>,
    endpoints: Arc<Cache<Endpoints>>,
    slices: Arc<Cache<EndpointSlice>>,
    recorder: Recorder,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        services: setup.cache::<Service>(),
        endpoints: setup.cache::<Endpoints>(),
        slices: setup.cache::<EndpointSlice>(),
        recorder: setup.recorder("endpoint-slice-mirroring-controller"),
    };
    let Controller { services, endpoints, slices, .. } = controller.clone();
    let queue = setup.control_loop("endpointslicemirroring", &endpoints, 5, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    let to = queue.clone();
    services.on_change(move |c| {
        if let Some(service) = sides(c).find(|s| !has_selector(s)) {
            to.add(Key::of(&**service));
        }
    });
    slices.on_change(move |c| {
        for slice in sides(c).filter(|s| label(&s.metadata, MANAGED_BY) == Some(MANAGER)) {
            if let Some(service) = label(&slice.metadata, SERVICE_NAME) {
                queue.add(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
            }
        }
    });
}

fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.selector.is_some())
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    label(&endpoints.metadata, SKIP) != Some("true") && annotation(&endpoints.metadata, LEADER).is_none()
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|s| label(&s.metadata, SERVICE_NAME) == Some(&key.name) && label(&s.metadata, MANAGED_BY) == Some(MANAGER))
            .collect();
        let service = self.services.get(&key).filter(|s| !has_selector(s));
        let endpoints = self.endpoints.get(&key).filter(|e| service.is_some() && is_mirrored(e));
        let Some(endpoints) = endpoints else {
            for slice in &existing {
                self.delete(slice).await?;
            }
            return Ok(Outcome::Done);
        };
        let plan = plan::plan(&endpoints, &existing);
        if plan.invalid > 0 {
            let text = format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", plan.invalid);
            self.recorder.event(&*endpoints, EventType::Warning, "InvalidIPAddress", text);
        }
        if plan.over_capacity > 0 {
            let text = format!(
                "A max of {MAX_ENDPOINTS} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                plan.over_capacity + plan.invalid
            );
            self.recorder.event(&*endpoints, EventType::Warning, "TooManyAddressesToMirror", text);
        }
        self.execute(&endpoints, plan).await
    }

    async fn execute(&self, endpoints: &Endpoints, plan: plan::Plan) -> Result<Outcome, Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), endpoints.metadata.namespace.as_deref().unwrap_or_default());
        for slice in plan.create.iter().filter(|_| !deleting(&endpoints.metadata)) {
            match api.create(&PostParams::default(), slice).await {
                Ok(created) => self.slices.observe(created),
                Err(error) if api_namespace_terminating(&error) => return Ok(Outcome::Done),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in plan.update {
            let name = slice.metadata.name.clone().unwrap_or_default();
            self.slices.observe(api.replace(&name, &PostParams::default(), &slice).await?);
        }
        for slice in plan.delete {
            self.delete(&slice).await?;
        }
        Ok(Outcome::Done)
    }

    async fn delete(&self, slice: &EndpointSlice) -> Result<(), Error> {
        let key = Key::of(slice);
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
        self.slices.observe_gone(&key, uid(&slice.metadata));
        Ok(())
    }
}
