//! `first-light`: how quick and how small one node is.

mod agent_restart;
mod bare_cri;
mod pods;
mod request_rate;
mod server_start;

pub use request_rate::round_trips;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{Goal, Line, processes};

/// A running cluster of one node, and the files it runs from.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Cluster-admin kubeconfig.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// containerd's socket.
    #[arg(long)]
    pub containerd: PathBuf,
    /// containerd's state directory, which tells the processes of containers.
    #[arg(long)]
    pub containerd_state: PathBuf,
    /// The `xebec` binary.
    #[arg(long)]
    pub xebec: PathBuf,
    /// The `xebec-cni` binary.
    #[arg(long)]
    pub cni: PathBuf,
    /// Process of the server.
    #[arg(long)]
    pub server_pid: u32,
    /// Process of the agent.
    #[arg(long)]
    pub agent_pid: u32,
    /// Seconds that each `up` on a built tree took until its Node was Ready.
    #[arg(long)]
    pub up_seconds: Vec<f64>,
    /// Shell command that starts the agent again after it was killed.
    #[arg(long)]
    pub restart_agent: String,
    /// Image of the pods; must be on the node.
    #[arg(long, default_value = "localhost/xebec/busybox:1")]
    pub image: String,
    /// Seconds the cluster idles before memory is read.
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// Seconds of connections during which the agent is killed and started again.
    #[arg(long, default_value_t = 60)]
    pub restart_seconds: u64,
}

/// Measures everything and prints it; returns whether every goal is met.
pub async fn run(args: &Args) -> Result<bool> {
    let mut all_met = true;
    let mut print = |line: Line| {
        all_met &= line.met != Some(false);
        line.print();
    };
    print(Line::median("server start to /readyz, empty directory", "s", &server_start::empty(&args.xebec, 5)?, Goal::AtMost(0.5)));
    print(Line::median("server start to /readyz, second start", "s", &server_start::again(&args.xebec, 5)?, Goal::AtMost(0.5)));
    if !args.up_seconds.is_empty() {
        print(Line::median("up on a built tree to Node Ready", "s", &args.up_seconds, Goal::AtMost(3.0)));
    }
    for (name, file, goal) in [("xebec binary", &args.xebec, 50.0), ("xebec-cni binary", &args.cni, 2.0)] {
        let bytes = file.metadata().with_context(|| format!("{}", file.display()))?.len();
        print(Line::single(name, "MiB", bytes as f64 / 1048576.0, Goal::AtMost(goal)));
    }

    tokio::time::sleep(Duration::from_secs(args.idle_seconds)).await;
    print(Line::single("server resident memory, idle with the demo", "MiB", processes::resident_mib(args.server_pid)?, Goal::AtMost(60.0)));
    print(Line::single("agent resident memory, idle with the demo", "MiB", processes::resident_mib(args.agent_pid)?, Goal::AtMost(40.0)));

    let kubeconfig = kube::config::Kubeconfig::read_from(&args.kubeconfig).with_context(|| format!("{}", args.kubeconfig.display()))?;
    let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?;
    // Interleaved, so that a busy moment of the machine meets both.
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..15 {
        ours.push(pods::created_to_running(&client, &args.image, round).await?.as_secs_f64());
        bare.push(bare_cri::created_to_running(&args.containerd, &args.image, round).await?.as_secs_f64());
    }
    let beside = super::figures::percentile(&bare, 50.0);
    print(Line::median("pod created to Running", "s", &ours, Goal::AtMost(0.7)).beside("bare CRI calls", beside, Goal::None));

    for line in request_rate::measure(&client, args).await? {
        print(line);
    }
    for line in agent_restart::measure(&client, args).await? {
        print(line);
    }
    Ok(all_met)
}
