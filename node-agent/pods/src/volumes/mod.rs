//! A pod's volumes on the node: made before its containers, kept up to date, removed after them.

pub mod atomic;
pub mod mounts;
mod payload;
mod subpath;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_cri::v1::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, ProjectedVolumeSource, Volume};

use crate::expand::expand;
use crate::fields::Place;
use crate::objects::Objects;
use crate::quantity::{self, Amount};
use crate::spec;
use atomic::{File, Payload};
use payload::DEFAULT_MODE;

/// Where a volume lies on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVolume {
    pub path: PathBuf,
    /// Made of API objects: containers never write to it.
    pub read_only: bool,
}

pub type Volumes = HashMap<String, HostVolume>;

/// A volume that could not be made, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// The directory of a pod's volumes and files.
pub fn pod_dir(data_dir: &Path, uid: &str) -> PathBuf {
    data_dir.join("pods").join(uid)
}

/// Makes, or brings up to date, every volume that a container mounts.
pub async fn prepare(objects: &Objects, data_dir: &Path, pod: &Pod, place: &Place) -> Result<Volumes, Vec<VolumeError>> {
    let used: BTreeSet<String> =
        spec::containers(pod).iter().flat_map(|(_, c)| c.volume_mounts.iter().flatten().map(|m| m.name.clone())).collect();
    let all = spec::spec(pod).volumes.iter().flatten().filter(|v| used.contains(&v.name));
    let made = futures::future::join_all(all.map(|volume| async move {
        let result = prepare_one(objects, data_dir, pod, volume, place).await;
        (volume.name.clone(), result)
    }))
    .await;
    let mut volumes = Volumes::new();
    let mut errors = Vec::new();
    for (name, result) in made {
        match result {
            Ok(volume) => {
                volumes.insert(name, volume);
            }
            Err(message) => errors.push(VolumeError { volume: name, message }),
        }
    }
    if errors.is_empty() { Ok(volumes) } else { Err(errors) }
}

/// Whether the volumes change with time or with API objects, so that they need to be looked at again.
pub fn need_refresh(pod: &Pod) -> bool {
    let objects = |v: &Volume| v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some();
    spec::spec(pod).volumes.iter().flatten().any(objects)
}

async fn prepare_one(objects: &Objects, data_dir: &Path, pod: &Pod, volume: &Volume, place: &Place) -> Result<HostVolume, String> {
    let namespace = spec::namespace(pod);
    let dir = |plugin: &str| pod_dir(data_dir, spec::uid(pod)).join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name);
    let group = fs_group(pod);
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let payload = match objects.config_map(namespace, &source.name).await? {
            Some(map) => payload::config_map(&map, source.items.as_deref(), optional, mode)?,
            None if optional => Payload::new(),
            None => return Err(format!("configmap \"{}\" not found", source.name)),
        };
        return write(dir("configmap"), payload, group, false).await;
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or("");
        let optional = source.optional.unwrap_or(false);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let payload = match objects.secret(namespace, name).await? {
            Some(secret) => payload::secret(&secret, source.items.as_deref(), optional, mode)?,
            None if optional => Payload::new(),
            None => return Err(format!("secret \"{name}\" not found")),
        };
        return write(dir("secret"), payload, group, true).await;
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let payload = payload::downward_api(pod, source.items.as_deref().unwrap_or_default(), mode, place)?;
        return write(dir("downward-api"), payload, group, true).await;
    }
    if let Some(source) = &volume.projected {
        let payload = projected(objects, pod, source, place).await?;
        return write(dir("projected"), payload, group, true).await;
    }
    if let Some(source) = &volume.empty_dir {
        let dir = dir("empty-dir");
        let medium = source.medium.clone().unwrap_or_default();
        let size = memory_size(pod, source.size_limit.as_ref().and_then(|q| Amount::parse(&q.0)), place);
        return blocking(move || empty_dir(&dir, &medium, size, group)).await.map(|path| HostVolume { path, read_only: false });
    }
    if let Some(source) = &volume.host_path {
        let source = source.clone();
        return blocking(move || host_path(&source)).await.map(|path| HostVolume { path, read_only: false });
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let bound = objects.bound_volume(namespace, &source.claim_name).await?;
        let spec = bound.spec.unwrap_or_default();
        let read_only = source.read_only.unwrap_or(false);
        if let Some(host) = spec.host_path {
            return blocking(move || host_path(&host)).await.map(|path| HostVolume { path, read_only });
        }
        if let Some(local) = spec.local {
            let host = HostPathVolumeSource { path: local.path, type_: None };
            return blocking(move || host_path(&host)).await.map(|path| HostVolume { path, read_only });
        }
        return Err(format!(
            "persistent volume of claim \"{}\" is of a kind this node cannot mount (hostPath and local can be)",
            source.claim_name
        ));
    }
    Err("this kind of volume cannot be mounted on this node".into())
}

