//! Network namespaces and an API in memory, for tests and benches of the dataplane alone.

pub mod api;
pub mod net;
