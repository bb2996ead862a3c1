//! `xebec status --node`: what the agent of this host says of its dataplane.

use std::fmt::Write;

use anyhow::{Result, bail};
use xebec_dataplane::{MapFill, Status, inspect::Question};

use crate::inspect::{Agent, Output};

/// Prints it; fails if pods cannot be set up.
pub fn run(agent: &Agent, output: Output) -> Result<()> {
    let status: Status = agent.ask(&Question::Status)?;
    match output {
        Output::Text => print!("{}", text(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    if !status.ready {
        bail!("the node waits for {}", status.waiting_for.join(", "));
    }
    Ok(())
}

/// Services that are shown to people.
const BUSIEST: usize = 20;

fn text(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: String| writeln!(out, "{text}").unwrap_or_default();
    let list = |of: &mut dyn Iterator<Item = String>| of.collect::<Vec<_>>().join(", ");
    line(format!("ready      {}", if status.ready { "yes" } else { "no" }));
    for wait in &status.waiting_for {
        line(format!("waits for  {wait}"));
    }
    for error in &status.errors {
        line(format!("retries    {error}"));
    }
    line(format!("addresses  {}", list(&mut status.node_addresses.iter().map(ToString::to_string))));
    line(format!("forwarding {}", status.forwarding));
    line(format!("pod range  {}", list(&mut status.pod_cidrs.iter().map(ToString::to_string))));
    line(format!("pods       {} with a device, {} of {} addresses leased", status.endpoints, status.leases, status.capacity));
    line(format!("at pods    programs by shared tc blocks; at {} by links of their own", status.pods_by_links));
    let sync = &status.sync;
    line(format!(
        "sync       {} behind the API, last change took {}; {} rounds, {} writes, {} rounds with errors",
        seconds(sync.lag_seconds),
        seconds(sync.last_seconds),
        sync.rounds,
        sync.writes,
        sync.errors
    ));
    line(format!("\n{:<16} {:>5} {:>6}  {:<12} XDP", "DEVICE", "INDEX", "MTU", "MODE"));
    for device in &status.devices {
        line(format!("{:<16} {:>5} {:>6}  {:<12} {}", device.name, device.index, device.mtu, device.mode, device.xdp));
    }
    line(format!("\n{:<16} {:>9} {:>9} {:>6} {:>9} {:>5} {:>9}", "MAP", "ENTRIES", "PLACES", "FULL", "LIMIT", "GREW", "MEMORY"));
    for map in &status.maps {
        let full = 100.0 * map.entries as f64 / map.max_entries.max(1) as f64;
        let memory = format!("{:.1} MiB", map.bytes as f64 / f64::from(1 << 20));
        let MapFill { name, entries, max_entries, limit, growths, .. } = map;
        line(format!("{name:<16} {entries:>9} {max_entries:>9} {full:>5.1}% {limit:>9} {growths:>5} {memory:>9}"));
    }
    line(format!("\n{:<16} {:>12} {:>10}", "PROGRAM", "INSTRUCTIONS", "MACHINE"));
    for program in &status.programs {
        line(format!("{:<16} {:>12} {:>8} B", program.name, program.verified_instructions, program.jitted_bytes));
    }
    let mut busiest: Vec<_> = status.services.iter().collect();
    busiest.sort_by_key(|s| std::cmp::Reverse((s.flows + s.refused, &s.namespace, &s.name, &s.port)));
    line(format!("\n{:<40} {:>12} {:>12}", "SERVICE", "FLOWS", "REFUSED"));
    for service in busiest.iter().take(BUSIEST) {
        line(format!(
            "{:<40} {:>12} {:>12}",
            format!("{}/{}:{}", service.namespace, service.name, service.port),
            service.flows,
            service.refused
        ));
    }
    if busiest.len() > BUSIEST {
        line(format!("and {} more; -o json has all", busiest.len() - BUSIEST));
    }
    for (title, counts) in [("PASSED ON", &status.forwards), ("DROPPED", &status.drops)] {
        line(format!("\n{title:<20} {:>12}", "PACKETS"));
        for (name, packets) in counts {
            line(format!("{name:<20} {packets:>12}"));
        }
    }
    out
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use xebec_dataplane::{Device, ProgramSize, ServiceUse};

    use super::*;

    #[test]
    fn everything_is_in_the_text() {
        let status = Status {
            waiting_for: vec!["a podCIDR in the Node object".into()],
            errors: vec!["cannot write NAT".into()],
            forwarding: "snat, 2 Services otherwise".into(),
            devices: vec![Device { name: "eth0".into(), index: 2, mtu: 9000, mode: "tc".into(), xdp: "native".into() }],
            maps: vec![MapFill { name: "FRONTENDS".into(), entries: 5, max_entries: 50, limit: 400, bytes: 3 << 20, growths: 2 }],
            programs: vec![ProgramSize { name: "from_pod".into(), verified_instructions: 4321, jitted_bytes: 9 }],
            services: (0..22)
                .map(|n| ServiceUse { namespace: "shop".into(), name: format!("web-{n}"), port: "http".into(), flows: n, refused: 0 })
                .collect(),
            pods_by_links: 3,
            drops: [("policy_ingress".to_owned(), 7)].into(),
            forwards: [("socket".to_owned(), 11)].into(),
            ..Status::default()
        };
        let text = text(&status);
        for part in [
            "ready      no",
            "a podCIDR",
            "cannot write NAT",
            "at 3 by links",
            "forwarding snat, 2",
            "eth0",
            "9000",
            "tc           native",
            "FRONTENDS",
            "10.0%       400     2   3.0 MiB",
            "from_pod",
            "4321",
            "shop/web-21:http",
            "and 2 more",
            "policy_ingress",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.lines().any(|l| l.starts_with("socket") && l.ends_with("11")), "{text}");
    }
}
