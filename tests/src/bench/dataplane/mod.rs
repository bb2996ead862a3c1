//! The dataplane's own figures.

pub mod bridge;
pub mod load;
pub mod many;
pub mod node;
pub mod packet_cost;
pub mod place;
pub mod rate;
pub mod raw;
pub mod sync;
