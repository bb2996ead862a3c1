//! The `xebec` binary: reads the command line, sets up logging and TLS, and starts one of the parts.

mod check;
mod kubeconfig;
mod server;
mod signals;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "xebec", version, about = "Kubernetes in one binary, with its network in eBPF")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the control plane: API server, scheduler and controllers.
    Server(server::Args),
    /// Make credentials for a node or a user, signed by the cluster's authority.
    Kubeconfig(kubeconfig::Args),
    /// Say what this host lacks, and what to do about it.
    Check(check::Args),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging();
    // Every rustls user names its provider; this is for libraries that ask for the process's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match cli.command {
        Command::Server(args) => runtime(server::run(args)),
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Version => {
            println!("xebec {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// `RUST_LOG` decides; without it, what an operator should see.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
}
