//! `cargo xtask down`: ends a cluster and takes every trace of it away, in whatever state it is.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use xebec_host::mounts;

use crate::{
    build::Profile,
    sh,
    up::{self, Layout},
};

/// What to end.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Name of the cluster.
    #[arg(long, default_value = "up")]
    pub name: String,
    /// Remove its state as well: objects, images, logs, credentials.
    #[arg(long)]
    pub purge: bool,
}

/// Ends the cluster.
pub fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        return sh::again_as_root(&[]);
    }
    let failures = take_down(args)?;
    if !failures.is_empty() {
        bail!("not everything could be removed:\n  {}", failures.join("\n  "));
    }
    println!("cluster {} is down", args.name);
    Ok(())
}

/// Goes on after a failure; returns all of them. Needs root.
pub fn take_down(args: &Args) -> Result<Vec<String>> {
    let layout = Layout::new(&args.name)?;
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    note("graceful end", end_gracefully(&layout));
    let cgroup = layout.cgroup()?;
    note("processes", cgroup.kill().map_err(Into::into));
    // Which profile ran does not matter here: only the state directory counts.
    layout.containerd(&Profile::Dev.binaries()).remove_shim_sockets();
    note("pins", remove_pins(&layout.pin_dir()));
    for dir in [&layout.run_dir, &layout.dir] {
        note("mounts", mounts::unmount_below(dir).map_err(Into::into));
    }
    note("network", up::remove_network(&layout));
    note("cgroups", cgroup.remove().map_err(Into::into));
    note("files", remove_dir(&layout.run_dir));
    if args.purge {
        note("state", remove_dir(&layout.dir));
    }
    Ok(failures)
}

/// Lets the store be closed properly and the agent finish what it writes. containerd goes with its containers. What does not
/// end is killed later.
fn end_gracefully(layout: &Layout) -> Result<()> {
    let parts = layout.parts()?;
    // etcd last: the server writes to it.
    for (part, program) in [("agent", "xebec"), ("server", "xebec"), ("etcd", "etcd")] {
        parts.end(part, program)?;
    }
    Ok(())
}

/// Pins keep programs and maps alive; unmounting alone would let them go only when the file system is freed.
fn remove_pins(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() {
            remove_pins(&path)?;
            fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        } else if !matches!(path.extension(), Some(extension) if extension == "debug") {
            // The kernel's own iterators (maps.debug, progs.debug) stay until the file system goes.
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", dir.display())),
    }
}
