//! `cargo xtask lint`: what a change should look like before it is proposed.

use anyhow::Result;

use crate::{packages, sh, workspace};

/// What to check.
#[derive(clap::Args)]
pub struct Args {
    /// Correct formatting instead of reporting it.
    #[arg(long)]
    fix: bool,
}

/// Formatting, then clippy with warnings as errors.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&[packages::BUILD])?;
    let mut format = workspace::cargo();
    format.args(["fmt", "--all"]);
    if !args.fix {
        format.arg("--check");
    }
    sh::run(&mut format)?;
    sh::run(workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}
