//! `xebec flows`: what the programs of this node drop and pass on, as it happens.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Write as _},
    net::IpAddr,
};

use anyhow::{Context, Result};
use xebec_dataplane::{
    explain::PolicySaid,
    flows::{End, Filter, FlowsQuestion, Told, Verdict},
    inspect::Question,
};

use crate::inspect::{Agent, Output};

/// Which events.
#[derive(Debug, clap::Args)]
#[command(after_help = "Drops are remembered always, new flows while somebody follows. All filters given must hold.")]
pub struct Args {
    /// A pod at either end: NAME or NAMESPACE/NAME.
    #[arg(long)]
    pod: Option<String>,
    /// The namespace of a pod at either end, or of the Service.
    #[arg(short, long)]
    namespace: Option<String>,
    /// The Service that was asked for: NAME or NAMESPACE/NAME.
    #[arg(long)]
    service: Option<String>,
    /// An address of either end, or the Service's.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// A port of either end, or the Service's.
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp, sctp, icmp or a protocol's number.
    #[arg(long)]
    protocol: Option<String>,
    /// What became of it.
    #[arg(long, value_enum)]
    verdict: Option<Wanted>,
    /// Why it was dropped, as the metric has it: policy_ingress, no_backend, …
    #[arg(long)]
    reason: Option<String>,
    /// So many of those that have been; 20 unless --follow is given.
    #[arg(long)]
    last: Option<usize>,
    /// Go on with what comes, until interrupted.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    agent: Agent,
    /// How to print: json is one object a line.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Wanted {
    Dropped,
    Forwarded,
}

/// How many are shown of those that have been.
const LAST: usize = 20;

/// Asks the agent of this host.
pub fn run(args: &Args) -> Result<()> {
    let verdict = args.verdict.map(|wanted| match wanted {
        Wanted::Dropped => Verdict::Dropped,
        Wanted::Forwarded => Verdict::Forwarded,
    });
    let filter = Filter {
        pod: args.pod.clone(),
        namespace: args.namespace.clone(),
        service: args.service.clone(),
        ip: args.ip.map(|ip| ip.to_canonical()),
        port: args.port,
        protocol: args.protocol.clone(),
        verdict,
        reason: args.reason.clone(),
    };
    let last = args.last.unwrap_or(if args.follow { 0 } else { LAST });
    let question = Question::Flows(FlowsQuestion { filter, last, follow: args.follow });
    let mut out = std::io::stdout().lock();
    let mut print = |line: &str| match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        // Who reads us has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot print"),
    };
    if args.output == Output::Text && !print(HEADER.trim_end())? {
        return Ok(());
    }
    args.agent.ask_on(&question, |told: Told| match args.output {
        Output::Text => print(text(&told).trim_end()),
        Output::Json => print(&serde_json::to_string(&told)?),
    })
}

const HEADER: &str = "TIME                         VERDICT    PROTO  FROM → TO";

fn text(told: &Told) -> String {
    let seen = match told {
        Told::Missed(count) => return format!("… {count} more were not told: there were too many at once"),
        Told::Flow(seen) => seen,
    };
    let verdict = match seen.verdict {
        Verdict::Forwarded => "forwarded",
        Verdict::Dropped => "dropped",
    };
    let protocol = seen.protocol.as_deref().unwrap_or("?");
    let mut out = format!("{:<28} {verdict:<10} {protocol:<6} {} → {}", seen.time, end(&seen.source), end(&seen.destination));
    let mut more = |text: std::fmt::Arguments<'_>| out.write_fmt(text).unwrap_or_default();
    if let Some(service) = &seen.service {
        more(format_args!("  svc {}:{}", service.name, service.port));
    }
    if let Some(reason) = &seen.reason {
        more(format_args!("  {reason}"));
    }
    more(format_args!("  at {}", seen.device.as_deref().unwrap_or(&seen.at)));
    for policy in &seen.policies {
        more(format_args!("  {}", said(policy)));
    }
    out
}

fn said(policy: &PolicySaid) -> String {
    let verb = if policy.allowed { "allowed" } else { "denied" };
    let by = match (&policy.rule, policy.policies.is_empty()) {
        (Some(rule), _) => format!(" by {rule} of {}", policy.policies.join(", ")),
        (None, false) if !policy.allowed => format!(": no rule of {} allows it", policy.policies.join(", ")),
        (None, _) => String::new(),
    };
    format!("[{} {verb}{by}]", policy.direction)
}

fn end(end: &End) -> String {
    let name = match (&end.pod, end.node, end.address) {
        (Some(pod), ..) => pod.clone(),
        (None, true, Some(ip)) => format!("node({ip})"),
        (None, true, None) => "node".into(),
        (None, false, Some(IpAddr::V6(ip))) if end.port.is_some() => format!("[{ip}]"),
        (None, false, Some(ip)) => ip.to_string(),
        (None, false, None) => "?".into(),
    };
    match end.port {
        Some(port) if end.address.is_some() => format!("{name}:{port}"),
        Some(_) | None => name,
    }
}

#[cfg(test)]
mod tests {
    use xebec_dataplane::flows::{Seen, ServiceAt};

    use super::*;

    #[test]
    fn a_drop_says_who_whom_why_and_by_what() {
        let seen = Seen {
            time: "2026-11-22T10:00:00.000001Z".into(),
            verdict: Verdict::Dropped,
            reason: Some("policy_ingress".into()),
            at: "from_pod".into(),
            device: None,
            protocol: Some("tcp".into()),
            source: End { address: "10.244.0.5".parse().ok(), port: Some(40000), pod: Some("shop/cart".into()), node: false },
            destination: End { address: "fd00::6".parse().ok(), port: Some(8080), pod: None, node: false },
            service: Some(ServiceAt { name: "pay/web".into(), port: "http".into(), address: None, at_port: None }),
            policies: vec![PolicySaid {
                pod: "pay/web-1".into(),
                direction: "ingress".into(),
                allowed: false,
                established: false,
                rule: None,
                policies: vec!["pay/deny (resourceVersion 7)".into()],
            }],
            bytes: 60,
        };
        let line = text(&Told::Flow(Box::new(seen)));
        for part in [
            "dropped",
            "shop/cart:40000 → [fd00::6]:8080",
            "svc pay/web:http",
            "policy_ingress",
            "at from_pod",
            "[ingress denied: no rule of pay/deny (resourceVersion 7) allows it]",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(text(&Told::Missed(3)).contains("3 more"));
    }

    #[test]
    fn ends_without_an_address_are_named_all_the_same() {
        assert_eq!(end(&End { node: true, ..End::default() }), "node");
        assert_eq!(end(&End::default()), "?");
        assert_eq!(end(&End { pod: Some("a/b".into()), ..End::default() }), "a/b");
    }
}
