//! A container as CRI wants it. Pure: images, mounts and environment come in resolved.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_cri::v1::security_profile::ProfileType;
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};

use crate::expand::expand;
use crate::labels;
use crate::resources;
use crate::sandbox;
use crate::spec;

/// What runc hides from an unprivileged container (`procMount: Default`).
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The user an image asks for: a number, or a name that only the image can resolve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// Everything a container needs that is not in the pod.
pub struct Inputs<'a> {
    pub restart_count: i32,
    /// What the runtime calls the image (an id or digest).
    pub image_ref: String,
    pub image_user: ImageUser,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub memory_capacity: i64,
    /// The container an ephemeral one shares processes with.
    pub target_id: Option<&'a str>,
}

/// The CRI configuration, or the message of `CreateContainerConfigError`.
pub fn config(pod: &Pod, container: &Container, inputs: Inputs<'_>) -> Result<cri::ContainerConfig, String> {
    let lookup = |name: &str| inputs.env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    let expand_all = |list: &Option<Vec<String>>| list.iter().flatten().map(|word| expand(word, lookup).0).collect();
    let linux = cri::LinuxContainerConfig {
        resources: Some(resources::container_resources(pod, container, inputs.memory_capacity)),
        security_context: Some(security_context(pod, container, &inputs)?),
    };
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: inputs.restart_count as u32 }),
        image: Some(cri::ImageSpec {
            image: inputs.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: inputs.env.iter().map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: inputs.mounts,
        labels: container_labels(pod, container),
        annotations: annotations(pod, container, inputs.restart_count),
        log_path: format!("{}/{}.log", container.name, inputs.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(linux),
        ..Default::default()
    })
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    HashMap::from([
        (labels::POD_NAME.into(), spec::name(pod).into()),
        (labels::POD_NAMESPACE.into(), spec::namespace(pod).into()),
        (labels::POD_UID.into(), spec::uid(pod).into()),
        (labels::CONTAINER_NAME.into(), container.name.clone()),
    ])
}

fn annotations(pod: &Pod, container: &Container, restart_count: i32) -> HashMap<String, String> {
    let mut out = HashMap::from([
        (labels::CONTAINER_HASH.to_owned(), spec::container_hash(container)),
        (labels::RESTART_COUNT.to_owned(), restart_count.to_string()),
        (labels::TERMINATION_MESSAGE_PATH.to_owned(), termination_path(container).to_owned()),
        (labels::TERMINATION_MESSAGE_POLICY.to_owned(), container.termination_message_policy.clone().unwrap_or_else(|| "File".into())),
        (labels::USER_IMAGE.to_owned(), container.image.clone().unwrap_or_default()),
    ]);
    if let Some(seconds) = spec::spec(pod).termination_grace_period_seconds {
        out.insert(labels::TERMINATION_GRACE_PERIOD.into(), seconds.to_string());
    }
    // Kept so that a container of a pod the API has forgotten still gets its hook.
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).and_then(|h| serde_json::to_string(h).ok()) {
        out.insert(labels::PRE_STOP_HANDLER.into(), hook);
    }
    if let Some(ports) = container.ports.as_ref().and_then(|p| serde_json::to_string(p).ok()) {
        out.insert(labels::CONTAINER_PORTS.into(), ports);
    }
    out
}

pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or("/dev/termination-log")
}

fn security_context(pod: &Pod, container: &Container, inputs: &Inputs<'_>) -> Result<cri::LinuxContainerSecurityContext, String> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = spec::spec(pod).security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(shared.run_as_user);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        check_non_root(pod, container, run_as_user, &inputs.image_user)?;
    }
    let (user, username) = match run_as_user.or(inputs.image_user.uid) {
        Some(uid) => (Some(uid), String::new()),
        None => (None, inputs.image_user.name.clone()),
    };
    let group = own.run_as_group.or(shared.run_as_group);
    let privileged = own.privileged.unwrap_or(false);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let strings = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|s| s.to_string()).collect() };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref());
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(sandbox::namespaces(pod, inputs.target_id)),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_username: username,
        run_as_group: group.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: sandbox::supplemental_groups(pod),
        no_new_privs: no_new_privs(own),
        masked_paths: strings(&MASKED_PATHS),
        readonly_paths: strings(&READONLY_PATHS),
        seccomp: Some(sandbox::seccomp_profile(profile, ProfileType::Unconfined)),
        ..Default::default()
    })
}