async fn projected(objects: &Objects, pod: &Pod, source: &ProjectedVolumeSource, place: &Place) -> Result<Payload, String> {
    let namespace = spec::namespace(pod);
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut all = Payload::new();
    let mut errors = Vec::new();
    for part in source.sources.iter().flatten() {
        let result = if let Some(map) = &part.config_map {
            let optional = map.optional.unwrap_or(false);
            match objects.config_map(namespace, &map.name).await? {
                Some(found) => payload::config_map(&found, map.items.as_deref(), optional, mode),
                None if optional => Ok(Payload::new()),
                None => Err(format!("configmap \"{}\" not found", map.name)),
            }
        } else if let Some(secret) = &part.secret {
            let optional = secret.optional.unwrap_or(false);
            match objects.secret(namespace, &secret.name).await? {
                Some(found) => payload::secret(&found, secret.items.as_deref(), optional, mode),
                None if optional => Ok(Payload::new()),
                None => Err(format!("secret \"{}\" not found", secret.name)),
            }
        } else if let Some(downward) = &part.downward_api {
            payload::downward_api(pod, downward.items.as_deref().unwrap_or_default(), mode, place)
        } else if let Some(token) = &part.service_account_token {
            let seconds = token.expiration_seconds.unwrap_or(3600);
            let audience = token.audience.as_deref().filter(|a| !a.is_empty());
            let uid = common_user(pod);
            // Readable by the one user of the pod, by the fsGroup, or by all when nobody is known.
            let mode = if uid.is_some() || fs_group(pod).is_some() { 0o600 } else { mode as u32 };
            objects
                .token(pod, audience, seconds)
                .await
                .map(|value| Payload::from([(token.path.clone(), File { data: value.into_bytes(), mode, uid })]))
        } else {
            Err("a projected source of this kind is not supported on this node".into())
        };
        match result {
            Ok(payload) => all.extend(payload),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors.join(", ")) }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = spec::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user of every container, when they all run as one given by number.
fn common_user(pod: &Pod) -> Option<u32> {
    let shared = spec::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec::containers(pod).into_iter().map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(shared));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

/// A memory volume holds at most its limit, the pod's memory limit or the node's memory.
fn memory_size(pod: &Pod, limit: Option<Amount>, place: &Place) -> i64 {
    let node = quantity::get(Some(&place.allocatable), "memory").map(Amount::value);
    let pod_limit = Some(crate::resources::pod_cgroup(pod).memory_limit).filter(|bytes| *bytes > 0);
    let limit = limit.map(Amount::value).filter(|bytes| *bytes > 0);
    [limit, pod_limit, node].into_iter().flatten().min().unwrap_or(0)
}

async fn write(dir: PathBuf, payload: Payload, group: Option<u32>, secret: bool) -> Result<HostVolume, String> {
    blocking(move || {
        fs::create_dir_all(&dir)?;
        if secret {
            // Never on disk.
            mounts::mount_tmpfs(&dir, 0)?;
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(if group.is_some() { 0o2777 } else { 0o777 }))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(&dir, None, Some(group))?;
        }
        atomic::write(&dir, &payload, group)?;
        Ok(dir)
    })
    .await
    .map(|path| HostVolume { path, read_only: true })
}

fn empty_dir(dir: &Path, medium: &str, size: i64, group: Option<u32>) -> io::Result<PathBuf> {
    let known = dir.exists();
    fs::create_dir_all(dir)?;
    match medium {
        "" => {}
        "Memory" => mounts::mount_tmpfs(dir, size)?,
        other => return Err(io::Error::other(format!("emptyDir medium {other:?} is not supported on this node"))),
    }
    if !known || medium == "Memory" {
        fs::set_permissions(dir, fs::Permissions::from_mode(if group.is_some() { 0o2777 } else { 0o777 }))?;
        if group.is_some() {
            std::os::unix::fs::chown(dir, None, group)?;
        }
    }
    Ok(dir.to_owned())
}

