//! Cluster DNS on every node: names of Services, endpoints and pods are answered from the API's objects, by the Kubernetes DNS
//! specification, all others by the node's own name servers.
//!
//! [`answer`] decides, from [`records`] that follow the API, without any I/O; [`wire`] reads and writes messages; the rest are the
//! shells: sockets, watches, and asking elsewhere.
//!
//! The cluster DNS address belongs to whoever has the Service with it. Without such a Service, or with one that carries the label
//! `service.kubernetes.io/service-proxy-name: xebec-dns`, every node answers for itself. Any other Service with the address is
//! somebody's name server (CoreDNS): the node steps back and leaves the address to the dataplane.

mod answer;
mod config;
mod forward;
mod input;
mod listen;
mod metrics;
mod place;
mod records;
mod run;
mod server;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

pub use config::{Config, Error, cluster_dns};
pub use forward::Stub;
pub use metrics::Metrics;
pub use run::{Hold, run};
