//! Writes a pod's status to the API: the latest wins, an unchanged one is not written.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::objects::api_message;
use crate::spec;

/// Fields this node owns: the ones absent from a new status are removed.
const OWNED: [&str; 15] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "allocatedResources",
    "resources",
];
/// Conditions other components write.
const FOREIGN_CONDITIONS: [&str; 1] = ["DisruptionTarget"];
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// A status to write, and what the API held when it was made.
#[derive(Clone, Default)]
struct Wanted {
    status: Option<Value>,
    api_status: Option<Value>,
    api_version: u64,
}

pub struct StatusWriter {
    wanted: watch::Sender<Wanted>,
    /// What was written last.
    written: watch::Receiver<Option<Value>>,
}

impl StatusWriter {
    /// Starts the task that writes; it ends with the writer.
    pub fn start(client: kube::Client, pod: Arc<Pod>) -> StatusWriter {
        let (wanted, mut inbox) = watch::channel(Wanted::default());
        let (done, written) = watch::channel(None);
        let api: Api<Pod> = Api::namespaced(client, spec::namespace(&pod));
        tokio::spawn(async move {
            let mut delay = RETRY;
            let mut last: Option<Value> = api_status(&pod);
            let mut version = version(&pod);
            loop {
                let next = inbox.borrow_and_update().clone();
                // Others write too (the node controller takes Ready away): what the API holds counts
                // once it is newer than what was written from here.
                if next.api_version > version {
                    version = next.api_version;
                    last = next.api_status;
                }
                if let Some(status) = next.status {
                    match write(&api, &pod, last.as_ref(), &status).await {
                        Ok(written) => {
                            delay = RETRY;
                            version = version.max(written);
                            last = Some(status.clone());
                            done.send_replace(Some(status));
                        }
                        Err(error) => {
                            tracing::warn!(pod = %spec::full_name(&pod), error, "status not written");
                            tokio::select! {
                                () = tokio::time::sleep(delay) => {}
                                changed = inbox.changed() => if changed.is_err() { return },
                            }
                            delay = (delay * 2).min(MAX_RETRY);
                            continue;
                        }
                    }
                }
                if inbox.has_changed().unwrap_or(false) {
                    continue;
                }
                if inbox.changed().await.is_err() {
                    return;
                }
            }
        });
        StatusWriter { wanted, written }
    }

    /// Hands in a new status. `pod` is the object as the watch brought it last.
    pub fn set(&self, pod: &Pod, status: PodStatus) {
        let Ok(status) = serde_json::to_value(status) else { return };
        let api_version = version(pod);
        self.wanted.send_if_modified(|current| {
            let changed = current.status.as_ref() != Some(&status) || current.api_version != api_version;
            if changed {
                *current = Wanted { status: Some(status), api_status: api_status(pod), api_version };
            }
            changed
        });
    }

    /// Waits until the last status handed in is in the API, or the pod has left it.
    pub async fn flush(&self) {
        let wanted = self.wanted.borrow().status.clone();
        let mut written = self.written.clone();
        let _ = written.wait_for(|w| wanted.is_none() || *w == wanted).await;
    }
}

fn api_status(pod: &Pod) -> Option<Value> {
    pod.status.as_ref().and_then(|s| serde_json::to_value(s).ok())
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Returns the version of the object that holds the status, zero when nothing had to be written.
async fn write(api: &Api<Pod>, pod: &Pod, before: Option<&Value>, status: &Value) -> Result<u64, String> {
    let Some(patch) = patch(spec::uid(pod), before, status) else { return Ok(0) };
    match api.patch_status(spec::name(pod), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(written) => Ok(version(&written)),
        // Gone, or another pod of the same name: nothing left to tell.
        Err(kube::Error::Api(e)) if e.code == 404 || (e.code == 409 && e.message.contains("uid")) => Ok(0),
        Err(e) => Err(api_message(&e)),
    }
}

/// A strategic merge patch from the status the API has to the wanted one; `None` when it has it.
/// Conditions merge by type, so other writers' stay. The uid makes it fail for another pod.
fn patch(uid: &str, before: Option<&Value>, status: &Value) -> Option<Value> {
    let empty = Map::new();
    let old = before.and_then(Value::as_object).unwrap_or(&empty);
    let new = status.as_object()?;
    let mut changes = Map::new();
    for field in OWNED {
        match (old.get(field), new.get(field)) {
            (old, Some(value)) if old != Some(value) => {
                changes.insert(field.into(), value.clone());
            }
            (Some(_), None) => {
                changes.insert(field.into(), Value::Null);
            }
            (Some(_) | None, _) => {}
        }
    }
    let list = |map: &Map<String, Value>| map.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let old_conditions = list(old);
    let changed: Vec<Value> = list(new)
        .into_iter()
        .filter(|c| !old_conditions.contains(c))
        .filter(|c| !FOREIGN_CONDITIONS.iter().any(|f| c["type"] == **f))
        .map(|mut c| {
            // A reason or message that is gone must go from the API too.
            if let Some(fields) = c.as_object_mut() {
                for field in ["reason", "message"] {
                    fields.entry(field).or_insert(Value::Null);
                }
            }
            c
        })
        .collect();
    if !changed.is_empty() {
        changes.insert("conditions".into(), Value::Array(changed));
    }
    (!changes.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": changes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed() {
        let old = json!({"phase": "Pending", "podIP": "1", "reason": "x", "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Mine", "status": "True"}]});
        let new = json!({"phase": "Running", "podIP": "1", "conditions": [{"type": "Ready", "status": "True"}]});
        let expected = json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null,
            "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}});
        assert_eq!(patch("u", Some(&old), &new), Some(expected));
        assert_eq!(patch("u", Some(&new), &new), None);
        assert!(patch("u", None, &new).is_some());
    }
}
