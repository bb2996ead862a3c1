//! A pod's sandbox as CRI wants it. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_cri::v1 as cri;
use k8s_cri::v1::{NamespaceMode, Protocol, security_profile::ProfileType};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};

use crate::labels;
use crate::resources;
use crate::spec;

/// Everything a sandbox needs that is not in the pod.
pub struct Inputs<'a> {
    pub attempt: u32,
    pub hostname: String,
    pub dns: cri::DnsConfig,
    pub log_directory: String,
    /// `<parent>/kubepods`.
    pub kubepods: &'a str,
}

pub fn config(pod: &Pod, inputs: Inputs<'_>) -> cri::PodSandboxConfig {
    let spec = spec::spec(pod);
    let uid = spec::uid(pod);
    let context = spec.security_context.as_ref();
    let mut pod_labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    pod_labels.insert(labels::POD_NAME.into(), spec::name(pod).into());
    pod_labels.insert(labels::POD_NAMESPACE.into(), spec::namespace(pod).into());
    pod_labels.insert(labels::POD_UID.into(), uid.into());
    let privileged = spec::containers(pod).iter().any(|(_, c)| is_privileged(c));
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        run_as_user: context.and_then(|c| c.run_as_user).map(|value| cri::Int64Value { value }),
        // CRI refuses a group without a user.
        run_as_group: context.filter(|c| c.run_as_user.is_some()).and_then(|c| c.run_as_group).map(|value| cri::Int64Value { value }),
        supplemental_groups: supplemental_groups(pod),
        privileged,
        seccomp: Some(seccomp_profile(context.and_then(|c| c.seccomp_profile.as_ref()), ProfileType::RuntimeDefault)),
        ..Default::default()
    };
    let sysctls = context.and_then(|c| c.sysctls.as_ref());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: uid.into(),
            namespace: spec::namespace(pod).into(),
            attempt: inputs.attempt,
        }),
        hostname: if spec::host_network(pod) { String::new() } else { inputs.hostname },
        log_directory: inputs.log_directory,
        dns_config: Some(inputs.dns),
        port_mappings: port_mappings(pod),
        labels: pod_labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/{}", inputs.kubepods, resources::qos(pod).cgroup(uid)),
            security_context: Some(security),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.replace('/', "."), s.value.clone())).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged).unwrap_or(false)
}

/// Namespaces of the sandbox, or of a container; `target` is the id an ephemeral container joins.
pub fn namespaces(pod: &Pod, target: Option<&str>) -> cri::NamespaceOption {
    let spec = spec::spec(pod);
    let mode = |host: Option<bool>| if host.unwrap_or(false) { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
    let pid = if spec.host_pid.unwrap_or(false) {
        NamespaceMode::Node
    } else if spec.share_process_namespace.unwrap_or(false) {
        NamespaceMode::Pod
    } else if target.is_some() {
        NamespaceMode::Target
    } else {
        NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: mode(spec.host_network),
        ipc: mode(spec.host_ipc),
        pid: pid as i32,
        target_id: if pid == NamespaceMode::Target { target.unwrap_or("").to_owned() } else { String::new() },
        userns_options: None,
    }
}

/// fsGroup first, as kubelet orders them.
pub fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let context = spec::spec(pod).security_context.as_ref();
    let fs_group = context.and_then(|c| c.fs_group);
    fs_group.into_iter().chain(context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default()).collect()
}

pub fn seccomp_profile(profile: Option<&SeccompProfile>, default: ProfileType) -> cri::SecurityProfile {
    let (kind, localhost_ref) = match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => (ProfileType::RuntimeDefault, String::new()),
        Some(("Unconfined", _)) => (ProfileType::Unconfined, String::new()),
        Some(("Localhost", path)) => (ProfileType::Localhost, format!("/var/lib/kubelet/seccomp/{}", path.unwrap_or(""))),
        Some(_) | None => (default, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

/// Ports with a host port, one mapping each (IP, protocol, host port).
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    let mut unique = BTreeMap::new();
    for (kind, container) in spec::containers(pod) {
        if kind == spec::Kind::Init {
            continue;
        }
        for port in container.ports.iter().flatten() {
            let Some(host_port) = port.host_port.filter(|p| *p > 0) else { continue };
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                Some(_) | None => Protocol::Tcp,
            } as i32;
            let host_ip = port.host_ip.clone().unwrap_or_default();
            unique.entry((host_ip.clone(), protocol, host_port)).or_insert(cri::PortMapping {
                protocol,
                container_port: port.container_port,
                host_port,
                host_ip,
            });
        }
    }
    unique.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn build(spec: serde_json::Value) -> cri::PodSandboxConfig {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}}, "spec": spec}))
                .unwrap();
        let inputs = Inputs {
            attempt: 2,
            hostname: "p".into(),
            dns: cri::DnsConfig::default(),
            log_directory: "/l".into(),
            kubepods: "/x/kubepods",
        };
        config(&pod, inputs)
    }

    #[test]
    fn plain_pod() {
        let config =
            build(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]}));
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/x/kubepods/besteffort/podu");
        assert_eq!((config.labels["app"].as_str(), config.labels[labels::POD_UID].as_str()), ("x", "u"));
        assert_eq!((config.port_mappings.len(), config.port_mappings[0].host_port), (1, 8080));
        let security = linux.security_context.unwrap();
        assert!(!security.privileged);
        assert_eq!(security.namespace_options.unwrap().pid, NamespaceMode::Container as i32);
    }

    #[test]
    fn host_namespaces_and_groups() {
        let config = build(
            json!({"hostNetwork": true, "hostPID": true, "hostIPC": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}],
            "securityContext": {"fsGroup": 7, "supplementalGroups": [8], "runAsGroup": 5, "sysctls": [{"name": "net.core/somaxconn", "value": "1"}]}}),
        );
        let linux = config.linux.unwrap();
        assert_eq!(linux.sysctls["net.core.somaxconn"], "1");
        let security = linux.security_context.unwrap();
        assert_eq!(security.supplemental_groups, [7, 8]);
        assert!(security.privileged && security.run_as_group.is_none());
        let options = security.namespace_options.unwrap();
        assert_eq!((options.network, options.pid, options.ipc), (2, 2, 2));
        assert_eq!(config.hostname, "");
    }
}
