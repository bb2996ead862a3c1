//! Scheduler and control loops against the real API server in this process, with a kubelet that only pretends.

mod garbage;
mod harness;
mod jobs;
mod namespaces;
mod nodes;
mod scheduling;
mod services;
mod workloads;