fn host_path(source: &HostPathVolumeSource) -> io::Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let wanted = source.type_.as_deref().unwrap_or("");
    let found = fs::metadata(&path).ok();
    let failed = |what: &str| Err(io::Error::other(format!("hostPath type check failed: {} is not a {what}", source.path)));
    match (wanted, found) {
        ("", _) => {
            if !path.exists() {
                fs::create_dir_all(&path)?;
            }
        }
        ("DirectoryOrCreate", None) => {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        ("FileOrCreate", None) => {
            let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        ("DirectoryOrCreate" | "Directory", Some(meta)) if meta.is_dir() => {}
        ("DirectoryOrCreate" | "Directory", _) => return failed("directory"),
        ("FileOrCreate" | "File", Some(meta)) if meta.is_file() => {}
        ("FileOrCreate" | "File", _) => return failed("file"),
        ("Socket", Some(meta)) if meta.file_type().is_socket() => {}
        ("Socket", _) => return failed("socket file"),
        ("CharDevice", Some(meta)) if meta.file_type().is_char_device() => {}
        ("CharDevice", _) => return failed("character device"),
        ("BlockDevice", Some(meta)) if meta.file_type().is_block_device() => {}
        ("BlockDevice", _) => return failed("block device"),
        (other, _) => return Err(io::Error::other(format!("hostPath type {other:?} is unknown"))),
    }
    Ok(path)
}

/// A container's mounts of volumes. Binds sub-paths, so it may block; the error is the message of
/// `CreateContainerConfigError`.
pub fn container_mounts(
    data_dir: &Path,
    pod: &Pod,
    container: &Container,
    volumes: &Volumes,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes
            .get(&mount.name)
            .ok_or_else(|| format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name))?;
        let sub_path = match (mount.sub_path.as_deref().unwrap_or(""), mount.sub_path_expr.as_deref().unwrap_or("")) {
            (plain, "") => plain.to_owned(),
            (_, expression) => {
                let lookup = |name: &str| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
                let (path, missing) = expand(expression, lookup);
                if !missing.is_empty() {
                    return Err(format!("missing value for {}", missing.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(", ")));
                }
                path
            }
        };
        if Path::new(&sub_path).is_absolute() {
            return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
        }
        if Path::new(&sub_path).components().any(|c| c == std::path::Component::ParentDir) {
            return Err(format!("unable to provision SubPath `{sub_path}`: must not contain '..'"));
        }
        let host_path = if sub_path.is_empty() {
            volume.path.clone()
        } else {
            let target =
                pod_dir(data_dir, spec::uid(pod)).join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
            subpath::bind(&volume.path, &sub_path, &target).map_err(|e| {
                format!("failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}", mount.name, container.name)
            })?
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            Some(_) | None => MountPropagation::PropagationPrivate,
        };
        out.push(Mount {
            container_path: if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) },
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only.unwrap_or(false) || volume.read_only,
            propagation: propagation as i32,
            ..Default::default()
        });
    }
    Ok(out)
}

/// Removes a pod's volumes: mounts first, so that no data behind one is touched. Termination
/// messages and the hosts file stay.
pub fn tear_down(data_dir: &Path, uid: &str) -> io::Result<()> {
    let dir = pod_dir(data_dir, uid);
    mounts::unmount_below(&dir)?;
    remove(&dir.join("volume-subpaths"))?;
    remove(&dir.join("volumes"))
}

/// Removes all that is left of a pod on disk.
pub fn remove_pod_dir(data_dir: &Path, uid: &str) -> io::Result<()> {
    let dir = pod_dir(data_dir, uid);
    mounts::unmount_below(&dir)?;
    remove(&dir)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| {
            let path = dir.path().join(name).to_string_lossy().into_owned();
            host_path(&HostPathVolumeSource { path, type_: Some(kind.into()) }).is_ok()
        };
        fs::write(dir.path().join("file"), "x").unwrap();
        assert!(check("file", "File") && check("file", "FileOrCreate") && !check("file", "Directory") && !check("file", "Socket"));
        assert!(check("new-dir", "DirectoryOrCreate") && check("new-dir", "Directory") && !check("new-dir", "File"));
        assert!(check("new-file", "FileOrCreate") && !check("missing", "File") && !check("file", "Nonsense"));
    }

    #[test]
    fn one_user_owns_the_token() {
        let pod = |v: serde_json::Value| serde_json::from_value::<Pod>(json!({"spec": v})).unwrap();
        let c = |user: Option<i64>| json!({"name": "c", "securityContext": {"runAsUser": user}});
        assert_eq!(common_user(&pod(json!({"containers": [c(Some(5)), c(Some(5))]}))), Some(5));
        assert_eq!(common_user(&pod(json!({"containers": [c(Some(5)), c(None)]}))), None);
        assert_eq!(common_user(&pod(json!({"securityContext": {"runAsUser": 7}, "containers": [c(None)]}))), Some(7));
        assert_eq!(common_user(&pod(json!({"containers": [c(None)]}))), None);
    }

    #[test]
    fn sub_paths_stay_inside() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "m", "subPathExpr": "$(X)/a"}]}]}}))
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::from([("v".to_owned(), HostVolume { path: dir.path().into(), read_only: false })]);
        let run =
            |env: &[(String, String)]| container_mounts(dir.path(), &pod, &spec::spec(&pod).containers[0], &volumes, env).unwrap_err();
        assert_eq!(run(&[]), "missing value for \"X\"");
        assert!(run(&[("X".into(), "..".into())]).contains("must not contain '..'"));
        assert!(run(&[("X".into(), "/etc".into())]).contains("must not be an absolute path"));
    }
}
