//! `xebec demo`: applies a manifest and looks whether Services and policies do what they say, from inside and outside.

mod apply;
mod check;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::status::Cluster;

/// What `deploy/demo.yaml` holds.
const DEMO: &str = include_str!("../../deploy/demo.yaml");

/// Which cluster and what to apply.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Apply this instead of the built-in manifest (deploy/demo.yaml); it must keep the names.
    #[arg(long)]
    manifest: Option<PathBuf>,
}

/// Applies, waits, checks, prints a table; fails if a check does.
pub async fn run(args: &Args) -> Result<()> {
    let manifest = match &args.manifest {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => DEMO.to_owned(),
    };
    let client = args.cluster.client().await?;
    apply::apply(&client, &manifest).await?;
    let seen = check::run(&client).await?;
    let width = seen.iter().map(|line| line.what.len()).max().unwrap_or_default();
    for line in &seen {
        println!("  {:<4} {:<width$}  {}", if line.good { "ok" } else { "FAIL" }, line.what, line.saw);
    }
    let failed = seen.iter().filter(|line| !line.good).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed", seen.len());
    }
    Ok(())
}
