//! Devices of the node and of its pods.

pub mod announce;
pub mod blocks;
pub mod netlink;
pub mod netns;
pub mod news;
pub mod pod;
pub mod request;
pub mod route;
pub mod rtnl;
pub mod settings;
pub mod sysctl;
pub mod uplink;
pub mod vxlan;
pub mod ways;
pub mod xdp;
