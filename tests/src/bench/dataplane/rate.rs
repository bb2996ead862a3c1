//! Pod to ClusterIP, beside pod to pod, loopback, and a bridge with nftables rules in kube-proxy's shape; with few Services and
//! with many. Every way is measured in every round, so what disturbs the machine disturbs all.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::Result;
use serde_json::json;

use super::{
    bare::Bare,
    bridge::{BridgeNode, Rule},
    load::Load,
    node::{self, Cluster, Node, Port, Program, wire},
    place::Place,
};
use crate::bench::{Goal, Line, figures::percentile, inside::Helper};

/// What to measure with.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    pub xebec: PathBuf,
    /// How many Services there are; the ways that do not depend on them are measured with the first.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    pub services: Vec<usize>,
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 0.2)]
    pub seconds: f64,
}

/// The Service that is measured, and the one before another node's pod.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 21);

/// What the way from one pod to another costs without anything decided on it.
const BARE: &str = "redirect alone";

/// The other Services: nobody asks for them.
fn other(number: usize) -> (Ipv4Addr, Ipv4Addr) {
    let [high, low] = [(number >> 8) as u8, number as u8];
    (Ipv4Addr::new(10, 97, high, low), Ipv4Addr::new(10, 245, high, low))
}

fn our_name(services: usize) -> String {
    format!("pod to ClusterIP, Services: {services}")
}

fn bridge_name(services: usize) -> String {
    format!("bridge with nftables, Services: {services}")
}

/// Two pods of a node, and one of the next node if there is one.
struct Pods {
    client: Place,
    server: Place,
    far: Option<Place>,
    _serving: Vec<Helper>,
}

impl Pods {
    fn new(client: Place, server: Place, far: Option<Place>) -> Result<Pods> {
        let mut serving = vec![client.serve()?, server.serve()?];
        if let Some(far) = &far {
            serving.push(far.serve()?);
        }
        Ok(Pods { client, server, far, _serving: serving })
    }
}

/// What holds the pods' network; dropped after them.
struct Ours {
    pods: Pods,
    _nodes: Vec<Node>,
    _cluster: Cluster,
}

fn ours(args: &Args, services: usize, with_far: bool) -> Result<Ours> {
    let cluster = Cluster::new(Program::Xebec(args.xebec.clone(), &[]))?;
    for number in 1..services {
        let (ip, backend) = other(number);
        cluster.service(&format!("other-{number}"), ip, &[Port::tcp(80)], backend, 9);
    }
    let [first, second] = wire();
    let mut nodes = vec![cluster.node(1, first)?];
    if with_far {
        nodes.push(cluster.node(2, second)?);
    }
    let far = nodes.get(1).map(|node| node.pod("far", &json!({}))).transpose()?;
    let pods = Pods::new(nodes[0].pod("client", &json!({}))?, nodes[0].pod("server", &json!({}))?, far)?;
    let ports = Load::ALL.map(|load| Port::tcp(load.port()));
    cluster.service("near", NEAR, &ports, pods.server.ip, 1);
    if let Some(far) = &pods.far {
        cluster.service("far", FAR, &ports, far.ip, 2);
    }
    // A ClusterIP has an entry for each port, and one for itself.
    let entries = (services - 1) * 2 + (ports.len() + 1) * if with_far { 2 } else { 1 };
    node::until("every Service is in the map", || Ok(nodes[0].frontends()? >= entries))?;
    Ok(Ours { pods, _nodes: nodes, _cluster: cluster })
}

struct Bridged {
    pods: Pods,
    _nodes: Vec<BridgeNode>,
}

fn bridged(services: usize, with_far: bool) -> Result<Bridged> {
    let [first, second] = wire();
    let mut nodes = vec![BridgeNode::new(1, first)?];
    if with_far {
        nodes[0].route_to(2);
        nodes.push(BridgeNode::new(2, second)?);
        nodes[1].route_to(1);
    }
    let pods = Pods::new(nodes[0].pod(), nodes[0].pod(), nodes.get(1).map(BridgeNode::pod))?;
    let mut rules: Vec<Rule> = (1..services)
        .map(|number| {
            let (ip, backend) = other(number);
            Rule { proto: "tcp", ip, port: 80, node_port: None, backend, target: 80 }
        })
        .collect();
    let mut add = |ip, backend| {
        rules.extend(Load::ALL.map(|load| Rule { proto: "tcp", ip, port: load.port(), node_port: None, backend, target: load.port() }));
    };
    add(NEAR, pods.server.ip);
    if let Some(far) = &pods.far {
        add(FAR, far.ip);
    }
    nodes[0].load(&rules)?;
    Ok(Bridged { pods, _nodes: nodes })
}

