//! What the processes of a cluster are started with: etcd if wanted and the server on the first node, containerd and agent on
//! every node.

use std::{ffi::OsString, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, bail};
use xebec_host::{
    containerd::import_args,
    parts::{Ensured, Parts},
};

use super::{Layout, LbMode, Node, Routing, Store, etcd, network::Network};
use crate::{build::Binaries, image::Archives, sh};

/// What all nodes are started with.
#[derive(Clone, Copy)]
pub(super) struct Starter<'a> {
    pub layout: &'a Layout,
    pub binaries: &'a Binaries,
    pub network: &'a Network,
    pub images: &'a Archives,
    pub routing: Routing,
    pub lb_mode: LbMode,
}

impl Starter<'_> {
    /// Starts what does not run, and what runs an older build. Whether an agent was among it.
    pub fn start(&self, store: Store, nodes: &[Node]) -> Result<bool> {
        // First, because it takes longest to be there, and needs nothing.
        let started = nodes.iter().map(|node| self.containerd(node)).collect::<Result<Vec<_>>>()?;
        self.control_plane(store)?;
        std::thread::scope(|scope| {
            let work = nodes.iter().zip(started).map(|(node, started)| scope.spawn(move || self.node(node, started))).collect::<Vec<_>>();
            work.into_iter().try_fold(false, |any, thread| match thread.join() {
                Ok(result) => Ok(any | (result? == Ensured::Started)),
                Err(_) => bail!("a thread that starts a node died"),
            })
        })
    }

    fn containerd(&self, node: &Node) -> Result<Ensured> {
        let containerd = node.containerd(self.binaries);
        let dirs = [("--root", &containerd.root), ("--run-dir", &node.run_dir), ("--cni-program", &containerd.cni_program)];
        Ok(node.parts()?.ensure("containerd", "containerd", &self.binaries.xebec, with(&["containerd"], &dirs))?)
    }

    fn control_plane(&self, store: Store) -> Result<()> {
        let (layout, parts) = (self.layout, self.layout.first().parts()?);
        if store == Store::Etcd {
            etcd::start(layout, &parts, self.binaries)?;
        }
        let (address, family) = (self.network.primary(1).to_string(), self.network.family);
        let (bind, pods, services) = (format!("{}:6443", family.any()), family.pod_cidrs(), family.service_cidrs());
        let words = ["server", "--bind", &bind, "--advertise-address", &address, "--pod-cidr", &pods, "--service-cidr", &services];
        let mut args = with(&words, &[("--data-dir", &layout.server_dir())]);
        if store == Store::Etcd {
            args.extend(etcd::server_args(layout));
        }
        parts.ensure("server", "xebec", &self.binaries.xebec, args)?;
        Ok(parts.wait_for("server", &layout.server_dir().join("admin.kubeconfig"))?)
    }

    fn node(&self, node: &Node, containerd: Ensured) -> Result<Ensured> {
        let parts = node.parts()?;
        let addresses: Vec<String> = self.network.node(node.number).iter().map(ToString::to_string).collect();
        let kubeconfig = self.credentials(node, &addresses)?;
        let (node_ip, cgroup, family) = (addresses.join(","), node.cgroup_name(), self.network.family);
        let (bind, pods, services) = (format!("{}:10250", family.any()), family.pod_cidrs(), family.service_cidrs());
        let mut words = vec!["agent", "--node-name", &node.name, "--node-ip", &node_ip, "--cgroup-parent", &cgroup];
        words.extend(["--bind", &bind, "--cluster-cidr", &pods, "--service-cidr", &services]);
        words.extend(["--routing", self.routing.name(), "--lb-mode", self.lb_mode.name()]);
        let dirs = [
            ("--kubeconfig", &kubeconfig),
            ("--data-dir", &node.agent_dir()),
            ("--run-dir", &node.run_dir),
            ("--pin-dir", &node.pin_dir()),
        ];
        let agent = parts.ensure("agent", "xebec", &self.binaries.xebec, with(&words, &dirs))?;
        if containerd == Ensured::Started || !imported(node, self.images) {
            import(node, &parts, self.images, &node.containerd(self.binaries).socket())?;
        }
        Ok(agent)
    }

    /// The node's credentials, made anew when what they are for has changed.
    fn credentials(&self, node: &Node, addresses: &[String]) -> Result<std::path::PathBuf> {
        let pki = node.agent_dir().join("pki");
        let (kubeconfig, stamp) = (pki.join("kubeconfig"), pki.join("made-for"));
        let url = format!("https://{}", SocketAddr::new(self.network.primary(1), 6443));
        let wanted = format!("{url} {}\n", addresses.join(" "));
        if !kubeconfig.exists() || fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
            let mut words = vec!["kubeconfig", "--server", &url, "--node", &node.name];
            words.extend(addresses.iter().flat_map(|address| ["--node-ip", address]));
            let dirs = [("--data-dir", &self.layout.server_dir()), ("--out", &kubeconfig)];
            sh::quiet(&mut sh::cmd(&self.binaries.xebec, with(&words, &dirs)))?;
            fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
        }
        Ok(kubeconfig)
    }
}

fn with<P: AsRef<Path>>(words: &[&str], flags: &[(&str, P)]) -> Vec<OsString> {
    let words = words.iter().map(OsString::from);
    words.chain(flags.iter().flat_map(|(flag, path)| [flag.into(), path.as_ref().into()])).collect()
}

fn import(node: &Node, parts: &Parts, images: &Archives, socket: &Path) -> Result<()> {
    if imported(node, images) {
        return Ok(());
    }
    parts.wait_for("containerd", socket)?;
    for archive in [&images.pause, &images.busybox] {
        sh::quiet(&mut sh::cmd("ctr", import_args(socket, archive)))?;
    }
    fs::write(stamp(node), fingerprint(images)).context("cannot write in the cluster's directory")
}

fn stamp(node: &Node) -> std::path::PathBuf {
    node.dir.join("images-imported")
}

fn imported(node: &Node, images: &Archives) -> bool {
    node.dir.join("containerd").is_dir() && fs::read(stamp(node)).is_ok_and(|known| known == fingerprint(images))
}

/// The archives' own hash: a changed image is imported again.
fn fingerprint(images: &Archives) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for archive in [&images.pause, &images.busybox] {
        hash.update(fs::read(archive).unwrap_or_default());
    }
    hash.finalize().to_vec()
}
