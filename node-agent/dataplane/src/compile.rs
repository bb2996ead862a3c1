//! API objects to desired map contents: pure, no I/O. [`State`] takes objects and gives writes.

pub mod announce;
pub mod bandwidth;
pub mod cluster;
pub mod cluster_resolve;
pub mod expand;
pub mod identity;
pub mod input;
pub mod maglev;
pub mod policies;
pub mod prefix;
pub mod resolve;
pub mod rings;
pub mod rules;
pub mod selector;
pub mod services;
pub mod sets;
mod slices;
pub mod state;
pub mod tiers;

#[cfg(test)]
mod model;
#[cfg(test)]
mod model_policies;
#[cfg(test)]
mod model_services;
#[cfg(test)]
mod model_tiers;
#[cfg(test)]
mod policies_edges;