/// One way from a client to a server.
struct Way<'a> {
    name: String,
    from: &'a Place,
    to: Ipv4Addr,
    /// For each load, one figure a round.
    figures: [Vec<f64>; 3],
}

impl<'a> Way<'a> {
    fn new(name: impl Into<String>, from: &'a Place, to: Ipv4Addr) -> Way<'a> {
        Way { name: name.into(), from, to, figures: Default::default() }
    }
}

/// Prints the figures; whether every goal is met. Call it while the process has one thread: it changes its mounts.
pub fn run(args: &Args) -> Result<bool> {
    node::own_mounts()?;
    let scenes: Vec<(usize, Ours, Bridged)> = args
        .services
        .iter()
        .enumerate()
        .map(|(index, services)| Ok((*services, ours(args, *services, index == 0)?, bridged(*services, index == 0)?)))
        .collect::<Result<_>>()?;
    let mut ways = Vec::new();
    for (services, ours, bridged) in &scenes {
        ways.push(Way::new(our_name(*services), &ours.pods.client, NEAR));
        ways.push(Way::new(bridge_name(*services), &bridged.pods.client, NEAR));
    }
    let bare = Bare::new()?;
    ways.push(Way::new(BARE, &bare.client, bare.server.ip));
    let (_, ours, bridged) = &scenes[0];
    ways.push(Way::new("pod to pod", &ours.pods.client, ours.pods.server.ip));
    ways.push(Way::new("loopback", &ours.pods.client, Ipv4Addr::LOCALHOST));
    if let (Some(far), Some(_)) = (&ours.pods.far, &bridged.pods.far) {
        ways.push(Way::new("pod to ClusterIP across nodes", &ours.pods.client, FAR));
        ways.push(Way::new("bridge with nftables across nodes", &bridged.pods.client, FAR));
        ways.push(Way::new("pod to pod across nodes", &ours.pods.client, far.ip));
    }
    let time = Duration::from_secs_f64(args.seconds);
    // What is learnt at first use is learnt before.
    for way in &ways {
        node::until(&way.name, || Ok(way.from.measure(Load::Connections, way.to, Duration::from_millis(20)).is_ok()))?;
    }
    for _ in 0..args.rounds {
        // No way always comes after the same other.
        ways.rotate_left(1);
        for (index, load) in Load::ALL.into_iter().enumerate() {
            for way in &mut ways {
                way.figures[index].push(way.from.measure(load, way.to, time)?);
            }
        }
    }
    let lines = lines(&ways, &args.services);
    lines.iter().for_each(Line::print);
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

fn lines(ways: &[Way], services: &[usize]) -> Vec<Line> {
    let mut lines = Vec::new();
    let (first, last) = (services[0], services[services.len() - 1]);
    for (index, load) in Load::ALL.into_iter().enumerate() {
        let figures = |name: &str| ways.iter().find(|way| way.name == name).map(|way| &way.figures[index]);
        for way in ways {
            lines.push(Line::median(format!("{}, {}", load.name(), way.name), load.unit(), &way.figures[index], Goal::None));
        }
        // Pairs of one round: what disturbed the machine then disturbed both.
        let mut over = |one: &str, other: &str, goal: Goal| {
            if let (Some(a), Some(b)) = (figures(one), figures(other)) {
                let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
                // Only requests are held to goals.
                let goal = if load == Load::RoundTrips { goal } else { Goal::None };
                let mut line = Line::median(format!("{}, {one} over {other}, by round", load.name()), "ratio", &ratios, goal);
                line.beside = Some(format!("{other} {:.1} {}", percentile(b, 50.0), load.unit()));
                lines.push(line);
            }
        };
        for services in services {
            over(&our_name(*services), &bridge_name(*services), Goal::AtLeast(1.2));
        }
        over(&our_name(first), "loopback", Goal::AtLeast(0.95));
        over(BARE, "loopback", Goal::None);
        over(&our_name(first), BARE, Goal::None);
        over(&our_name(first), "pod to pod", Goal::None);
        over("pod to ClusterIP across nodes", "bridge with nftables across nodes", Goal::None);
        over("pod to ClusterIP across nodes", "pod to pod across nodes", Goal::None);
        if last != first {
            over(&our_name(last), &our_name(first), Goal::AtLeast(0.95));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_services_have_addresses_of_their_own() {
        let seen: std::collections::BTreeSet<_> = (1..10_000).flat_map(|n| <[_; 2]>::from(other(n))).collect();
        assert_eq!(seen.len(), 2 * 9_999);
        assert!(!seen.contains(&NEAR) && !seen.contains(&FAR));
    }
}
