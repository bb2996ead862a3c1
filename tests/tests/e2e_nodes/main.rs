//! Clusters of several nodes on one machine.

mod absence;
mod faults;
mod flap;
mod full;
mod lifecycle;
mod pods;
mod traffic;
