//! Pods that come while everything is denied but one thing: what leaks, what is wrongly denied, and how long ADD takes.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde_json::json;

use super::{
    node::{self, Cluster, Node, Program, wire},
    place::go_first,
};
use crate::{
    bench::{Goal, Line, figures::percentile},
    netns::net::Netns,
};

/// How much of it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    pub xebec: PathBuf,
    #[arg(long, default_value_t = 1_000)]
    pub pods: usize,
    /// Datagrams that a pod sends to each of two others, at once after ADD.
    #[arg(long, default_value_t = 100)]
    pub packets: u64,
    /// Pods that are made at the same time.
    #[arg(long, default_value_t = 1)]
    pub at_once: usize,
}

const PORT: u16 = 9000;
/// Datagrams that are allowed arrive well within; those that are not never do.
const SETTLE: Duration = Duration::from_millis(500);

/// How many datagrams of whom have been heard.
type Heard = Arc<Mutex<HashMap<IpAddr, u64>>>;

/// Hears datagrams until `stop`.
fn hear(netns: &Netns, stop: &Arc<AtomicBool>) -> Result<Heard> {
    let heard = Heard::default();
    let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", PORT))).context("a UDP port")?;
    // What does not fit in a buffer would count as denied.
    setsockopt(&socket, RcvBufForce, &(64 << 20))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (to, stop) = (heard.clone(), stop.clone());
    netns.spawn(move || {
        let mut buffer = [0; 16];
        while !stop.load(Ordering::SeqCst) {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                *to.lock().unwrap_or_else(PoisonError::into_inner).entry(from.ip()).or_default() += 1;
            }
        }
    });
    Ok(heard)
}

fn total(heard: &Heard) -> u64 {
    heard.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
}

/// Every second one may send to the server; the others may send too, and nobody hears them. Each has a label of its own, so that
/// no peer can know its identity beforehand.
fn app(number: usize) -> &'static str {
    if number.is_multiple_of(2) { "friend" } else { "stranger" }
}

fn policies(cluster: &Cluster) {
    let selects = |app: &str| json!({"matchLabels": {"app": app}});
    cluster.policy("deny", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    cluster.policy(
        "server",
        &json!({
            "podSelector": selects("server"), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": selects("friend")}], "ports": [{"protocol": "UDP", "port": PORT}]}],
        }),
    );
    let to_server = json!([{"to": [{"podSelector": selects("server")}]}]);
    cluster.policy("friend", &json!({"podSelector": selects("friend"), "policyTypes": ["Egress"], "egress": to_server}));
    cluster.policy("stranger", &json!({"podSelector": selects("stranger"), "policyTypes": ["Egress"], "egress": [{}]}));
}

struct Made {
    number: usize,
    ip: Ipv4Addr,
    add: Duration,
    /// Kept until everything is counted.
    _netns: Netns,
}

/// Makes one pod, which sends at once: to the one that may be heard and to the one that hears nobody.
fn make(node: &Node, number: usize, packets: u64, to: [SocketAddr; 2]) -> Result<Made> {
    let labels = json!({"app": app(number), "number": number.to_string()});
    let (pod, add) = node.timed_pod(&format!("pod{number}"), &labels)?;
    pod.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..packets {
            for to in to {
                // What egress policy drops may be an error here: it counts by not being heard.
                let _ = socket.send_to(b"x", to);
            }
        }
        Ok(())
    })?;
    Ok(Made { number, ip: pod.ip, add, _netns: pod.netns })
}

/// Prints the figures; whether every goal is met. Call it while the process has one thread: it changes its mounts.
pub fn run(args: &Args) -> Result<bool> {
    node::own_mounts()?;
    let cluster = Cluster::new(Program::Xebec(args.xebec.clone(), &[]))?;
    policies(&cluster);
    let [first, _outside] = wire();
    let node = cluster.node(1, first)?;
    let (server, shut) = (node.pod("server", &json!({"app": "server"}))?, node.pod("shut", &json!({"app": "shut"}))?);
    let stop = Arc::new(AtomicBool::new(false));
    let (heard, shut_heard) = (hear(&server.netns, &stop)?, hear(&shut.netns, &stop)?);
    let to = [server.ip, shut.ip].map(|ip| SocketAddr::new(ip.into(), PORT));
    let made: Vec<Made> = std::thread::scope(|scope| {
        let node = &node;
        let threads: Vec<_> = (0..args.at_once)
            .map(|first| {
                let numbers = (first..args.pods).step_by(args.at_once);
                scope.spawn(move || {
                    go_first()?;
                    numbers.map(|number| make(node, number, args.packets, to)).collect::<Result<Vec<Made>>>()
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        threads.into_iter().map(join).collect::<Result<Vec<Vec<Made>>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    let friends = made.iter().filter(|pod| app(pod.number) == "friend").count() as u64;
    let begin = Instant::now();
    while total(&heard) < friends * args.packets && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(SETTLE);
    stop.store(true, Ordering::SeqCst);
    let of = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let of = |ip: Ipv4Addr| of.get(&IpAddr::V4(ip)).copied().unwrap_or(0);
    let from_friends: u64 = made.iter().filter(|pod| app(pod.number) == "friend").map(|pod| of(pod.ip)).sum();
    let leaked = total(&heard) - from_friends + total(&shut_heard);
    let adds: Vec<f64> = made.iter().map(|pod| pod.add.as_secs_f64() * 1000.0).collect();
    let what = format!("policy: {} pods, {} packets each to two others", made.len(), args.packets);
    let lines = [
        Line::single(format!("{what}: leaked"), "packets", leaked as f64, Goal::AtMost(0.0)),
        Line::single(
            format!("{what}: wrongly denied"),
            "packets",
            (friends * args.packets) as f64 - from_friends as f64,
            Goal::AtMost(0.0),
        ),
        Line::median(format!("{what}: ADD"), "ms", &adds, Goal::None),
        // A bare runtime does nothing in ADD, so all of it counts.
        Line::single(format!("{what}: ADD p99"), "ms", percentile(&adds, 99.0), Goal::AtMost(20.0)),
    ];
    lines.iter().for_each(Line::print);
    Ok(lines.iter().all(|line| line.met != Some(false)))
}
