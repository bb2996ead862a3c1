//! What whole-system tests and benches share.

pub mod bench;
