//! What the processes of a node are started with: etcd if wanted, server, containerd, agent.

use std::{ffi::OsString, fs, path::Path};

use anyhow::{Context, Result};
use xebec_host::{
    containerd::import_args,
    parts::{Ensured, Parts},
};

use super::{Layout, Store, etcd, network::Network};
use crate::{build::Binaries, image::Archives, sh};

/// Starts what does not run, and what runs an older build.
pub(super) fn start(layout: &Layout, binaries: &Binaries, network: &Network, store: Store, images: &Archives) -> Result<()> {
    let parts = layout.parts()?;
    let containerd = layout.containerd(binaries);
    let dirs = [("--root", &containerd.root), ("--run-dir", &layout.run_dir), ("--cni-program", &containerd.cni_program)];
    let started = parts.ensure("containerd", "containerd", &binaries.xebec, with(&["containerd"], &dirs))?;
    if store == Store::Etcd {
        etcd::start(layout, &parts, binaries)?;
    }
    let node_ip = network.node.to_string();
    let mut args = with(&["server", "--bind", "0.0.0.0:6443", "--advertise-address", &node_ip], &[("--data-dir", &layout.server_dir())]);
    if store == Store::Etcd {
        args.extend(etcd::server_args(layout));
    }
    parts.ensure("server", "xebec", &binaries.xebec, args)?;
    parts.wait_for("server", &layout.server_dir().join("admin.kubeconfig"))?;

    let (node_name, node_kubeconfig) = (layout.node_name(), layout.agent_dir().join("pki/kubeconfig"));
    if !node_kubeconfig.exists() {
        let url = format!("https://{node_ip}:6443");
        let words = ["kubeconfig", "--server", &url, "--node", &node_name, "--node-ip", &node_ip];
        let dirs = [("--data-dir", &layout.server_dir()), ("--out", &node_kubeconfig)];
        sh::quiet(&mut sh::cmd(&binaries.xebec, with(&words, &dirs)))?;
    }
    let words = ["agent", "--node-name", &node_name, "--node-ip", &node_ip, "--cgroup-parent", &layout.cgroup_name()];
    let dirs = [
        ("--kubeconfig", &node_kubeconfig),
        ("--data-dir", &layout.agent_dir()),
        ("--run-dir", &layout.run_dir),
        ("--pin-dir", &layout.pin_dir()),
    ];
    parts.ensure("agent", "xebec", &binaries.xebec, with(&words, &dirs))?;
    if started == Ensured::Started || !imported(layout, images) {
        import(layout, &parts, images, &containerd.socket())?;
    }
    Ok(())
}

fn with<P: AsRef<Path>>(words: &[&str], flags: &[(&str, P)]) -> Vec<OsString> {
    let words = words.iter().map(OsString::from);
    words.chain(flags.iter().flat_map(|(flag, path)| [flag.into(), path.as_ref().into()])).collect()
}

fn import(layout: &Layout, parts: &Parts, images: &Archives, socket: &Path) -> Result<()> {
    if imported(layout, images) {
        return Ok(());
    }
    parts.wait_for("containerd", socket)?;
    for archive in [&images.pause, &images.busybox] {
        sh::quiet(&mut sh::cmd("ctr", import_args(socket, archive)))?;
    }
    fs::write(stamp(layout), fingerprint(images)).context("cannot write in the cluster's directory")
}

fn stamp(layout: &Layout) -> std::path::PathBuf {
    layout.dir.join("images-imported")
}

fn imported(layout: &Layout, images: &Archives) -> bool {
    layout.dir.join("containerd").is_dir() && fs::read(stamp(layout)).is_ok_and(|known| known == fingerprint(images))
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
