//! Where a cluster's files are, and what its traces on the machine are called.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};

use super::node::{self, Node};
use crate::workspace;

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

/// Most nodes of a cluster: what its range of addresses has place for, and more than a machine bears.
pub const MOST_NODES: u8 = 60;

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

    /// Makes the directories of the control plane and of so many nodes.
    pub fn create(&self, nodes: u8) -> Result<()> {
        node::make_dir(&self.dir, 0o755)?;
        node::make_dir(&self.server_dir(), 0o700)?;
        (1..=nodes).try_for_each(|number| self.node(number).create())
    }

    /// A node. The first one's files are the cluster's own; names of the others have a dot, which no cluster's name has.
    pub fn node(&self, number: u8) -> Node {
        let name = format!("xebec-{}", self.name);
        match number {
            1 => Node { number, name, dir: self.dir.clone(), run_dir: self.run_dir.clone() },
            _ => {
                let sub = format!("node-{number}");
                Node { number, name: format!("{name}.{number}"), dir: self.dir.join(&sub), run_dir: self.run_dir.join(&sub) }
            }
        }
    }

    /// The node that also runs the control plane.
    pub fn first(&self) -> Node {
        self.node(1)
    }

    /// Nodes that have left anything on the machine, running or not.
    pub fn nodes_with_traces(&self) -> Vec<Node> {
        (1..=MOST_NODES).map(|number| self.node(number)).filter(Node::has_traces).collect()
    }

    /// The namespace of the bridge that joins the nodes and the host.
    pub fn wire_name(&self) -> String {
        format!("xebec-{}.wire", self.name)
    }

    /// Its file.
    pub fn wire(&self) -> PathBuf {
        node::netns(&self.wire_name())
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

    pub fn server_dir(&self) -> PathBuf {
        self.dir.join("server")
    }

    pub fn etcd_dir(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// How many nodes the last `up` was told to have.
    pub fn recorded_nodes(&self) -> Option<u8> {
        let text = fs::read_to_string(self.dir.join("nodes")).ok()?;
        text.trim().parse().ok().filter(|number| (1..=MOST_NODES).contains(number))
    }

    pub(super) fn record_nodes(&self, nodes: u8) -> Result<()> {
        let file = self.dir.join("nodes");
        fs::write(&file, format!("{nodes}\n")).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_harm_are_refused() {
        for bad in ["", "Up", "a/b", "..", "-a", "a-", "debug", "a b", "a.2", &"a".repeat(33)] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
        assert!(Layout::new("e2e-first-light").is_ok());
    }

    #[test]
    fn device_names_fit() {
        assert_eq!(Layout::new("up").unwrap().device(), "xebec-up");
        assert!(Layout::new("e2e-first-light-embedded").unwrap().device().len() <= 15);
    }

    #[test]
    fn nodes_of_all_clusters_have_names_of_their_own() {
        let (a, b) = (Layout::new("a").unwrap(), Layout::new("a-2").unwrap());
        let mut names: Vec<String> = [&a, &b].iter().flat_map(|layout| (1..=3).map(|n| layout.node(n).name)).collect();
        assert_eq!(names[..2], ["xebec-a", "xebec-a.2"]);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6);
    }
}
