//! Clusters of several nodes on one machine.

mod absence;
mod faults;
mod lifecycle;
mod pods;
mod traffic;
