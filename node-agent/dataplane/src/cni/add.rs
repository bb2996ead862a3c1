//! ADD: when it returns, the pod's addresses, routes and policy are in force in both directions.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use serde_json::Value;

use super::protocol::{CniError, PodRef, Request, result};
use crate::Dataplane;
use crate::bpf::loader;
use crate::compile::input::{self, PodIn};
use crate::device::{netns, pod};
use crate::ipam::IpamError;
use crate::sandbox::{Sandbox, owner};

/// How long a call waits for the first full sync before it asks to be tried again.
const SYNC: Duration = Duration::from_secs(20);

impl Dataplane {
    pub(crate) async fn cni_add(&self, request: &Request) -> Result<Value, CniError> {
        request.check(true)?;
        let pod_ref = request.pod()?;
        let asked = request.bandwidth()?;
        let owner = owner(&request.container_id, &request.ifname);
        let _one_at_a_time = self.sandbox_lock(&owner).await;
        if self.sandboxes.lock().contains_key(&owner) {
            let details = format!("sandbox {} has a device {} already", request.container_id, request.ifname);
            return Err(CniError::failed("the network is set up already", details));
        }
        if tokio::time::timeout(SYNC, self.synced()).await.is_err() {
            let waiting = self.status().waiting_for.join(", ");
            return Err(CniError::try_again(format!("the agent still waits for: {waiting}")));
        }
        let seen = self.find_pod(&pod_ref).await?;
        if let Some(complaint) = &seen.bandwidth_complaint {
            // As upstream's runtimes: a limit that was meant and is not there is worse than a pod that does not start and says why.
            return Err(CniError::failed("the pod's bandwidth is not understood", complaint));
        }
        self.find_namespace(&pod_ref.key.namespace).await?;
        let netns_path = self.config.on_host(&request.netns);
        match netns::same(&netns_path, Path::new("/proc/thread-self/ns/net")) {
            Ok(false) => {}
            Ok(true) => {
                return Err(CniError::environment(format!("{} is the node's own network namespace", request.netns)));
            }
            Err(e) => {
                return Err(CniError::environment(format!("CNI_NETNS {}: {e}", request.netns)));
            }
        }
        let inside = netns_path.to_owned();
        let cookie = blocking(move || netns::within(&inside, loader::netns_cookie)).await;
        let netns_cookie = cookie.map_err(|e| CniError::environment(format!("CNI_NETNS {}: {e}", request.netns)))?;
        let (ips, endpoint) = {
            let mut engine = self.engine.lock();
            let ips = engine.ipam.lease(&owner).map_err(|e| match e {
                IpamError::NoRange => CniError::try_again(e),
                IpamError::Full { .. } => CniError::failed("no address for the pod", e),
            })?;
            (ips, engine.next_endpoint())
        };
        let sandbox = Sandbox {
            id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns: netns_path,
            host_name: pod::host_name(&request.container_id, &request.ifname),
            endpoint,
            ips,
            pod_mac: pod::random_mac(),
            host_mac: pod::random_mac(),
            pod: pod_ref.key,
            netns_cookie,
            asked: asked.beyond(seen.bandwidth),
            last_seen: seen,
        };
        match self.set_up(&sandbox).await {
            Ok(()) => Ok(result(request.version(), &sandbox)),
            Err(error) => {
                let left: Vec<String> = self.take_down(&owner, &sandbox.host_name).await.iter().map(ToString::to_string).collect();
                let undone =
                    if left.is_empty() { String::new() } else { format!("; and what was done could not be undone: {}", left.join("; ")) };
                Err(CniError::failed("cannot set up the pod's network", format!("{error}{undone}")))
            }
        }
    }

    async fn set_up(&self, sandbox: &Sandbox) -> Result<(), crate::Error> {
        let what = |what: &str| format!("{what} {} of pod {}", sandbox.host_name, sandbox.pod);
        self.records.write(sandbox)?;
        self.sandboxes.lock().insert(sandbox.owner(), sandbox.clone());
        let (of, mtu) = (sandbox.clone(), self.mtu());
        let created = blocking(move || pod::create(&plan(&of, mtu))).await;
        let (index, mut pod_side) = created.map_err(crate::Error::netlink(what("make the device")))?;
        // Programs, identity and policy before the device is up: the first packet is judged like every other.
        self.engine.lock().put_endpoint(&sandbox.host_name, sandbox.local(index))?;
        let of = sandbox.clone();
        let connected = blocking(move || pod::connect(&mut pod_side, index, &plan(&of, mtu))).await;
        connected.map_err(crate::Error::netlink(what("connect the device")))
    }

    /// The pod as watched, else as the API has it now.
    async fn find_pod(&self, wanted: &PodRef) -> Result<PodIn, CniError> {
        let is_it = |pod: &PodIn| wanted.uid.as_ref().is_none_or(|uid| *uid == pod.uid);
        if let Some(seen) = self.engine.lock().state.policies.pod(&wanted.key).filter(|p| is_it(p)) {
            return Ok(seen.clone());
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &wanted.key.namespace);
        let unreachable = |e: kube::Error| CniError::try_again(format!("cannot read pod {} from the API: {e}", wanted.key));
        match api.get_opt(&wanted.key.name).await.map_err(unreachable)? {
            None => Err(CniError::failed("the pod is gone", format!("the API has no pod {}", wanted.key))),
            Some(found) => {
                let found = input::pod(&found);
                if is_it(&found) {
                    self.engine.lock().state.policies.set_pod(wanted.key.clone(), Some(found.clone()));
                    return Ok(found);
                }
                let uid = wanted.uid.as_deref().unwrap_or_default();
                Err(CniError::failed(
                    "the pod is gone",
                    format!("pod {} with UID {uid} was replaced by one with UID {}", wanted.key, found.uid),
                ))
            }
        }
    }

    /// Namespace labels decide who may talk to the pod: they must be known before it starts.
    async fn find_namespace(&self, name: &str) -> Result<(), CniError> {
        if self.engine.lock().state.policies.has_namespace(name) {
            return Ok(());
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let unreachable = |e: kube::Error| CniError::try_again(format!("cannot read namespace {name} from the API: {e}"));
        let found = api.get_opt(name).await.map_err(unreachable)?;
        let found = found.ok_or_else(|| CniError::failed("the namespace is gone", format!("the API has no namespace {name}")))?;
        self.engine.lock().state.policies.set_namespace(name, Some(input::namespace(&found)));
        Ok(())
    }
}

fn plan(sandbox: &Sandbox, mtu: u32) -> pod::Plan<'_> {
    pod::Plan {
        netns: &sandbox.netns,
        ifname: &sandbox.ifname,
        host_name: &sandbox.host_name,
        pod_mac: sandbox.pod_mac,
        host_mac: sandbox.host_mac,
        ips: &sandbox.ips,
        mtu,
    }
}

/// Off the runtime's threads.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(std::io::Error::other)?
}
