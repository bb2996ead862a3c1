//! `xebec up` and `xebec down`: this host as a cluster of one node, on its own network.

mod down;
mod systemd;
mod up;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
pub use down::run as down;
pub use up::run as up;
use xebec_host::{cgroup::Cgroup, containerd::Containerd, parts::Parts};

/// Where the node is on this host.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// What survives `down`: objects, images, volumes, credentials.
    #[arg(long, default_value = "/var/lib/xebec")]
    data_dir: PathBuf,
    /// What does not: sockets, process ids.
    #[arg(long, default_value = "/run/xebec")]
    run_dir: PathBuf,
    /// Directory in a BPF file system for programs, maps and links.
    #[arg(long, default_value = "/sys/fs/bpf/xebec")]
    pin_dir: PathBuf,
    /// cgroup above the pods; every process in it reaches Services.
    #[arg(long, default_value = "/")]
    cgroup_parent: String,
    /// Run the parts as background processes even where systemd could keep them.
    #[arg(long)]
    no_systemd: bool,
}

/// Up: what to start.
#[derive(Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    place: Place,
    /// Name of the node; the host's name by default.
    #[arg(long)]
    node_name: Option<String>,
    /// The node's address; that of the default route by default.
    #[arg(long)]
    node_ip: Option<std::net::IpAddr>,
    /// How packets from outside get to pods of other nodes; the same on every node. As `xebec agent --lb-mode`.
    #[arg(long, value_enum, default_value_t = crate::agent::LbMode::Snat)]
    lb_mode: crate::agent::LbMode,
    /// Go on although `xebec check` names something that this host lacks.
    #[arg(long)]
    force: bool,
}

/// Down: what to remove.
#[derive(Debug, clap::Args)]
pub struct DownArgs {
    #[command(flatten)]
    place: Place,
    /// Remove the state as well.
    #[arg(long)]
    purge: bool,
    /// Remove what `xebec agent --dataplane-only` made on a node that has another kubelet, and nothing else.
    #[arg(long, conflicts_with = "purge")]
    dataplane_only: bool,
    /// With --dataplane-only: where the runtime reads CNI configuration from.
    #[arg(long, default_value = crate::agent::CNI_CONF_DIR, requires = "dataplane_only")]
    cni_conf_dir: PathBuf,
    /// With --dataplane-only: where the runtime looks for CNI programs.
    #[arg(long, default_value = "/opt/cni/bin", requires = "dataplane_only")]
    cni_bin_dir: PathBuf,
}

/// The node's own processes, where systemd does not keep them. Apart from the pods, which lie below `kubepods`.
const SYSTEM: &str = "xebec-system";

impl Place {
    fn server_dir(&self) -> PathBuf {
        self.data_dir.join("server")
    }

    fn admin_kubeconfig(&self) -> PathBuf {
        self.server_dir().join("admin.kubeconfig")
    }

    fn agent_dir(&self) -> PathBuf {
        self.data_dir.join("agent")
    }

    fn logs(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    fn containerd_root(&self) -> PathBuf {
        self.data_dir.join("containerd")
    }

    /// All that is kept between `down` and `up`.
    fn state_dirs(&self) -> [PathBuf; 4] {
        [self.server_dir(), self.agent_dir(), self.containerd_root(), self.logs()]
    }

    fn node_kubeconfig(&self) -> PathBuf {
        self.agent_dir().join("pki/kubeconfig")
    }

    fn containerd(&self, cni: &Path) -> Containerd {
        crate::containerd::settings(&self.containerd_root(), &self.run_dir, cni)
    }

    fn parent(&self) -> Result<Cgroup> {
        Ok(Cgroup::new(&self.cgroup_parent)?)
    }

    fn parts(&self) -> Result<Parts> {
        let cgroup = self.parent()?.child(SYSTEM);
        Ok(Parts { run_dir: self.run_dir.clone(), logs: self.logs(), cgroup, netns: None })
    }

    fn uses_systemd(&self) -> bool {
        !self.no_systemd && Path::new("/run/systemd/system").is_dir()
    }
}

fn must_be_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("`xebec {what}` must run as root");
    }
    Ok(())
}
