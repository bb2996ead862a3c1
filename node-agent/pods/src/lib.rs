//! The pod lifecycle of a node: what kubelet does between the API server and a CRI runtime.
//!
//! One worker per pod compares what the API asks for with what containerd runs and executes the
//! difference. The decision itself is a pure function (`plan`), so is the status that is
//! written back. Nothing that matters lives in this process alone: containers
//! carry the labels and annotations they are found by, and the API carries the status, so a
//! restart finds every pod again and disturbs none.

mod api;
mod config;
mod cri;
mod error;
mod manager;
mod node;

pub use api::{ExecOptions, ExecOutput, LogOptions, LogStream, StreamTarget};
pub use config::Config;
pub use error::Error;
pub use manager::PodManager;
pub use node::{Image, Runtime};
