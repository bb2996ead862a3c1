//! From an event's numbers to names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use xebec_ebpf_abi::{Addr, DropReason, Endpoint, Event, Port, direction, proto, seen};

use super::{End, Seen, ServiceAt, Verdict};
use crate::Config;
use crate::bpf::gc;
use crate::compile::services::names::Named;
use crate::engine::Engine;
use crate::explain::{Judged, name_policy};

/// Names, as the engine knows them now. What takes a search is found once for a batch.
pub struct Names<'a> {
    engine: &'a Engine,
    /// The node's own.
    addresses: BTreeSet<IpAddr>,
    services: BTreeMap<u32, Option<Named>>,
    /// Unix time minus the clock of events, in nanoseconds.
    epoch: i128,
}

impl<'a> Names<'a> {
    /// For some events.
    pub fn new(engine: &'a Engine, config: &Config) -> Names<'a> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        let addresses = engine.node_addresses(&config.node_ips);
        Names { engine, addresses, services: BTreeMap::new(), epoch: unix - i128::from(gc::now()) }
    }

    /// An event in words.
    pub fn of(&mut self, event: &Event) -> Seen {
        let Event { tuple, .. } = event;
        let unread = tuple.dst == Addr::ANY && event.seen != seen::SOCKET;
        let mut source = self.end(tuple.src, tuple.sport, tuple.proto());
        if unread || event.seen == seen::SOCKET {
            source = End { address: None, port: None, ..self.sender(event) };
        }
        Seen {
            time: jiff::Timestamp::from_nanosecond(self.epoch + i128::from(event.time))
                .map_or_else(|_| String::new(), |t| format!("{t:.6}")),
            verdict: if event.reason == 0 { Verdict::Forwarded } else { Verdict::Dropped },
            reason: (event.reason != 0).then(|| DropReason::from_number(event.reason).map_or("unknown", DropReason::label).to_owned()),
            at: seen::LABELS.get(usize::from(event.seen)).copied().unwrap_or("unknown").to_owned(),
            device: self.engine.devices.uplinks.get(&event.ifindex).map(|uplink| uplink.name.clone()),
            protocol: (!unread).then(|| protocol(tuple.proto())),
            source,
            destination: if unread { End::default() } else { self.end(tuple.dst, tuple.dport, tuple.proto()) },
            service: self.service(event),
            policies: if unread { Vec::new() } else { self.policies(event) },
            bytes: event.bytes,
        }
    }

    fn end(&self, addr: Addr, port: Port, protocol: u8) -> End {
        let ip = addr.to_ip();
        let has_ports = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
        let pod = self.engine.state.policies.pod_at(ip).map(|(key, _)| key.to_string());
        let node = pod.is_none() && (ip.is_loopback() || self.addresses.contains(&ip));
        End { address: Some(ip), port: has_ports.then(|| port.get()), pod, node }
    }

    /// Who sent it, where no address tells: whose the socket's network namespace, or the device, is.
    fn sender(&self, event: &Event) -> End {
        let policies = &self.engine.state.policies;
        let pod = match event.seen {
            seen::SOCKET => policies.pod_of_netns(event.netns),
            _ => policies.pod_behind(event.ifindex),
        };
        End { node: pod.is_none() && event.seen == seen::SOCKET, pod: pod.map(ToString::to_string), ..End::default() }
    }

    fn service(&mut self, event: &Event) -> Option<ServiceAt> {
        let (asked, port) = match event.seen {
            // One that was refused was given nothing else.
            seen::SOCKET if event.asked == Addr::ANY => (event.tuple.dst, event.tuple.dport),
            _ => (event.asked, event.asked_port),
        };
        let at = (asked != Addr::ANY).then(|| (asked.to_ip(), port.get()));
        let number = match event.service {
            // A refused socket says whom it asked, and a ClusterIP's other ports are no Service's port.
            0 => self.engine.state.services.number_at(asked, port, event.tuple.proto())?,
            number => number,
        };
        let named = self.services.entry(number).or_insert_with(|| self.engine.state.services.named(number));
        let (name, port) = match named.as_ref()? {
            Named::Service(key, name, port) => (key.to_string(), if name.is_empty() { port.to_string() } else { name.clone() }),
            Named::HostPort(endpoint) => {
                let pod = self.engine.state.policies.pod_of(*endpoint).map(ToString::to_string);
                (format!("host port of {}", pod.unwrap_or_else(|| format!("endpoint {endpoint}"))), at?.1.to_string())
            }
        };
        Some(ServiceAt { name, port, address: at.map(|a| a.0), at_port: at.map(|a| a.1) })
    }

    /// What policies of this node's pods said: the sender's, then the receiver's.
    fn policies(&self, event: &Event) -> Vec<crate::explain::PolicySaid> {
        let policies = &self.engine.state.policies;
        let refused = DropReason::from_number(event.reason);
        let sides = [
            (event.tuple.src, direction::EGRESS, Endpoint::ISOLATE_EGRESS, DropReason::PolicyEgress),
            (event.tuple.dst, direction::INGRESS, Endpoint::ISOLATE_INGRESS, DropReason::PolicyIngress),
        ];
        let said = sides.into_iter().filter_map(|(addr, way, isolated, denial)| {
            let endpoint = policies.endpoint_at(&addr).filter(|e| e.flags & isolated != 0)?;
            let allowed = refused != Some(denial);
            let rule = Some(event.rules[usize::from(way)]).filter(|rule| *rule != 0);
            // What was dropped for another reason may not have come to this side's policies.
            if refused.is_some() && allowed && rule.is_none() {
                return None;
            }
            Some(name_policy(self.engine, &Judged { endpoint, way, allowed, rule, established: false }))
        });
        said.collect()
    }
}

fn protocol(number: u8) -> String {
    match number {
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::SCTP => "sctp".into(),
        proto::ICMP | proto::ICMPV6 => "icmp".into(),
        other => other.to_string(),
    }
}
