//! Measuring: one JSON object a line, each figure beside what was measured in the same run.

pub mod dataplane;
pub mod figures;
pub mod first_light;
pub mod inside;
pub mod processes;
pub mod traffic;

pub use figures::{Goal, Line};
