//! The node's network: API objects are compiled to desired map contents (pure), compared with what the
//! pinned BPF maps hold, and only the difference is written. The crate uses the standard Kubernetes API
//! alone, so it runs against any conformant API server.
//!
//! Nothing here is on the path of a packet: programs, maps and links are pinned, and go on when the agent
//! does not. A start adopts what it finds, and deletes nothing before every watch has answered in full.

// The next version that tests of upgrades play has the same unit tests: once is enough.
#![cfg(not(all(test, feature = "next")))]

mod bpf;
mod cluster_dns;
mod cni;
pub mod compile;
mod config;
mod dataplane;
mod device;
mod engine;
mod enlarge;
mod error;
pub mod explain;
mod fabric;
mod file;
pub mod flows;
mod growth;
pub mod inspect;
mod ipam;
mod keeper;
mod listen;
mod metrics;
mod policy_news;
mod sandbox;
mod selftest;
mod shared_event;
mod sorted;
mod status;
mod sync;
mod table;
mod teardown;
mod watch;

pub use bpf::layout::Layout;
pub use compile::input::Forwarding;
pub use config::{Config, HostRouting, MAX_MAP_ENTRIES, PodPrograms, Routing, Vxlan};
pub use dataplane::Dataplane;
pub use device::xdp::Xdp;
pub use error::Error;
pub use status::{ByFamily, Device, HealthCheck, MapFill, ProgramSize, ProxyHealth, ServiceUse, Status};
pub use sync::SyncStatus;
pub use teardown::teardown;
