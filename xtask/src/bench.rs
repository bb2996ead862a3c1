//! `cargo xtask bench NAME`: measurements, one JSON object a line.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use xebec_host::process;

use crate::{
    build::{self, Profile},
    down, packages, sh,
    up::{self, Cluster, IpFamily, LbMode, Routing, Store},
    workspace,
};

/// How often `up` on a built tree is timed.
const UPS: usize = 3;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    pub bench: Bench,
    /// Which binaries are measured; figures are only worth quoting for release.
    #[arg(long, value_enum, default_value = "release", env = "XEBEC_PROFILE")]
    pub profile: Profile,
    /// Seconds the cluster idles before memory is read.
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// Seconds of connections during which the agent is killed and started again.
    #[arg(long, default_value_t = 60)]
    pub restart_seconds: u64,
    /// Of `dataplane` only these parts.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(DATAPLANE.iter().map(|(part, _)| part)))]
    pub only: Vec<String>,
    /// The binaries are built: use them as they are.
    #[arg(long)]
    pub no_build: bool,
}

/// The benches there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// How quick and how small one node is.
    FirstLight,
    /// What the dataplane costs, beside loopback, nftables and a bare runtime.
    Dataplane,
}

/// The parts of the dataplane's bench: each is a command of `xebec-bench`; and whether it starts agents.
const DATAPLANE: &[(&str, bool)] =
    &[("packet-cost", false), ("rate", true), ("flood", true), ("policy", true), ("restart", false), ("sync", true)];

/// Runs the bench in a cluster of its own, which is gone afterwards.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&[packages::NODE])?;
    if !args.no_build {
        sh::step(format_args!("building ({:?})", args.profile));
        build::binaries(args.profile)?;
        sh::run(workspace::cargo().args(["build", "--quiet", "--workspace", "--bin", "xebec-bench"]))?;
    }
    if !sh::is_root() {
        return sh::again_as_root(&["--no-build"]);
    }
    match args.bench {
        Bench::FirstLight => first_light(args),
        Bench::Dataplane => dataplane(args),
    }
}

/// All parts, or those that were named; a goal that is not met ends none of the others.
fn dataplane(args: &Args) -> Result<()> {
    packages::ensure(&[packages::BENCH])?;
    let binaries = args.profile.binaries();
    let mut failed = Vec::new();
    for (part, starts_agents) in DATAPLANE.iter().filter(|(part, _)| args.only.is_empty() || args.only.iter().any(|only| only == part)) {
        sh::step(format_args!("{part}"));
        let mut bench = sh::cmd(workspace::target().join("debug/xebec-bench"), [part]);
        if *starts_agents {
            bench.arg("--xebec").arg(&binaries.xebec);
        }
        if let Err(error) = sh::run(&mut bench) {
            eprintln!("{error:#}");
            failed.push(*part);
        }
    }
    if !failed.is_empty() {
        bail!("not measured, or goals not met: {}", failed.join(", "));
    }
    Ok(())
}

fn first_light(args: &Args) -> Result<()> {
    let guard = Cleanup(up::Args {
        name: "bench".into(),
        nodes: Some(1),
        store: Store::Embedded,
        routing: Routing::Native,
        lb_mode: LbMode::Snat,
        ip_family: IpFamily::Ipv4,
        profile: args.profile,
        no_demo: false,
        no_build: true,
    });
    // From nothing each time: on kept state the API still tells of the Node that was ready before.
    let mut seconds = Vec::new();
    for _ in 0..UPS {
        down::take_down(&down::Args { name: guard.0.name.clone(), purge: true })?;
        seconds.push(up::bring_up(&guard.0)?.ready_after.as_secs_f64());
    }
    let cluster = up::bring_up(&guard.0)?;
    eprint!("{}", sh::quiet(&mut up::demo_command(&cluster))?);
    measure(args, &cluster, &seconds)
}

fn measure(args: &Args, cluster: &Cluster, seconds: &[f64]) -> Result<()> {
    let node = cluster.layout.first();
    let pid = |part: &str| {
        process::running(&process::pid_file(&node.run_dir, part), "xebec")
            .with_context(|| format!("the {part} does not run; see {}", node.logs().display()))
    };
    let containerd = node.containerd(&cluster.binaries);
    let again = format!("{} up --name {} --no-build --no-demo --profile {} >&2", own_file()?, cluster.layout.name, args.profile.name());
    let mut bench = sh::cmd(workspace::target().join("debug/xebec-bench"), ["first-light"]);
    let mut path = |flag: &str, path: &Path| {
        bench.arg(flag).arg(path);
    };
    path("--kubeconfig", &cluster.kubeconfig);
    path("--containerd", &containerd.socket());
    path("--containerd-state", &containerd.state);
    path("--xebec", &cluster.binaries.xebec);
    path("--cni", &cluster.binaries.cni);
    bench.args(["--server-pid", &pid("server")?.to_string(), "--agent-pid", &pid("agent")?.to_string(), "--restart-agent", &again]);
    bench.args(["--idle-seconds", &args.idle_seconds.to_string(), "--restart-seconds", &args.restart_seconds.to_string()]);
    for value in seconds {
        bench.args(["--up-seconds", &value.to_string()]);
    }
    sh::run(&mut bench)
}

fn own_file() -> Result<String> {
    let file = std::env::current_exe().context("cannot find this program's own file")?;
    match file.to_str() {
        Some(text) if !text.contains(['\'', ' ']) => Ok(text.to_string()),
        _ => bail!("{} cannot stand in a command line", file.display()),
    }
}

/// Takes the cluster down again, whatever happened.
struct Cleanup(up::Args);

impl Drop for Cleanup {
    fn drop(&mut self) {
        match down::take_down(&down::Args { name: self.0.name.clone(), purge: true }) {
            Ok(failures) if failures.is_empty() => {}
            Ok(failures) => eprintln!("not everything could be removed: {}", failures.join("; ")),
            Err(error) => eprintln!("the cluster could not be taken down: {error:#}"),
        }
    }
}
