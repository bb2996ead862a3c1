//! `xebec containerd`: writes the configuration of the node's own containerd and becomes it.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xebec_host::containerd::Containerd;

/// Where containerd keeps what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images, snapshots and metadata.
    #[arg(long, default_value = "/var/lib/xebec/containerd")]
    root: PathBuf,
    /// Mounts and sockets; containerd listens on containerd/containerd.sock in it.
    #[arg(long, default_value = "/run/xebec")]
    run_dir: PathBuf,
    /// Directory of xebec-cni; that of this program by default.
    #[arg(long)]
    cni_bin_dir: Option<PathBuf>,
}

/// The settings of a node whose sockets are in `run_dir`.
pub fn settings(root: &Path, run_dir: &Path, cni_bin_dir: &Path) -> Containerd {
    Containerd {
        root: root.to_owned(),
        state: run_dir.join("containerd"),
        cni_conf_dir: run_dir.join("cni"),
        cni_bin_dir: cni_bin_dir.to_owned(),
        sandbox_image: xebec_images::PAUSE.to_owned(),
    }
}

/// Returns only if containerd cannot be run.
pub fn run(args: &Args) -> Result<()> {
    let bin_dir = match &args.cni_bin_dir {
        Some(dir) => dir.clone(),
        None => own_dir()?,
    };
    let containerd = settings(&args.root, &args.run_dir, &bin_dir);
    containerd.prepare()?;
    let error = Command::new("containerd").arg("--config").arg(containerd.config_file()).exec();
    Err(error).context("cannot run containerd; install the package containerd")
}

/// Where this program lies.
pub fn own_dir() -> Result<PathBuf> {
    let file = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(file.parent().unwrap_or(Path::new("/")).to_owned())
}
