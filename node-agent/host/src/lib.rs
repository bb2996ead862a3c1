//! A node's traces on its host: cgroups, processes in them, mounts, and the container runtime's configuration. Both making and
//! removing them is here, so that the two cannot drift apart.
//!
//! Used by the `xebec` binary on real hosts and by `cargo xtask up` for nodes in network namespaces; it needs no other part of
//! the project.

pub mod cgroup;
pub mod containerd;
mod error;
pub mod mounts;
pub mod parts;
pub mod process;

pub use error::Error;
