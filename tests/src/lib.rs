//! What whole-system tests and benches share.

pub mod bench;
pub mod cluster;
pub mod netns;
pub mod traces;
