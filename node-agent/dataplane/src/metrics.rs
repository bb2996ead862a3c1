//! What Prometheus sees: counters the programs keep, and how full the maps are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use xebec_ebpf_abi::{DropCount, DropReason, Endpoint, ServiceCount, forward};

use crate::compile::input::Key;
use crate::compile::services::names::Named;
use crate::engine::Engine;
use crate::sync::SyncClock;
use crate::{Dataplane, ServiceUse, Status};

/// Reads the kernel at each scrape.
pub struct Collector(Weak<Dataplane>);

impl Collector {
    /// Of a dataplane; once that is gone the collector is silent.
    pub fn new(dataplane: &Arc<Dataplane>) -> Collector {
        Collector(Arc::downgrade(dataplane))
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dataplane collector")
    }
}

/// Registers all there is to see.
pub fn register(registry: &mut Registry, collector: Collector, sync: &SyncClock) {
    registry.register_collector(Box::new(collector));
    registry.register("xebec_sync_latency_seconds", "From the API's event of a change to its last map entry", sync.latency.clone());
    registry.register("xebec_sync_rounds", "Reconciliations of the maps", sync.rounds.clone());
    registry.register("xebec_sync_errors", "Reconciliations with a write that failed", sync.errors.clone());
    registry.register("xebec_sync_writes", "Map entries written or deleted", sync.writes.clone());
}

/// What one scrape shows.
#[derive(Default)]
struct Snapshot {
    drops: Vec<DropCount>,
    forwards: Vec<DropCount>,
    services: Vec<ServiceUse>,
    policies: usize,
    isolated: [usize; 2],
    status: Status,
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let Some(dataplane) = self.0.upgrade() else {
            return Ok(());
        };
        let status = dataplane.status();
        let snapshot = {
            let engine = dataplane.engine.lock();
            let policies = &engine.state.policies;
            Snapshot {
                drops: engine.maps.drops(),
                forwards: engine.maps.forwards(),
                services: by_service(&engine),
                policies: policies.policy_keys().len(),
                isolated: isolated(policies.tables.endpoints.have().values()),
                status,
            }
        };
        encode(encoder, &snapshot)
    }
}

/// How many pods policies select, for ingress and for egress. A pod with two addresses has two entries.
fn isolated<'a>(entries: impl Iterator<Item = &'a Endpoint> + Clone) -> [usize; 2] {
    [Endpoint::ISOLATE_INGRESS, Endpoint::ISOLATE_EGRESS].map(|flag| {
        let selected = entries.clone().filter(|e| e.flags & flag != 0);
        selected.map(|e| e.id).collect::<BTreeSet<u32>>().len()
    })
}

