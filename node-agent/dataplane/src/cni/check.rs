//! CHECK and STATUS.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::protocol::{CniError, Request};
use crate::Dataplane;
use crate::device::netlink::Netlink;
use crate::sandbox::{Sandbox, owner};

impl Dataplane {
    /// Everything ADD set up is still so; names the first thing that is not.
    pub(crate) async fn cni_check(&self, request: &Request) -> Result<Value, CniError> {
        request.check(true)?;
        let owner = owner(&request.container_id, &request.ifname);
        let _one_at_a_time = self.sandbox_lock(&owner).await;
        let wrong = |details: String| CniError::failed("the pod's network is not as it was set up", details);
        let sandbox = self.sandboxes.lock().get(&owner).cloned();
        let sandbox = sandbox.ok_or_else(|| wrong(format!("sandbox {} is not known", request.container_id)))?;
        let netlink = |e: std::io::Error| wrong(format!("cannot read devices: {e}"));
        let link = self.netlink.link(&sandbox.host_name).await.map_err(netlink)?;
        let link = link.filter(|l| l.up).ok_or_else(|| wrong(format!("device {} is missing or down", sandbox.host_name)))?;
        let routes = self.netlink.host_routes(link.index).await.map_err(netlink)?;
        if let Some(ip) = sandbox.ips.iter().find(|ip| !routes.contains(ip)) {
            return Err(wrong(format!("there is no route to {ip} by {}", sandbox.host_name)));
        }
        {
            let engine = self.engine.lock();
            if !engine.programs.is_pod_attached((&sandbox.host_name, link.index)) {
                return Err(wrong(format!("the programs are not attached to {}", sandbox.host_name)));
            }
            if !engine.state.policies.is_in_force(sandbox.endpoint) {
                return Err(wrong(format!("the maps do not hold endpoint {}", sandbox.endpoint)));
            }
        }
        let missing = pod_side(&sandbox, self.config.on_host(&request.netns))
            .await
            .map_err(|e| wrong(format!("cannot read the pod's devices: {e}")))?;
        match missing {
            Some(missing) => Err(wrong(missing)),
            None => Ok(Value::Null),
        }
    }

    /// CNI 1.1: whether ADD can be served.
    pub(crate) fn cni_status(&self) -> Result<Value, CniError> {
        let status = self.status();
        match status.ready {
            true => Ok(Value::Null),
            false => Err(CniError::unavailable(format!("the agent still waits for: {}", status.waiting_for.join(", ")))),
        }
    }
}

/// What the pod's side lacks, if anything.
async fn pod_side(sandbox: &Sandbox, path: PathBuf) -> std::io::Result<Option<String>> {
    let pod = tokio::task::spawn_blocking(move || Netlink::at(&path)).await.map_err(std::io::Error::other)??;
    let Some(link) = pod.link(&sandbox.ifname).await?.filter(|l| l.up) else {
        return Ok(Some(format!("device {} of the pod is missing or down", sandbox.ifname)));
    };
    let addresses: Vec<IpAddr> = pod.addresses().await?.iter().filter(|a| a.index == link.index).map(|a| a.ip).collect();
    Ok(sandbox.ips.iter().find(|ip| !addresses.contains(ip)).map(|ip| format!("{} does not have {ip}", sandbox.ifname)))
}
