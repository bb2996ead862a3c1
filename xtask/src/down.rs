//! `cargo xtask down`: ends a cluster and takes every trace of it away, in whatever state it is.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use xebec_host::mounts;

use crate::{
    build::Profile,
    sh,
    up::{self, Layout, Node},
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

/// What could not be done, with what it was for.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note(&mut self, what: impl std::fmt::Display, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }
}

/// Goes on after a failure; returns all of them. Needs root.
pub fn take_down(args: &Args) -> Result<Vec<String>> {
    let layout = Layout::new(&args.name)?;
    let mut failures = Failures::default();
    let mut nodes = layout.nodes_with_traces();
    if nodes.is_empty() {
        nodes.push(layout.first());
    }
    for node in &nodes {
        failures.note("agent", end_agent(node));
    }
    failures.note("control plane", end_control_plane(&layout));
    for node in &nodes {
        end_rest(node, &mut failures);
    }
    for dir in [&layout.run_dir, &layout.dir] {
        failures.note("mounts", mounts::unmount_below(dir).map_err(Into::into));
    }
    failures.note("network", up::remove_network(&layout, &nodes));
    for node in &nodes {
        failures.note("cgroups", node.cgroup().and_then(|cgroup| Ok(cgroup.remove()?)));
    }
    failures.note("files", remove_dir(&layout.run_dir));
    if args.purge {
        failures.note("state", remove_dir(&layout.dir));
    }
    Ok(failures.0)
}

/// Takes one node away for good, but not the first one's, whose directories are the cluster's.
pub(crate) fn take_node_down(node: &Node) -> Vec<String> {
    let mut failures = Failures::default();
    failures.note("agent", end_agent(node));
    end_rest(node, &mut failures);
    for dir in [&node.run_dir, &node.dir] {
        failures.note("mounts", mounts::unmount_below(dir).map_err(Into::into));
    }
    failures.note("network", up::remove_namespace(&node.netns()));
    failures.note("cgroups", node.cgroup().and_then(|cgroup| Ok(cgroup.remove()?)));
    for dir in [&node.run_dir, &node.dir] {
        failures.note("files", remove_dir(dir));
    }
    failures.0
}

/// Lets the agent finish what it writes. containerd goes with its containers. What does not end is killed later.
fn end_agent(node: &Node) -> Result<()> {
    Ok(node.parts()?.end("agent", "xebec")?)
}

/// Lets the store be closed properly; etcd last, because the server writes to it.
fn end_control_plane(layout: &Layout) -> Result<()> {
    let parts = layout.first().parts()?;
    for (part, program) in [("server", "xebec"), ("etcd", "etcd")] {
        parts.end(part, program)?;
    }
    Ok(())
}

/// A node's processes, and what they keep outside its directories.
fn end_rest(node: &Node, failures: &mut Failures) {
    failures.note("processes", node.cgroup().and_then(|cgroup| Ok(cgroup.kill()?)));
    // Which profile ran does not matter here: only the state directory counts.
    node.containerd(&Profile::Dev.binaries()).remove_shim_sockets();
    failures.note("pins", remove_pins(&node.pin_dir()));
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
