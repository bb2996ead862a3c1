//! Container logs: CRI's line format, and the reader behind `kubectl logs`.

mod entry;
mod read;
pub mod rotate;

pub use entry::entry;
pub use read::{Source, stream};
