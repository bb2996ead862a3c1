//! `xebec image`: images without a registry.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use xebec_host::containerd::import_args;

/// How long containerd may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do with images.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Load OCI archives into the node.
    Import {
        /// The archives.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        node: Node,
    },
    /// Load the pod sandbox's own image, which is part of this program.
    ImportPause {
        #[command(flatten)]
        node: Node,
    },
}

/// Which containerd.
#[derive(Debug, clap::Args)]
struct Node {
    /// containerd's socket. `cargo xtask up` prints that of its node.
    #[arg(long, env = "XEBEC_CONTAINERD", default_value = "/run/xebec/containerd/containerd.sock")]
    containerd: PathBuf,
}

/// Imports what was asked for.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Action::Import { files, node } => files.iter().try_for_each(|file| import(&node.containerd, file)),
        Action::ImportPause { node } => import_pause(&node.containerd),
    }
}

/// Loads the sandbox image.
pub fn import_pause(socket: &Path) -> Result<()> {
    let dir = std::env::temp_dir();
    let path = dir.join(format!("xebec-pause-{}.tar", std::process::id()));
    let written = std::fs::File::create(&path).and_then(|file| xebec_images::pause().write(file));
    let imported = written.with_context(|| format!("cannot write {}", path.display())).and_then(|()| import(socket, &path));
    let _ = std::fs::remove_file(&path);
    imported
}

/// Loads an archive, once containerd answers.
fn import(socket: &Path, archive: &Path) -> Result<()> {
    if !archive.is_file() {
        bail!("{} is no file", archive.display());
    }
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        if Instant::now() > deadline {
            bail!("no containerd answers on {}; is the node up, and is --containerd its socket?", socket.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Importing (blobs, the image's record, unpacking) is the client's work; containerd's own client does it.
    let output = Command::new("ctr").args(import_args(socket, archive)).output().context("cannot run ctr, which comes with containerd")?;
    if !output.status.success() {
        bail!("{} cannot be imported: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
