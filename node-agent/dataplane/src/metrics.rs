//! What Prometheus sees: counters the programs keep, and how full the maps are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use xebec_ebpf_abi::{DropCount, DropReason, forward};

use crate::Dataplane;

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

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(dataplane) = self.0.upgrade() else {
            return Ok(());
        };
        let (drops, forwards) = {
            let engine = dataplane.engine.lock();
            (engine.maps.drops(), engine.maps.forwards())
        };
        let status = dataplane.status();
        counters(&mut encoder, ("xebec_dropped", "dropped", "reason"), &drops, reason)?;
        counters(&mut encoder, ("xebec_forwarded", "passed on", "path"), &forwards, path)?;

        let mut fill = encoder.encode_descriptor("xebec_map_entries", "Entries in a BPF map", None, MetricType::Gauge)?;
        for map in &status.maps {
            gauge(&mut fill, ("map", &map.name), map.entries)?;
        }
        let mut places = encoder.encode_descriptor("xebec_map_max_entries", "Entries a BPF map can hold", None, MetricType::Gauge)?;
        for map in &status.maps {
            gauge(&mut places, ("map", &map.name), map.max_entries)?;
        }
        let leases = ConstGauge::new(status.leases as i64);
        leases.encode(encoder.encode_descriptor("xebec_ipam_leases", "Pod addresses with an owner", None, MetricType::Gauge)?)?;
        let capacity = ConstGauge::new(i64::try_from(status.capacity).unwrap_or(i64::MAX));
        capacity.encode(encoder.encode_descriptor(
            "xebec_ipam_capacity",
            "Pods the node's ranges have addresses for",
            None,
            MetricType::Gauge,
        )?)
    }
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

fn gauge(encoder: &mut MetricEncoder, label: (&str, &str), value: u64) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder.encode_family(&[label])?)
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
