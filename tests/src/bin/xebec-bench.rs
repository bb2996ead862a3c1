//! What `cargo xtask bench` starts.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use xebec_tests::bench::{dataplane, first_light, inside, processes, traffic};

#[derive(Parser)]
enum Bench {
    /// How quick and how small one node is.
    FirstLight(Box<first_light::Args>),
    /// How soon the maps follow the API, at scale.
    Sync(dataplane::sync::Args),
    /// How quick Services are, beside pods, loopback and nftables.
    Rate(dataplane::rate::Args),
    /// What a node forwards of a flood, beside nftables.
    Flood(dataplane::flood::Args),
    /// What pods meet that come while everything is denied but one thing.
    Policy(dataplane::policy::Args),
    /// What connections meet while the agent is killed, upgraded and rolled back.
    Restart(dataplane::restart::Args),
    /// Be a node's agent, for a part of the bench.
    DataplaneAgent(dataplane::agent::Args),
    /// Echo bytes of many connections.
    FlowsServe { address: SocketAddr },
    /// Make many connections.
    Flows(dataplane::flows::Args),
    /// Answer every load, for a part of the bench.
    LoadServe { ip: IpAddr },
    /// Print the figure of one load.
    Load { load: dataplane::load::Load, to: SocketAddr, seconds: f64 },
    /// Nanoseconds a packet in the BPF programs.
    PacketCost,
    /// Do the rest of the command line beside this process: in its network namespace and cgroup.
    Inside {
        pid: u32,
        #[command(subcommand)]
        then: Traffic,
    },
    #[command(flatten)]
    Traffic(Traffic),
}

#[derive(clap::Subcommand)]
enum Traffic {
    /// Echo bytes; prints the port.
    Serve { address: SocketAddr },
    /// Print round trips a second on one connection.
    RoundTrips { to: SocketAddr, seconds: f64 },
    /// Print connections made, failed and broken.
    Connections { to: SocketAddr, rate: u32, seconds: u64 },
}

fn main() -> ExitCode {
    let outcome = match Bench::parse() {
        Bench::FirstLight(args) => {
            let _ = rustls::crypto::ring::default_provider().install_default();
            tokio::runtime::Runtime::new().map_err(Into::into).and_then(|r| r.block_on(first_light::run(&args)))
        }
        Bench::PacketCost => dataplane::packet_cost::run(),
        Bench::Sync(args) => dataplane::sync::run(&args),
        Bench::Rate(args) => dataplane::rate::run(&args),
        Bench::Flood(args) => dataplane::flood::run(&args),
        Bench::Policy(args) => dataplane::policy::run(&args),
        Bench::Restart(args) => dataplane::restart::run(&args),
        Bench::DataplaneAgent(args) => args.run().map(|()| true),
        Bench::FlowsServe { address } => block_on(dataplane::flows::serve(address)),
        Bench::Flows(args) => block_on(dataplane::flows::run(&args)),
        Bench::LoadServe { ip } => dataplane::load::serve(ip).map(|()| true),
        Bench::Load { load, to, seconds } => load.measure(to, Duration::from_secs_f64(seconds)).map(|figure| {
            println!("{figure}");
            true
        }),
        Bench::Inside { pid, then } => inside::join(pid).and_then(|()| then.run()).map(|()| true),
        Bench::Traffic(traffic) => traffic.run().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("some goals are not met");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(f: impl Future<Output = Result<()>>) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(f).map(|()| true)
}

impl Traffic {
    fn run(self) -> Result<()> {
        match self {
            Traffic::Serve { address } => processes::stay().and_then(|()| traffic::serve(address)),
            Traffic::RoundTrips { to, seconds } => first_light::round_trips(to, seconds),
            Traffic::Connections { to, rate, seconds } => {
                let seen = traffic::connections(to, rate, Duration::from_secs(seconds))?;
                println!("{} {} {}", seen.made, seen.failed, seen.broken);
                Ok(())
            }
        }
    }
}
