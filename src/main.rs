//! The `xebec` binary: reads the command line, sets up logging and TLS, and starts one of the parts.

mod address;
mod agent;
mod check;
mod cni;
mod containerd;
mod demo;
mod etcd_certificates;
mod flows;
mod host;
mod image;
mod inspect;
mod invoker;
mod kubeconfig;
mod remove_node;
mod server;
mod signals;
mod status;
mod why;

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
    /// Make this host a cluster of one node.
    Up(host::UpArgs),
    /// End the node on this host and take its traces away.
    Down(host::DownArgs),
    /// Run the control plane: API server, scheduler and controllers.
    Server(server::Args),
    /// Run the node: pods on containerd, Services and policies in eBPF.
    Agent(Box<agent::Args>),
    /// Answer load balancers' health checks, also while the agent is down.
    #[command(hide = true)]
    HealthResponder(agent::ResponderArgs),
    /// Put the program that container runtimes call for a pod's network where they look for it.
    Cni(cni::Args),
    /// Become the node's containerd, with a configuration of its own.
    Containerd(containerd::Args),
    /// Make credentials for a node or a user, signed by the cluster's authority.
    Kubeconfig(kubeconfig::Args),
    /// Say what this host lacks, and what to do about it.
    Check(check::Args),
    /// Make certificates for an etcd and its clients.
    EtcdCertificates(etcd_certificates::Args),
    /// Load images into the node.
    Image(image::Args),
    /// Say how the nodes are.
    Status(status::Args),
    /// Say where a packet ends, and what decided: Service, endpoint, policy rule.
    Why(why::Args),
    /// Show what is dropped, and new flows, as it happens: who, whom, through which Service, why.
    Flows(flows::Args),
    /// Forget a node that is gone: its object, and with it its pods.
    RemoveNode(remove_node::Args),
    /// Apply a small demo and check that its Services answer and its policy denies.
    Demo(demo::Args),
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
        Command::Up(args) => runtime(host::up(args)),
        Command::Down(args) => runtime(host::down(args)),
        Command::Agent(args) => runtime(agent::run(*args)),
        Command::HealthResponder(args) => runtime(agent::respond(args)),
        Command::Cni(args) => cni::run(&args),
        Command::Containerd(args) => containerd::run(&args),
        Command::EtcdCertificates(args) => etcd_certificates::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Status(args) => runtime(status::run(&args)),
        Command::Why(args) => why::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::RemoveNode(args) => runtime(remove_node::run(&args)),
        Command::Demo(args) => runtime(demo::run(&args)),
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
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
