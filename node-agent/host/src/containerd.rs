//! The configuration of a node's own containerd.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, mounts};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Images, snapshots and metadata: survives restarts of the machine.
    pub root: PathBuf,
    /// Mounts and sockets: does not.
    pub state: PathBuf,
    pub cni_conf_dir: PathBuf,
    /// Directory that [`Containerd::prepare`] fills with the names CNI plugins are looked up by.
    pub cni_bin_dir: PathBuf,
    /// `xebec-cni`, which is all of these plugins.
    pub cni_program: PathBuf,
    pub sandbox_image: String,
}

/// Plugins no node of ours uses; each costs time at every start, and `opt` makes a directory outside the node's own.
const UNUSED: [&str; 8] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
];

impl Containerd {
    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    /// Makes the directories and writes the configuration for this machine.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn prepare(&self) -> Result<(), Error> {
        for dir in [&self.root, &self.state, &self.cni_conf_dir, &self.cni_bin_dir] {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        // containerd wants a plugin of the name loopback whatever the configuration says.
        for name in ["xebec-cni", "loopback"] {
            let link = self.cni_bin_dir.join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&self.cni_program, &link).map_err(Error::io("link", link))?;
        }
        let host = Host { overlay: mounts::overlay_works(&self.root), may_lower_oom_score: may_lower_oom_score() };
        let file = self.config_file();
        fs::write(&file, self.config(host)).map_err(Error::io("write", file))
    }

    fn config(&self, host: Host) -> String {
        let path = |path: &Path| quote(&path.display().to_string());
        let unused: Vec<String> = UNUSED.iter().map(|plugin| quote(plugin)).collect();
        // netns_mounts_under_state_dir: else pods' namespaces lie in a directory that every node on this machine shares.
        format!(
            r#"version = 2
root = {root}
state = {state}
disabled_plugins = [{unused}]

[grpc]
address = {socket}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {sandbox_image}
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {cni_bin_dir}
conf_dir = {cni_conf_dir}

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = {snapshotter}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = {runc}
"#,
            root = path(&self.root),
            state = path(&self.state),
            unused = unused.join(", "),
            socket = path(&self.socket()),
            sandbox_image = quote(&self.sandbox_image),
            restrict = !host.may_lower_oom_score,
            cni_bin_dir = path(&self.cni_bin_dir),
            cni_conf_dir = path(&self.cni_conf_dir),
            snapshotter = quote(if host.overlay { "overlayfs" } else { "native" }),
            runc = path(&self.state.join("runc")),
        )
    }

    /// Removes the sockets of shims that did not live to do it themselves. They lie outside the node's directories, because
    /// their path is built into containerd.
    pub fn remove_shim_sockets(&self) {
        let tasks = self.state.join("io.containerd.runtime.v2.task/k8s.io");
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let address = fs::read_to_string(task.path().join("address")).unwrap_or_default();
            if let Some(socket) = address.trim().strip_prefix("unix://") {
                let _ = fs::remove_file(socket);
            }
        }
        // Only when empty, that is when no other containerd uses them.
        for dir in ["/run/containerd/s", "/run/containerd"] {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Host {
    overlay: bool,
    may_lower_oom_score: bool,
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whether this process has CAP_SYS_RESOURCE. Without it a sandbox whose score is to be lowered does not start at all.
fn may_lower_oom_score() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_none_or(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// Where `ctr`, containerd's own client, imports archives to for CRI.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// The arguments of `ctr` that import an archive.
pub fn import_args(socket: &Path, archive: &Path) -> Vec<std::ffi::OsString> {
    let mut args: Vec<std::ffi::OsString> = vec!["--address".into(), socket.into(), "--namespace".into(), CRI_NAMESPACE.into()];
    args.extend(["images".into(), "import".into(), archive.into()]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_follows_the_machine() {
        let containerd = Containerd {
            root: "/d/root".into(),
            state: "/r \"x\"".into(),
            cni_conf_dir: "/c".into(),
            cni_bin_dir: "/b".into(),
            cni_program: "/p/xebec-cni".into(),
            sandbox_image: "pause:1".into(),
        };
        let text = containerd.config(Host { overlay: true, may_lower_oom_score: false });
        for line in ["snapshotter = \"overlayfs\"", "restrict_oom_score_adj = true", "state = \"/r \\\"x\\\"\"", "bin_dir = \"/b\""] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        let text = containerd.config(Host { overlay: false, may_lower_oom_score: true });
        for line in ["snapshotter = \"native\"", "restrict_oom_score_adj = false"] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn capabilities_are_a_mask() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
