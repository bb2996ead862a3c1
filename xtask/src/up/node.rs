//! One node of a cluster: where its files are, and what its traces on the machine are called.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xebec_host::{cgroup::Cgroup, containerd::Containerd, parts::Parts, process};

use crate::build::Binaries;

/// A machine of its own as far as Kubernetes can tell: a network namespace, a cgroup, a containerd, an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The first is 1; it runs the control plane too.
    pub number: u8,
    /// Of the Node object, the network namespace and the cgroup.
    pub name: String,
    /// What survives `down`.
    pub dir: PathBuf,
    /// What does not.
    pub run_dir: PathBuf,
}

impl Node {
    /// Makes the directories, readable by their owner alone where keys are, and the cgroup.
    pub fn create(&self) -> Result<()> {
        for (dir, mode) in [(&self.dir, 0o755), (&self.logs(), 0o755), (&self.agent_dir(), 0o700), (&self.run_dir, 0o700)] {
            make_dir(dir, mode)?;
        }
        Ok(self.cgroup()?.child("system").create()?)
    }

    /// The network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> PathBuf {
        netns(&self.name)
    }

    /// The cgroup that holds its pods and its own processes, relative to each hierarchy's root. Nodes' cgroups lie beside each
    /// other: socket hooks of a parent would see the sockets of a child's processes as well.
    pub fn cgroup_name(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn cgroup(&self) -> Result<Cgroup> {
        Ok(Cgroup::new(&self.cgroup_name())?)
    }

    /// The node's background processes.
    pub fn parts(&self) -> Result<Parts> {
        let cgroup = self.cgroup()?.child("system");
        Ok(Parts { run_dir: self.run_dir.clone(), logs: self.logs(), cgroup, netns: Some(self.netns()) })
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn agent_dir(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// A directory in a BPF file system, once the agent has mounted it.
    pub fn pin_dir(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }

    /// The same paths as `xebec containerd --root --run-dir` has.
    pub fn containerd(&self, binaries: &Binaries) -> Containerd {
        Containerd {
            root: self.dir.join("containerd"),
            state: self.run_dir.join("containerd"),
            cni_conf_dir: self.run_dir.join("cni"),
            cni_bin_dir: self.run_dir.join("cni-bin"),
            cni_program: binaries.cni.clone(),
            sandbox_image: xebec_images::PAUSE.to_owned(),
        }
    }

    /// A program as the node's own processes run: in its network, and where its socket hooks see it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        process::place(&mut command, Some(&self.cgroup()?.child("system")), Some(&self.netns()))?;
        Ok(command)
    }

    /// Whether anything of it is left on the machine.
    pub fn has_traces(&self) -> bool {
        let cgroups = self.cgroup().map(|cgroup| cgroup.dirs()).unwrap_or_default();
        cgroups.iter().chain([&self.dir, &self.run_dir, &self.netns()]).any(|path| path.exists())
    }
}

/// Where `ip netns` keeps a namespace's file.
pub(super) fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

pub(super) fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir).with_context(|| format!("cannot create {}", dir.display()))
}
