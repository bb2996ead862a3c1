//! Reading a Pod: the small questions every other module asks.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use sha2::{Digest, Sha256};

/// The four kinds of container a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Runs to its end before the next starts.
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753).
    Sidecar,
    Regular,
    Ephemeral,
}

impl Kind {
    /// The container's path inside the pod, as events name it in `involvedObject.fieldPath`.
    pub fn field_path(self, name: &str) -> String {
        match self {
            Kind::Init | Kind::Sidecar => format!("spec.initContainers{{{name}}}"),
            Kind::Regular => format!("spec.containers{{{name}}}"),
            Kind::Ephemeral => format!("spec.ephemeralContainers{{{name}}}"),
        }
    }
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}
/// kubelet's `format.Pod`: name, namespace and uid.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The spec; a pod without one (never stored by an API server) reads as empty.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}
pub fn init_kind(container: &Container) -> Kind {
    if is_sidecar(container) { Kind::Sidecar } else { Kind::Init }
}

/// Every container, ephemeral ones read as ordinary ones.
pub fn containers(pod: &Pod) -> Vec<(Kind, Cow<'_, Container>)> {
    let spec = spec(pod);
    let init = init_containers(pod).iter().map(|c| (init_kind(c), Cow::Borrowed(c)));
    let regular = spec.containers.iter().map(|c| (Kind::Regular, Cow::Borrowed(c)));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (Kind::Ephemeral, Cow::Owned(as_container(c))));
    init.chain(regular).chain(ephemeral).collect()
}

pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Kind, Cow<'a, Container>)> {
    containers(pod).into_iter().find(|(_, c)| c.name == name)
}

pub fn ephemeral_target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let mut all = spec(pod).ephemeral_containers.iter().flatten();
    all.find(|c| c.name == name)?.target_container_name.as_deref().filter(|t| !t.is_empty())
}

/// An ephemeral container has a container's fields and one more.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = ephemeral.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}

/// A container whose hash differs from its spec's is restarted. As kubelet: name and image alone,
/// no other field of a running container can change.
pub fn container_hash(container: &Container) -> String {
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or("").as_bytes());
    hasher.finalize().iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// Seconds between SIGTERM and SIGKILL: what the deletion asked for, else the spec's. At least
/// one, for kubelet treats zero ("now") as one too.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let asked = match (&pod.metadata.deletion_timestamp, pod.metadata.deletion_grace_period_seconds) {
        (Some(_), Some(seconds)) => seconds,
        _ => spec(pod).termination_grace_period_seconds.unwrap_or(30),
    };
    asked.max(1)
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn api_phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}
/// The API already says that the pod ended for good.
pub fn api_terminal(pod: &Pod) -> bool {
    matches!(api_phase(pod), "Succeeded" | "Failed")
}

/// Hostname, domain and the name the kernel gets (`setHostnameAsFQDN`).
pub struct HostName {
    pub host: String,
    pub domain: String,
    pub kernel: String,
}

/// Fails when the full name does not fit the kernel's 64 bytes.
pub fn host_name(pod: &Pod, cluster_domain: &str) -> Result<HostName, String> {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Ok(HostName { host: name.to_owned(), domain: String::new(), kernel: name.to_owned() });
    }
    let host = match spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        // A label holds 63 bytes, a pod's name 253.
        None => name(pod).chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
    };
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)),
        None => String::new(),
    };
    let mut kernel = host.clone();
    if spec.set_hostname_as_fqdn.unwrap_or(false) && !domain.is_empty() {
        kernel = format!("{host}.{domain}");
        if kernel.len() > 64 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {kernel} is too long ({} characters long, max is 64 characters)",
                kernel.len()
            ));
        }
    }
    Ok(HostName { host, domain, kernel })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn host_names() {
        let plain = host_name(&pod(json!({"containers": []})), "cluster.local").unwrap();
        assert_eq!((plain.host.as_str(), plain.domain.as_str(), plain.kernel.as_str()), ("a", "", "a"));
        let full = host_name(&pod(json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true})), "c.l").unwrap();
        assert_eq!((full.domain.as_str(), full.kernel.as_str()), ("s.n.svc.c.l", "h.s.n.svc.c.l"));
        let long = json!({"containers": [], "hostname": "h".repeat(60), "subdomain": "s", "setHostnameAsFQDN": true});
        assert!(host_name(&pod(long), "c.l").is_err());
    }

    #[test]
    fn grace() {
        let mut p = pod(json!({"containers": [], "terminationGracePeriodSeconds": 5}));
        assert_eq!(grace_seconds(&p), 5);
        p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        p.metadata.deletion_grace_period_seconds = Some(0);
        assert_eq!(grace_seconds(&p), 1);
    }
}
