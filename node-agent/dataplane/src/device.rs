//! Devices of the node and of its pods.

pub mod netlink;
pub mod netns;
pub mod pod;
pub mod sysctl;
pub mod uplink;