fn encode(mut encoder: DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let Snapshot { drops, forwards, services, policies, isolated, status } = snapshot;
    counters(&mut encoder, ("xebec_dropped", "dropped", "reason"), drops, reason)?;
    counters(&mut encoder, ("xebec_forwarded", "passed on", "path"), forwards, path)?;
    service_counters(&mut encoder, "xebec_service_flows", "Connections and flows that Services gave an endpoint", services, |s| s.flows)?;
    service_counters(&mut encoder, "xebec_service_refused", "Connects and packets that Services refused", services, |s| s.refused)?;

    let fill = || status.maps.iter().map(|map| (map.name.as_str(), map.entries));
    gauges(&mut encoder, ("xebec_map_entries", "Entries in a BPF map", "map"), fill())?;
    let places = || status.maps.iter().map(|map| (map.name.as_str(), map.max_entries));
    gauges(&mut encoder, ("xebec_map_max_entries", "Entries a BPF map can hold", "map"), places())?;
    let limits = || status.maps.iter().map(|map| (map.name.as_str(), map.limit));
    gauges(&mut encoder, ("xebec_map_limit", "Entries a BPF map may grow to hold", "map"), limits())?;
    let bytes = || status.maps.iter().map(|map| (map.name.as_str(), map.bytes));
    gauges(&mut encoder, ("xebec_map_bytes", "Memory a BPF map takes", "map"), bytes())?;
    let mut growths = encoder.encode_descriptor("xebec_map_growths", "How often a BPF map has grown", None, MetricType::Counter)?;
    for map in &status.maps {
        ConstCounter::new(map.growths).encode(growths.encode_family(&[("map", map.name.as_str())])?)?;
    }
    let sizes = || status.programs.iter().map(|p| (p.name.as_str(), u64::from(p.verified_instructions)));
    gauges(&mut encoder, ("xebec_program_verified_instructions", "Instructions the verifier went through", "program"), sizes())?;
    let directions = ["ingress", "egress"].into_iter().zip(isolated.map(|n| n as u64));
    gauges(&mut encoder, ("xebec_policy_isolated_pods", "Local pods that a policy selects", "direction"), directions)?;

    gauge(&mut encoder, "xebec_policies", "NetworkPolicies the node knows", *policies as f64)?;
    gauge(&mut encoder, "xebec_pods", "Local pods with a device", status.endpoints as f64)?;
    gauge(&mut encoder, "xebec_ready", "Whether pods can be set up", f64::from(u8::from(status.ready)))?;
    gauge(&mut encoder, "xebec_sync_lag_seconds", "Age of the oldest change that is not in the maps", status.sync.lag_seconds)?;
    gauge(&mut encoder, "xebec_ipam_leases", "Pod addresses with an owner", status.leases as f64)?;
    gauge(&mut encoder, "xebec_ipam_capacity", "Pods the node's ranges have addresses for", status.capacity as f64)
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder,
    (name, help, label): (&str, &str, &str),
    values: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (text, value) in values {
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family.encode_family(&[(label, text)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn reason(number: usize) -> Option<&'static str> {
    u32::try_from(number).ok().and_then(DropReason::from_number).map(DropReason::label)
}

fn path(number: usize) -> Option<&'static str> {
    forward::LABELS.get(number).copied()
}

/// Packets by drop reason, those that occurred.
pub fn by_reason(counts: &[DropCount]) -> BTreeMap<String, u64> {
    named(counts, reason)
}

/// Packets by path, those that were taken.
pub fn by_path(counts: &[DropCount]) -> BTreeMap<String, u64> {
    named(counts, path)
}

fn named(counts: &[DropCount], name: impl Fn(usize) -> Option<&'static str>) -> BTreeMap<String, u64> {
    let occurred = counts.iter().enumerate().filter(|(_, c)| c.packets > 0);
    occurred.filter_map(|(number, c)| Some((name(number)?.to_owned(), c.packets))).collect()
}

/// Ports of Services that have time series of their own, at most; the counts of all others are one.
const MOST_SERVICES: usize = 4096;

/// What each Service's port was asked for. The port's number in the maps decides who has a place of its own: it stays,
/// so no counter goes back.
pub fn by_service(engine: &Engine) -> Vec<ServiceUse> {
    let counts = engine.maps.service_counts();
    let names = engine.state.services.names(|number| counts.contains_key(&number));
    together(counts.into_iter().filter_map(|(number, count)| match names.get(&number)? {
        Named::Service(key, name, port) => Some((key.clone(), if name.is_empty() { port.to_string() } else { name.clone() }, count)),
        Named::HostPort(_) => None,
    }))
}

/// One entry for both families of a port.
fn together(counts: impl Iterator<Item = (Key, String, ServiceCount)>) -> Vec<ServiceUse> {
    let mut sums: BTreeMap<(Key, String), ServiceCount> = BTreeMap::new();
    for (service, port, count) in counts {
        let named = (service, port);
        let place = if sums.len() < MOST_SERVICES || sums.contains_key(&named) { named } else { (Key::new("", "others"), String::new()) };
        let sum = sums.entry(place).or_default();
        sum.flows += count.flows;
        sum.refused += count.refused;
    }
    let entry = |((key, port), count): ((Key, String), ServiceCount)| ServiceUse {
        namespace: key.namespace,
        name: key.name,
        port,
        flows: count.flows,
        refused: count.refused,
    };
    sums.into_iter().map(entry).collect()
}

fn service_counters(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    services: &[ServiceUse],
    of: impl Fn(&ServiceUse) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for service in services {
        // Plain `namespace` and `service` are the agent's own in many scrape configurations.
        let labels = [("service_namespace", service.namespace.as_str()), ("service_name", &service.name), ("service_port", &service.port)];
        ConstCounter::new(of(service)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters(
    encoder: &mut DescriptorEncoder,
    (name, what, label): (&str, &str, &str),
    counts: &[DropCount],
    text: impl Fn(usize) -> Option<&'static str>,
) -> fmt::Result {
    for (unit, of) in [("packets", (|c: &DropCount| c.packets) as fn(&DropCount) -> u64), ("bytes", |c| c.bytes)] {
        let help = format!("{unit} {what}, by {label}");
        let name = format!("{name}_{unit}");
        let mut family = encoder.encode_descriptor(&name, &help, None, MetricType::Counter)?;
        for (number, count) in counts.iter().enumerate() {
            let Some(text) = text(number) else { continue };
            ConstCounter::new(of(count)).encode(family.encode_family(&[(label, text)])?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MapFill, ProgramSize};

    /// A dataplane that has something to say of everything.
    #[derive(Debug)]
    struct Example;

    impl prometheus_client::collector::Collector for Example {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            let some = || vec![DropCount { packets: 1, bytes: 60 }; 8];
            let status = Status {
                maps: vec![MapFill { name: "NAT".into(), entries: 1, max_entries: 2, limit: 4, bytes: 512, growths: 1 }],
                programs: vec![ProgramSize { name: "connect4".into(), verified_instructions: 9, jitted_bytes: 90 }],
                ..Status::default()
            };
            let key = Key::new("shop", "web");
            let services = together([(key, "http".to_owned(), ServiceCount { flows: 3, refused: 1 })].into_iter());
            encode(encoder, &Snapshot { drops: some(), forwards: some(), services, status, ..Snapshot::default() })
        }
    }

    fn scrape() -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Example));
        register(&mut registry, Collector(Weak::new()), &SyncClock::default());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// Names of time series, as a query has them.
    fn series(text: &str) -> BTreeSet<String> {
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        lines.map(|l| l.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
    }

    /// Names that start with ours in an expression.
    fn asked(expression: &str) -> BTreeSet<String> {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        words.filter(|w| w.starts_with("xebec_")).map(str::to_owned).collect()
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is_and_shows_all_of_it() {
        let dashboard = include_str!("../../../deploy/grafana-dashboard.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("the dashboard is JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut wanted = BTreeSet::new();
        for panel in panels.iter().filter(|p| p["type"] != "row") {
            let targets = panel["targets"].as_array().unwrap_or_else(|| panic!("{} asks for something", panel["title"]));
            for target in targets {
                let names = asked(target["expr"].as_str().expect("an expression"));
                assert!(!names.is_empty(), "{} asks for a metric of ours", panel["title"]);
                wanted.extend(names);
            }
        }
        let there = series(&scrape());
        let unknown: Vec<_> = wanted.difference(&there).collect();
        assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
        let histogram = |name: &str| name.ends_with("_sum") || name.ends_with("_count");
        let unseen: Vec<_> = there.difference(&wanted).filter(|n| !histogram(n)).collect();
        assert!(unseen.is_empty(), "on no panel: {unseen:?}");
    }

    #[test]
    fn a_services_families_are_one_and_most_services_are_the_limit() {
        let one = ServiceCount { flows: 2, refused: 1 };
        let key = |n: usize| Key::new("ns", &format!("{n:05}"));
        let both = together([(key(1), "80".to_owned(), one), (key(1), "80".to_owned(), one)].into_iter());
        assert_eq!((both.len(), both[0].flows, both[0].refused), (1, 4, 2));
        let many = together((0..MOST_SERVICES + 10).map(|n| (key(n), "80".to_owned(), one)));
        assert_eq!(many.len(), MOST_SERVICES + 1);
        let others = many.iter().find(|s| s.name == "others").expect("the rest");
        assert_eq!((others.flows, others.refused), (20, 10));
        assert!(
            scrape().contains(r#"xebec_service_refused_total{service_namespace="shop",service_name="web",service_port="http"} 1"#),
            "{}",
            scrape()
        );
    }

    #[test]
    fn a_pod_with_two_addresses_is_isolated_once() {
        let entry = |id, flags| Endpoint {
            id,
            ifindex: 1,
            pod_mac: [0; 6],
            host_mac: [0; 6],
            flags,
            epoch: 0,
            netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN,
        };
        let both = Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS;
        let entries = [entry(1, both), entry(1, both), entry(2, Endpoint::ISOLATE_EGRESS), entry(3, 0)];
        assert_eq!(isolated(entries.iter()), [1, 2]);
    }
}
