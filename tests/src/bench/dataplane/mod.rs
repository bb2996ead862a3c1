//! The dataplane's own figures.

pub mod many;
pub mod sync;
