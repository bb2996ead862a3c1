//! `xebec cni install`: what a DaemonSet's init container runs.

use std::path::PathBuf;

use anyhow::Result;

use crate::containerd;

/// What to do with CNI programs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Copy xebec-cni, also as loopback if there is none. The configuration follows when the agent can serve calls.
    Install {
        /// The runtime's directory of CNI programs.
        #[arg(long, default_value = "/opt/cni/bin")]
        bin_dir: PathBuf,
        /// The program; the one beside this program by default.
        #[arg(long)]
        program: Option<PathBuf>,
    },
}

/// Does it.
pub fn run(args: &Args) -> Result<()> {
    let Action::Install { bin_dir, program } = &args.command;
    let program = match program {
        Some(program) => program.clone(),
        None => containerd::own_cni()?,
    };
    Ok(xebec_agent::install_cni(&program, bin_dir)?)
}
