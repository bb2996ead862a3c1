//! The agent killed, upgraded and rolled back, round after round, under connections that live and connections that come.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    flows::Met,
    node::{self, Cluster, Port, Program, node_ip, wire},
    place::Place,
};
use crate::bench::{Goal, Line, figures::percentile, inside::Helper};

/// How much of it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Kills, upgrades and rollbacks together.
    #[arg(long, default_value_t = 100)]
    pub rounds: usize,
    /// Connections that live; one of ten comes from outside through a NodePort.
    #[arg(long, default_value_t = 10_000)]
    pub live: usize,
    /// New ones a second, likewise.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u32,
}

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const PORT: u16 = 7004;
const NODE_PORT: u16 = 30704;

/// Prints the figures; whether every goal is met. Call it while the process has one thread: it changes its mounts.
pub fn run(args: &Args) -> Result<bool> {
    node::own_mounts()?;
    let cluster = Cluster::new(Program::Own)?;
    let [first, outside] = wire();
    outside.ip(&format!("addr add {}/24 dev up0", node_ip(200)));
    let outside = Place { netns: outside, ip: node_ip(200), procs: Vec::new() };
    let mut node = cluster.node(1, first)?;
    let (server, client) = (node.pod("server", &json!({"app": "server"}))?, node.pod("client", &json!({}))?);
    let mut serving = server.start(&["flows-serve", &format!("[::]:{PORT}")])?;
    serving.line()?;
    cluster.service("server", SERVICE, &[Port { node_port: Some(NODE_PORT), ..Port::tcp(PORT) }], server.ip, 1);
    cluster.policy(
        "server",
        &json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": PORT}]}]}),
    );
    let ways = [
        (&client, format!("{SERVICE}:{PORT}"), args.live - args.live / 10, args.rate - args.rate / 10),
        (&outside, format!("{}:{NODE_PORT}", node_ip(1)), args.live / 10, args.rate / 10),
    ];
    let mut helpers = Vec::new();
    for (from, to, live, rate) in &ways {
        node::until("the Service answers", || Ok(answers(from, to)))?;
        let mut helper = from.start(&["flows", to, &live.to_string(), &rate.max(&1).to_string()])?;
        ensure!(helper.line().with_context(|| format!("connections to {to}"))? == "live", "the helper said something else");
        helpers.push(helper);
    }
    let (begin, mut took) = (Instant::now(), Vec::with_capacity(args.rounds));
    for round in 0..args.rounds {
        // A kill, an upgrade, a rollback.
        let begin = Instant::now();
        node.restart(round % 3 == 1).with_context(|| format!("round {round}"))?;
        took.push(begin.elapsed().as_secs_f64());
        // Some connections meet the new one alone.
        std::thread::sleep(Duration::from_millis(200));
    }
    let time = begin.elapsed().as_secs_f64();
    let mut met = Met::default();
    for helper in &mut helpers {
        helper.terminate()?;
        met = met.and(Met::parse(&helper.line()?)?);
    }
    let lines = lines(args, met, time, &took);
    lines.iter().for_each(Line::print);
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

fn answers(from: &Place, to: &str) -> bool {
    from.start(&["connections", to, "10", "0"]).and_then(|mut helper: Helper| helper.line()).is_ok()
}

fn lines(args: &Args, met: Met, time: f64, took: &[f64]) -> Vec<Line> {
    let rounds = format!("restart: {} rounds of kill, upgrade and rollback", args.rounds);
    vec![
        Line::single(format!("{rounds}: connections that lived through all"), "", met.alive as f64, Goal::AtLeast(args.live as f64)),
        Line::single(format!("{rounds}: connections that broke"), "", met.broken as f64, Goal::AtMost(0.0)),
        Line::single(format!("{rounds}: new connections made"), "1/s", met.made as f64 / time, Goal::AtLeast(f64::from(args.rate) * 0.9)),
        Line::single(format!("{rounds}: new connections that failed"), "", met.failed as f64, Goal::AtMost(0.0)),
        Line::median(format!("{rounds}: until the next agent had taken over"), "s", took, Goal::None),
        Line::single(format!("{rounds}: the longest of them"), "s", percentile(took, 100.0), Goal::None),
    ]
}
