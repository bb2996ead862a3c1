//! What every pod worker of a node shares.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Service};
use kube::runtime::reflector::Store;
use parking_lot::Mutex;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::dns;
use crate::fields::Place;
use crate::images::Images;
use crate::objects::Objects;
use crate::observe::Cache;
use crate::quantity;
use crate::recorder::{Level, Recorder};
use crate::spec;
use crate::status;
use crate::worker::Handle;

pub struct NodeState {
    pub config: Config,
    pub client: kube::Client,
    pub cri: Cri,
    pub recorder: Recorder,
    pub images: Images,
    pub objects: Objects,
    pub cache: Cache,
    pub cgroups: Cgroups,
    pub services: Store<Service>,
    pub node: Store<ApiNode>,
    /// Workers by pod uid.
    pub workers: Mutex<HashMap<String, Handle>>,
    /// Pod uid by container or sandbox id, for containerd's events.
    pub owners: Mutex<HashMap<String, String>>,
}

impl NodeState {
    pub fn api_node(&self) -> Option<Arc<ApiNode>> {
        self.node.state().into_iter().next()
    }

    pub fn status_node(&self) -> status::Node {
        status::Node { ips: self.config.node_ips.iter().map(ToString::to_string).collect() }
    }

    /// Facts for the downward API. Limits default to the node's allocatable.
    pub fn place(&self, pod: &Pod, sandbox_ips: &[String]) -> Place {
        let host_ips: Vec<String> = self.config.node_ips.iter().map(ToString::to_string).collect();
        let pod_ips = if spec::host_network(pod) { host_ips.clone() } else { sandbox_ips.to_vec() };
        Place { node_name: self.config.node_name.clone(), pod_ips, host_ips, allocatable: self.allocatable() }
    }

    pub fn allocatable(&self) -> BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
        let status = self.api_node().and_then(|n| n.status.clone()).unwrap_or_default();
        status.allocatable.or(status.capacity).unwrap_or_default()
    }

    /// Bytes of memory, for OOM scores; the machine's own figure before the Node is known.
    pub fn memory_capacity(&self) -> i64 {
        let node = self.api_node().and_then(|n| n.status.clone()).and_then(|s| s.capacity);
        quantity::get(node.as_ref(), "memory").map(quantity::Amount::value).filter(|b| *b > 0).unwrap_or_else(machine_memory)
    }

    pub fn dns(&self, pod: &Pod) -> DnsConfig {
        let text = std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default();
        let node = dns::parse_resolv_conf(&text);
        let dns = dns::pod_dns(pod, &self.config.cluster_dns, &self.config.cluster_domain, &node);
        for problem in dns.problems {
            self.recorder.pod(pod, Level::Warning, "DNSConfigForming", problem);
        }
        dns.config
    }

    pub fn log_directory(&self, pod: &Pod) -> std::path::PathBuf {
        self.config.log_dir.join(format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod)))
    }
}

fn machine_memory() -> i64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib: i64 = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0);
    kib * 1024
}
