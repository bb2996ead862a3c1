//! Addresses for Services of type LoadBalancer, from `LoadBalancerPool` objects.
//!
//! Serves Services whose `loadBalancerClass` is unset or [`CLASS`]; those of another class are somebody else's. Without
//! any pool it touches nothing, so that a cluster may use another implementation. What is assigned is in the statuses of
//! the Services and nowhere else: a restart forgets nothing.

mod assign;
mod pool;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use tokio_util::sync::CancellationToken;
use xebec_loops::meta::deleting;
use xebec_loops::{Cache, Error, EventType, Key, Outcome, Recorder, clock, ignore_not_found};

use crate::Config;
use crate::setup::{Setup, sides};
use assign::Claim;
use pool::{LoadBalancerPool, Pool};

/// The `loadBalancerClass` that is served here.
const CLASS: &str = "xebec.dev/lb";
const DEFINITION: &str = include_str!("../../../deploy/crds/loadbalancerpools.yaml");
/// Pause between attempts to apply the definition.
const RETRY: Duration = Duration::from_secs(1);

/// Applies the definition of pools, then runs both loops until `cancel`.
///
/// # Errors
/// When a loop panicked.
pub async fn run(client: kube::Client, config: Config, cancel: CancellationToken) -> Result<(), crate::Error> {
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        () = define(&client) => {}
    }
    let mut setup = Setup::new(client, config, cancel);
    register(&mut setup);
    setup.run().await
}

async fn define(client: &kube::Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut said = false;
    loop {
        let applied = async {
            let definition: serde_json::Value = serde_yaml_ng::from_str(DEFINITION).map_err(|e| Error::Retry(e.to_string()))?;
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            api.patch(name, &PatchParams::apply("xebec").force(), &Patch::Apply(&definition)).await?;
            // Served once the definition is established.
            Api::<LoadBalancerPool>::all(client.clone()).list(&Default::default()).await?;
            Ok::<_, Error>(())
        };
        match applied.await {
            Ok(()) => return,
            Err(error) if !said => {
                tracing::warn!(%error, "LoadBalancerPools cannot be defined yet; Services get no addresses until then");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    services: Arc<Cache<Service>>,
    pools: Arc<Cache<LoadBalancerPool>>,
    recorder: Recorder,
}

fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        services: setup.cache::<Service>(),
        pools: setup.cache::<LoadBalancerPool>(),
        recorder: setup.recorder("load-balancer-controller"),
    };
    let Controller { services, pools, .. } = controller.clone();
    let to = controller.clone();
    // One worker: two Services must not be given the same address.
    let service_queue = setup.control_loop("loadbalancer", &services, 1, move |key| {
        let controller = to.clone();
        async move { controller.assign(key).await }
    });
    let pool_queue = setup.control_loop("loadbalancerpool", &pools, 1, move |key| {
        let controller = controller.clone();
        async move { controller.count(key).await }
    });
    // What one gives back another may be waiting for.
    let (of, to, counted) = (services.clone(), service_queue.clone(), pools.clone());
    services.on_change(move |c| {
        if !sides(c).any(|s| is_balancer(s) || status::condition(s).is_some()) {
            return;
        }
        of.list().iter().filter(|s| status::condition(s).is_some_and(|c| c.status != "True")).for_each(|s| to.add(Key::of(&**s)));
        counted.keys().into_iter().for_each(|k| pool_queue.add(k));
    });
    pools.on_change(move |_| {
        services.list().iter().filter(|s| is_balancer(s) || status::condition(s).is_some()).for_each(|s| service_queue.add(Key::of(&**s)));
    });
}

fn is_balancer(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether its class leaves the Service to us.
fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.load_balancer_class.as_deref().is_none_or(|c| c == CLASS))
}

impl Controller {
    fn pools(&self) -> Vec<Pool> {
        let mut pools: Vec<Pool> = self.pools.list().iter().filter(|p| !deleting(&p.metadata)).map(|p| Pool::of(p)).collect();
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        pools
    }

    /// Claims of all Services we serve.
    fn claims(&self) -> Vec<Claim> {
        self.services.list().iter().filter(|s| is_balancer(s) && is_ours(s)).map(|s| Claim::of(s)).collect()
    }

    async fn assign(&self, key: Key) -> Result<Outcome, Error> {
        let Some(service) = self.services.get(&key) else { return Ok(Outcome::Done) };
        let known = status::condition(&service);
        if deleting(&service.metadata) || !is_ours(&service) || (!is_balancer(&service) && known.is_none()) {
            return Ok(Outcome::Done);
        }
        let pools = self.pools();
        if pools.is_empty() && known.is_none() && service.spec.as_ref().is_some_and(|s| s.load_balancer_class.is_none()) {
            return Ok(Outcome::Done);
        }
        let decided = is_balancer(&service).then(|| assign::assign(&Claim::of(&service), &pools, &self.claims()));
        let Some(patch) = status::service_patch(&service, decided.as_ref(), clock::now()) else {
            return Ok(Outcome::Done);
        };
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let Some(written) = ignore_not_found(written)? else { return Ok(Outcome::Done) };
        if let Some(condition) = status::condition(&written).filter(|c| known.is_none_or(|k| k.message != c.message)) {
            let kind = if condition.status == "True" { EventType::Normal } else { EventType::Warning };
            self.recorder.event(&*service, kind, &condition.reason, condition.message.clone());
        }
        self.services.observe(written);
        Ok(Outcome::Done)
    }

    async fn count(&self, key: Key) -> Result<Outcome, Error> {
        let Some(object) = self.pools.get(&key).filter(|p| !deleting(&p.metadata)) else { return Ok(Outcome::Done) };
        let Some(patch) = status::pool_patch(&object, &self.pools(), &self.claims(), clock::now()) else {
            return Ok(Outcome::Done);
        };
        let api: Api<LoadBalancerPool> = Api::all(self.client.clone());
        let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if let Some(written) = ignore_not_found(written)? {
            self.pools.observe(written);
        }
        Ok(Outcome::Done)
    }
}
