//! The dataplane as a process of its own that can play the next version: every map that the agent fills has changed.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use tokio_util::sync::CancellationToken;
use xebec_dataplane::{Config, Dataplane, Layout};
use xebec_ebpf_abi::map;

use super::node::{node_ip, node_name};

/// Where it keeps what.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory of pins, state and sockets.
    #[arg(long)]
    pub dir: PathBuf,
    /// Directory of the node's cgroup2.
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Number of the node.
    #[arg(long)]
    pub number: u8,
    #[arg(long)]
    pub api: SocketAddr,
    /// Be of the next version.
    #[arg(long)]
    pub next: bool,
}

/// Maps that programs fill with connections; the others are filled by the agent.
const CONNECTIONS: &[&str] = &[map::FLOWS, map::NAT, map::SOCK_REVERSE, map::AFFINITY, map::FRAGMENTS];

/// The layout of the next version.
pub fn next_layout() -> Layout {
    let mut layout = Layout::default();
    layout.number += 1;
    for (name, version) in &mut layout.versions {
        *version += u32::from(!CONNECTIONS.contains(&name.as_str()));
    }
    layout
}

impl Args {
    /// What starts it.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
        command.arg("dataplane-agent").arg("--dir").arg(&self.dir).arg("--cgroup").arg(&self.cgroup);
        command.args(["--number", &self.number.to_string(), "--api", &self.api.to_string()]);
        command.args(self.next.then_some("--next"));
        Ok(command)
    }

    fn config(&self) -> Result<Config> {
        let [pins, state, socket] = ["bpf", "data/agent", "run/cni.sock"].map(|name| self.dir.join(name));
        std::fs::create_dir_all(self.dir.join("run")).context("cannot make the directory of sockets")?;
        let mut config = Config::new(node_name(self.number), self.cgroup.clone(), pins, state, socket);
        config.node_ips = vec![node_ip(self.number).into()];
        config.cluster_cidrs = vec!["10.244.0.0/16".parse()?];
        if self.next {
            config.layout = next_layout();
        }
        Ok(config)
    }

    /// Runs until it is killed.
    pub fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let client = kube::Client::try_from(kube::Config::new(format!("http://{}", self.api).parse()?))?;
            let dataplane = Dataplane::start(self.config()?, client).await?;
            Ok(dataplane.run(CancellationToken::new()).await?)
        })
    }

    /// Removes what it made; called in the node's namespace.
    pub fn teardown(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let left = runtime.block_on(xebec_dataplane::teardown(&self.config()?));
        ensure!(left.is_empty(), "{}", left.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        Ok(())
    }
}
