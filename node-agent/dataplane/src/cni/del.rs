//! DEL and GC: idempotent, go on after a failure, report every one.

use std::collections::BTreeSet;

use serde_json::Value;

use super::protocol::{CniError, Request};
use crate::device::pod;
use crate::sandbox::owner;
use crate::{Dataplane, Error};

impl Dataplane {
    pub(crate) async fn cni_del(&self, request: &Request) -> Result<Value, CniError> {
        request.check(false)?;
        let owner = owner(&request.container_id, &request.ifname);
        let _one_at_a_time = self.sandbox_lock(&owner).await;
        let host_name = pod::host_name(&request.container_id, &request.ifname);
        report(self.take_down(&owner, &host_name).await)
    }

    /// Removes what containerd does not list as attached (CNI 1.1).
    pub(crate) async fn cni_gc(&self, request: &Request) -> Result<Value, CniError> {
        let invalid = |details: String| CniError { code: 7, msg: "invalid network config".into(), details };
        let Some(valid) = request.config.get("cni.dev/valid-attachments").and_then(Value::as_array) else {
            return Err(invalid("no list cni.dev/valid-attachments".into()));
        };
        // One that cannot be read may be that of a pod that lives.
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let read = |a: &Value| {
            let owner = text(a, "containerID").zip(text(a, "ifname")).map(|(id, ifname)| owner(&id, &ifname));
            owner.ok_or_else(|| invalid(format!("an attachment of cni.dev/valid-attachments has no containerID or ifname: {a}")))
        };
        let valid: BTreeSet<String> = valid.iter().map(read).collect::<Result<_, _>>()?;
        let stale: Vec<(String, String)> = {
            let sandboxes = self.sandboxes.lock();
            sandboxes.iter().filter(|(o, _)| !valid.contains(*o)).map(|(o, s)| (o.clone(), s.host_name.clone())).collect()
        };
        let mut errors = Vec::new();
        for (owner, host_name) in stale {
            let _one_at_a_time = self.sandbox_lock(&owner).await;
            errors.extend(self.take_down(&owner, &host_name).await);
        }
        report(errors)
    }

    /// Takes a sandbox's network down. The lease ends only once the device is gone.
    pub(crate) async fn take_down(&self, owner: &str, host_name: &str) -> Vec<Error> {
        let mut errors = Vec::new();
        let sandbox = self.sandboxes.lock().get(owner).cloned();
        let mut gone = true;
        match self.netlink.link(host_name).await {
            Ok(Some(link)) => {
                if let Err(e) = self.netlink.delete(link.index).await {
                    gone = false;
                    errors.push(Error::netlink(format!("delete device {host_name}"))(e));
                }
            }
            Ok(None) => {}
            Err(e) => {
                gone = false;
                errors.push(Error::netlink(format!("look for device {host_name}"))(e));
            }
        }
        {
            let mut engine = self.engine.lock();
            if let Err(e) = engine.programs.detach_pod(host_name) {
                errors.push(e);
            }
            if let Some(sandbox) = &sandbox {
                engine.remove_endpoint(&sandbox.local(0));
            }
        }
        if gone {
            match self.records.remove(owner) {
                Ok(()) => {
                    self.sandboxes.lock().remove(owner);
                    self.engine.lock().ipam.release(owner);
                }
                Err(e) => errors.push(e),
            }
        }
        errors
    }
}

fn report(errors: Vec<Error>) -> Result<Value, CniError> {
    if errors.is_empty() {
        return Ok(Value::Null);
    }
    let details: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Err(CniError::failed("cannot take down the pod's network", details.join("; ")))
}
