//! The dataplane's own figures.

pub mod many;
pub mod packet_cost;
mod raw;
pub mod sync;
