//! The CNI plugin's half in the agent: calls arrive from `xebec-cni` over a unix socket, one JSON line each.

mod add;
mod check;
pub mod conflist;
mod del;
pub mod protocol;
pub mod server;
