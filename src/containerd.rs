//! `xebec containerd`: writes the configuration of the node's own containerd and becomes it.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
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
    /// The program xebec-cni; the one beside this program by default.
    #[arg(long)]
    cni_program: Option<PathBuf>,
}

/// The settings of a node whose sockets are in `run_dir`.
pub fn settings(root: &Path, run_dir: &Path, cni_program: &Path) -> Containerd {
    Containerd {
        root: root.to_owned(),
        state: run_dir.join("containerd"),
        cni_conf_dir: run_dir.join("cni"),
        cni_bin_dir: run_dir.join("cni-bin"),
        cni_program: cni_program.to_owned(),
        sandbox_image: xebec_images::PAUSE.to_owned(),
    }
}

/// Returns only if containerd cannot be run.
pub fn run(args: &Args) -> Result<()> {
    let cni_program = match &args.cni_program {
        Some(file) => file.clone(),
        None => own_cni()?,
    };
    let containerd = settings(&args.root, &args.run_dir, &cni_program);
    containerd.prepare()?;
    let error = Command::new("containerd").arg("--config").arg(containerd.config_file()).exec();
    Err(error).context("cannot run containerd; install the package containerd")
}

/// The xebec-cni beside this program.
///
/// # Errors
/// If there is none.
pub fn own_cni() -> Result<PathBuf> {
    let file = std::env::current_exe().context("cannot find this program's own file")?;
    let cni = file.with_file_name("xebec-cni");
    if !cni.is_file() {
        bail!("{} does not exist: xebec-cni must lie beside this program", cni.display());
    }
    Ok(cni)
}
