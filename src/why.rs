//! `xebec why`: where a packet ends, and what decided.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use xebec_dataplane::{
    explain::{Fate, Why, WhyQuestion},
    inspect::Question,
};

use crate::inspect::{Agent, Output};

/// Which packet.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who sends: an address, `node`, `pod/NAMESPACE/NAME`, or NAMESPACE/NAME.
    source: String,
    /// Whom to: the same, or svc/NAMESPACE/NAME.
    destination: String,
    /// PROTOCOL/PORT, as tcp/80; or icmp.
    packet: String,
    /// Port of the sender, to ask about a flow that exists.
    #[arg(long)]
    source_port: Option<u16>,
    #[command(flatten)]
    agent: Agent,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Asks the agent of this host.
pub fn run(args: &Args) -> Result<()> {
    let (protocol, port) = packet(&args.packet)?;
    let question =
        WhyQuestion { source: args.source.clone(), destination: args.destination.clone(), protocol, port, source_port: args.source_port };
    let why: Why = args.agent.ask(&Question::Why(question))?;
    match args.output {
        Output::Text => print!("{}", text(&why)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&why)?),
    }
    Ok(())
}

fn packet(text: &str) -> Result<(String, u16)> {
    match text.split_once('/') {
        None if text.eq_ignore_ascii_case("icmp") => Ok((text.to_owned(), 0)),
        Some((protocol, port)) => {
            let port = port.parse().with_context(|| format!("{port:?} in {text:?} is no port number"))?;
            Ok((protocol.to_owned(), port))
        }
        None => bail!("{text:?} is not PROTOCOL/PORT, as tcp/80, nor icmp"),
    }
}

fn text(why: &Why) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, text: String| writeln!(out, "{name:<9} {text}").unwrap_or_default();
    let at = |version: &Option<String>| version.as_ref().map_or(String::new(), |v| format!(" (resourceVersion {v})"));
    line("packet", why.packet.clone());
    line("from", why.source.clone());
    line("to", why.destination.clone());
    if let Some(service) = &why.service {
        line("Service", format!("{} port {} at {}{}", service.service, service.port, service.at, at(&service.resource_version)));
    }
    if let Some(backend) = &why.backend {
        let pod = backend.pod.as_ref().map_or(String::new(), |pod| format!(", pod {pod}"));
        let slice = backend.endpoint_slice.as_ref().map_or(String::new(), |slice| format!(", EndpointSlice {slice}"));
        line("endpoint", format!("{}{pod}{slice}{}", backend.address, at(&backend.resource_version)));
    }
    for policy in &why.policies {
        let verdict = match (policy.allowed, policy.established, &policy.rule) {
            (true, true, _) => "allowed, as part of a flow that exists".to_owned(),
            (true, false, Some(rule)) => format!("allowed by {} of {}", rule, policy.policies.join(", ")),
            (true, false, None) => "allowed: the node and its pods may always talk, or no rule says otherwise".to_owned(),
            (false, _, Some(rule)) => format!("denied by {} of {}", rule, policy.policies.join(", ")),
            (false, _, None) => format!("denied: no rule of {} allows it", policy.policies.join(", ")),
        };
        line("policy", format!("{} of {}: {verdict}", policy.direction, policy.pod));
    }
    for step in &why.steps {
        line("step", format!("{} at {}: {}", step.program, step.at, step.what));
    }
    line("ends as", why.arrives_as.clone());
    line("fate", fate(&why.fate));
    out
}

fn fate(fate: &Fate) -> String {
    match fate {
        Fate::Delivered => "delivered to the pod".into(),
        Fate::Node => "handed to the node itself".into(),
        Fate::Leaves { device } => format!("leaves through {device}"),
        Fate::Dropped { reason } => format!("dropped: {reason}"),
        Fate::Refused { reason } => format!("refused at connect(2): {reason}"),
        Fate::Nowhere => "the node has no device towards other machines".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_protocol_and_port() {
        assert_eq!(packet("tcp/80").unwrap(), ("tcp".into(), 80));
        assert_eq!(packet("ICMP").unwrap().1, 0);
        assert!(packet("tcp").is_err());
        assert!(packet("tcp/http").unwrap_err().to_string().contains("no port number"));
        assert!(packet("tcp/70000").is_err());
    }
}
