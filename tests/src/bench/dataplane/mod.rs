//! The dataplane's own figures.

pub mod agent;
pub mod bare;
pub mod bridge;
pub mod flood;
pub mod flows;
pub mod load;
pub mod many;
pub mod node;
pub mod packet_cost;
pub mod place;
pub mod policy;
pub mod rate;
pub mod raw;
pub mod restart;
pub mod sync;
