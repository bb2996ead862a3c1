//! What `/metrics` tells besides the dataplane's own figures.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Registry,
};

use crate::health::Health;

/// Registers the agent's figures under kubelet's names.
pub(crate) fn register(registry: &mut Registry, node: &str, health: Arc<Health>) {
    let name = Family::<Vec<(String, String)>, Gauge>::default();
    name.get_or_create(&vec![("node".to_owned(), node.to_owned())]).set(1);
    registry.register("kubelet_node_name", "The node's name; the value is always 1", name);
    registry.register_collector(Box::new(Current { health }));
}

/// Read when scraped.
struct Current {
    health: Arc<Health>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Current")
    }
}

impl Collector for Current {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let pods = self.health.pods().map_or(0, |pods| pods.pods().len());
        let ready = i64::from(self.health.problems.borrow().is_empty());
        let gauges = [
            ("kubelet_active_pods", "Pods bound to this node", pods as i64),
            ("kubelet_node_ready", "Whether the node can take pods", ready),
            ("process_resident_memory_bytes", "Resident memory of the agent", resident_bytes()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<i64>().ok());
    // SAFETY: sysconf reads a constant of the system.
    pages.unwrap_or(0) * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}
