//! The pod lifecycle of a node: what kubelet does between the API server and a CRI runtime.
//!
//! One worker per pod compares what the API asks for with what containerd runs and executes the
//! difference. The decision itself is a pure function (`plan`), so is the status that is
//! written back. Nothing that matters lives in this process alone: containers
//! carry the labels and annotations they are found by, and the API carries the status, so a
//! restart finds every pod again and disturbs none.

mod admission;
mod api;
mod backoff;
mod cgroups;
mod config;
mod container;
mod cri;
mod dns;
mod env;
mod error;
mod execute;
mod expand;
mod fields;
mod hooks;
mod hosts;
mod images;
mod labels;
mod logs;
mod manager;
mod memory;
mod net;
mod node;
mod node_state;
mod objects;
mod observe;
mod plan;
mod probes;
mod quantity;
mod recorder;
mod resources;
mod runtime_events;
mod sandbox;
mod serve;
mod spec;
mod start;
mod status;
mod status_writer;
mod termination;
mod volumes;
mod worker;

pub use api::{ExecOptions, ExecOutput, LogOptions, LogStream, StreamTarget};
pub use config::Config;
pub use error::Error;
pub use manager::PodManager;
pub use node::{Image, Runtime};