fn no_new_privs(context: &SecurityContext) -> bool {
    let privileged = context.privileged.unwrap_or(false);
    let admin = context.capabilities.iter().flat_map(|c| c.add.iter().flatten()).any(|c| c == "CAP_SYS_ADMIN");
    context.allow_privilege_escalation == Some(false) && !privileged && !admin
}

/// KEP-less but old: `runAsNonRoot` is checked against what the container would run as.
fn check_non_root(pod: &Pod, container: &Container, user: Option<i64>, image: &ImageUser) -> Result<(), String> {
    let place = format!("(pod: \"{}\", container: {})", spec::full_name(pod), container.name);
    match (user, image.uid, image.name.as_str()) {
        (Some(0), ..) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), ..) => Ok(()),
        (None, Some(0), _) | (None, None, "") => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_), _) => Ok(()),
        (None, None, name) => {
            Err(format!("container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn build_with(spec: Value, image_user: ImageUser) -> Result<cri::ContainerConfig, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap();
        let inputs = Inputs {
            restart_count: 3,
            image_ref: "sha256:1".into(),
            image_user,
            env: vec![("A".into(), "1".into())],
            mounts: Vec::new(),
            memory_capacity: 1 << 30,
            target_id: None,
        };
        config(&pod, &spec::spec(&pod).containers[0], inputs)
    }
    fn build(spec: Value) -> Result<cri::ContainerConfig, String> {
        build_with(spec, ImageUser { uid: Some(0), name: String::new() })
    }

    #[test]
    fn command_labels_and_log() {
        let config = build(json!({"containers": [{"name": "c", "image": "i:1", "command": ["x", "$(A)"], "args": ["$(B)"]}]})).unwrap();
        assert_eq!((config.command, config.args), (vec!["x".to_owned(), "1".into()], vec!["$(B)".to_owned()]));
        assert_eq!(config.log_path, "c/3.log");
        assert_eq!(config.annotations[labels::RESTART_COUNT], "3");
        assert_eq!(config.annotations[labels::USER_IMAGE], "i:1");
        assert_eq!(config.labels[labels::CONTAINER_NAME], "c");
        assert!(!config.linux.unwrap().security_context.unwrap().masked_paths.is_empty());
    }

    #[test]
    fn non_root() {
        let spec =
            |context: Value| json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c", "securityContext": context}]});
        assert!(build(spec(json!({}))).unwrap_err().contains("image will run as root"));
        assert!(build(spec(json!({"runAsUser": 0}))).unwrap_err().contains("breaks non-root policy"));
        assert!(build(spec(json!({"runAsUser": 5}))).is_ok());
        assert!(build(spec(json!({"runAsNonRoot": false}))).is_ok());
        let named = ImageUser { uid: None, name: "www".into() };
        assert!(build_with(spec(json!({})), named.clone()).unwrap_err().contains("non-numeric user (www)"));
        let config = build_with(json!({"containers": [{"name": "c"}]}), named).unwrap();
        assert_eq!(config.linux.unwrap().security_context.unwrap().run_as_username, "www");
    }

    #[test]
    fn privileges() {
        let context = |v: Value| {
            build(json!({"containers": [{"name": "c", "securityContext": v}]})).unwrap().linux.unwrap().security_context.unwrap()
        };
        assert!(context(json!({"allowPrivilegeEscalation": false})).no_new_privs);
        assert!(!context(json!({})).no_new_privs);
        let privileged = context(json!({"privileged": true}));
        assert!(privileged.privileged && privileged.masked_paths.is_empty() && !privileged.no_new_privs);
        assert!(context(json!({"procMount": "Unmasked"})).readonly_paths.is_empty());
        let capabilities = context(json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}})).capabilities.unwrap();
        assert_eq!((capabilities.add_capabilities, capabilities.drop_capabilities), (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]));
        assert!(context(json!({"readOnlyRootFilesystem": true})).readonly_rootfs);
    }
}
