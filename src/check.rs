//! `xebec check`: what this host lacks, each lack with what to do about it. Nothing is changed.

mod facts;
mod findings;

use std::{net::IpAddr, process::ExitCode};

pub use facts::Facts;
pub use findings::{Level, findings};

/// What a host is meant to be, which decides what it needs.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Check for a server too, not only for an agent.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub server: bool,
    /// Address the ports are tried on.
    #[arg(long, default_value = "0.0.0.0")]
    pub address: IpAddr,
    /// Store the server is going to use: embedded or etcd.
    #[arg(long, default_value = "embedded")]
    pub store: String,
}

/// How many things keep this host from being a whole cluster.
pub fn lacks() -> usize {
    let args = Args { server: true, address: std::net::Ipv4Addr::UNSPECIFIED.into(), store: "embedded".to_owned() };
    findings(&Facts::gather(&args), &args).iter().filter(|finding| finding.level == Level::Lack).count()
}

/// Prints every finding; fails if one of them keeps a node from working.
pub fn run(args: &Args) -> ExitCode {
    let found = findings(&Facts::gather(args), args);
    let width = found.iter().map(|f| f.what.len()).max().unwrap_or_default();
    for finding in &found {
        let mark = match finding.level {
            Level::Good => "ok",
            Level::Advice => "advice",
            Level::Lack => "LACK",
        };
        println!("{mark:<7} {:<width$}  {}", finding.what, finding.detail);
        if !finding.remedy.is_empty() {
            println!("{:<7} {:<width$}  → {}", "", "", finding.remedy);
        }
    }
    let lacks = found.iter().filter(|f| f.level == Level::Lack).count();
    if lacks == 0 {
        println!("This host can run xebec.");
        ExitCode::SUCCESS
    } else {
        println!("{lacks} thing{} must be changed before xebec can run here.", if lacks == 1 { "" } else { "s" });
        ExitCode::FAILURE
    }
}
