//! Clusters of several nodes on one machine.

mod faults;
mod lifecycle;
mod pods;
mod traffic;
