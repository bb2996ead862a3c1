//! Where a cluster's files are, and what its traces on the machine are called.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use xebec_host::{cgroup::Cgroup, containerd::Containerd, parts::Parts};

use crate::{build::Binaries, workspace};

/// Everything that is derived from a cluster's name.
#[derive(Debug, Clone)]
pub struct Layout {
    pub name: String,
    /// What survives `down`.
    pub dir: PathBuf,
    /// What does not: sockets, process ids, pins, containerd's mounts. Short, because socket paths are limited.
    pub run_dir: PathBuf,
}

/// Longest name: the node's name and the run directory's sockets stay within their limits.
const LONGEST: usize = 32;

impl Layout {
    /// # Errors
    /// If the name is not made of lower-case letters, digits and dashes.
    pub fn new(name: &str) -> Result<Layout> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > LONGEST || !name.bytes().all(good) || name.starts_with('-') || name.ends_with('-') {
            bail!("{name:?} is no name for a cluster: at most {LONGEST} lower-case letters, digits and dashes inside");
        }
        let reserved = ["debug", "release", "small", "dist", "images", "doc", "tmp"];
        if reserved.contains(&name) {
            bail!("{name:?} is a directory of cargo's in target/; choose another name");
        }
        Ok(Layout { name: name.to_owned(), dir: workspace::target().join(name), run_dir: PathBuf::from(format!("/run/xebec-{name}")) })
    }

    /// Makes the directories, readable by their owner alone where keys are.
    pub fn create(&self) -> Result<()> {
        let make = |dir: &PathBuf, mode: u32| {
            fs::DirBuilder::new().recursive(true).mode(mode).create(dir).with_context(|| format!("cannot create {}", dir.display()))
        };
        make(&self.dir, 0o755)?;
        make(&self.logs(), 0o755)?;
        for dir in [self.server_dir(), self.agent_dir(), self.run_dir.clone()] {
            make(&dir, 0o700)?;
        }
        self.cgroup()?.child("system").create()?;
        Ok(())
    }

    pub fn node_name(&self) -> String {
        format!("xebec-{}", self.name)
    }

    /// The network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns_name())
    }

    pub fn netns_name(&self) -> String {
        format!("xebec-{}", self.name)
    }

    /// The veth's end on the host; device names have at most 15 bytes.
    pub fn device(&self) -> String {
        let plain = format!("xebec-{}", self.name);
        if plain.len() <= 15 { plain } else { format!("xebec-{:08x}", self.hash() as u32) }
    }

    /// Stable between builds of the same compiler, which is all that is needed: the address is also remembered in a file.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        hasher.finish()
    }

    pub fn cgroup_name(&self) -> String {
        format!("/xebec-{}", self.name)
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

    pub fn server_dir(&self) -> PathBuf {
        self.dir.join("server")
    }

    pub fn agent_dir(&self) -> PathBuf {
        self.dir.join("agent")
    }

    pub fn etcd_dir(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    /// A directory in a BPF file system, once the agent has mounted it.
    pub fn pin_dir(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_harm_are_refused() {
        for bad in ["", "Up", "a/b", "..", "-a", "a-", "debug", "a b", &"a".repeat(33)] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
        assert!(Layout::new("e2e-first-light").is_ok());
    }

    #[test]
    fn device_names_fit() {
        assert_eq!(Layout::new("up").unwrap().device(), "xebec-up");
        assert!(Layout::new("e2e-first-light-embedded").unwrap().device().len() <= 15);
    }
}
