//! `cargo xtask bench NAME`: measurements, one JSON object a line.

use anyhow::{Result, bail};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// The bench, e.g. `first-light`.
    name: String,
}

/// Runs the bench.
pub fn run(args: &Args) -> Result<()> {
    bail!("there is no bench named {:?}", args.name)
}
