//! `cargo xtask build-ebpf`.

use anyhow::{Result, bail};

/// How to build the BPF object.
#[derive(clap::Args)]
pub struct Args {}

/// Builds the object.
pub fn run(_: &Args) -> Result<()> {
    bail!("ebpf/programs holds no programs yet")
}
