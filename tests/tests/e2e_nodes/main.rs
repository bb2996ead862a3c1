//! Clusters of several nodes on one machine.

mod lifecycle;
mod pods;
