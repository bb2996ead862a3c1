//! What the agent is told at start.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use crate::{Error, Owner, host_root};

/// Settings of the agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's addresses, at most one per family, the primary family first.
    pub node_ips: Vec<IpAddr>,
    /// How to reach the API server, and as whom (`system:node:NAME`). `None`: as the service account of the pod this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Where else the API server is (`HOST[:PORT]` or URL), for when the address of its Service is not served yet.
    pub api_servers: Vec<String>,
    /// What must survive a restart of the machine: volumes, logs, address leases.
    pub data_dir: PathBuf,
    /// What need not: sockets.
    pub run_dir: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The cgroup, relative to each hierarchy's root, that pods and this node's processes are below.
    pub cgroup_parent: String,
    /// Where BPF programs, maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Where containerd reads CNI configuration from.
    pub cni_conf_dir: PathBuf,
    /// Where the kubelet API listens.
    pub bind: SocketAddr,
    /// Serving certificate and key in PEM; made and signed by themselves when missing.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// Certificate authorities of clients of the kubelet API; `None`: that of the kubeconfig.
    pub client_ca: Option<PathBuf>,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Whether this node answers at `cluster_dns`, as long as no Service of somebody else has the address.
    pub serve_dns: bool,
    /// Ranges of Service addresses: names of addresses in them are nobody else's.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// Names the servers for names outside the cluster; pods with `dnsPolicy: Default` get what it says.
    pub resolv_conf: PathBuf,
    /// Domains with servers of their own, `DOMAIN=SERVER+SERVER`.
    pub dns_forward: Vec<String>,
    /// Ranges that are reached without masquerade.
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    /// Devices towards other nodes; empty: detect.
    pub uplinks: Vec<String>,
    /// How packets get to pods of other nodes.
    pub routing: xebec_dataplane::Routing,
    /// Where drivers run the XDP program.
    pub xdp: xebec_dataplane::Xdp,
    /// How pods' devices get their programs.
    pub pod_programs: xebec_dataplane::PodPrograms,
    /// How packets from outside get to pods of other nodes, unless a Service says otherwise.
    pub forwarding: xebec_dataplane::Forwarding,
    /// Who passes on what pods send to other machines.
    pub host_routing: xebec_dataplane::HostRouting,
    /// Places of a ring of consistent hashing; `None`: the dataplane's default.
    pub maglev_size: Option<u32>,
    /// Entries of maps that shall have this size and not grow.
    pub map_entries: BTreeMap<String, u32>,
    /// Entries that maps may grow to have.
    pub max_map_entries: u32,
    pub max_pods: usize,
    /// Labels the Node is registered with besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Only Services, policies and pod devices, beside an upstream kubelet.
    pub dataplane_only: bool,
    /// Where `/healthz` and `/livez` of the service proxy are answered, on every address.
    pub proxy_health_port: u16,
    /// Where the runtime looks for CNI programs, if they are to be removed with the dataplane.
    pub cni_bin_dir: Option<PathBuf>,
    /// The DaemonSet whose end is the end of the dataplane on this node.
    pub owner: Option<Owner>,
}

impl Config {
    /// Defaults for everything else.
    pub fn new(node_name: &str, kubeconfig: Option<PathBuf>, data_dir: PathBuf, run_dir: PathBuf) -> Config {
        Config {
            node_name: node_name.to_owned(),
            node_ips: Vec::new(),
            kubeconfig,
            api_servers: Vec::new(),
            containerd: PathBuf::from("/run/containerd/containerd.sock"),
            cgroup_parent: "/".to_owned(),
            pin_dir: PathBuf::from("/sys/fs/bpf/xebec"),
            cni_conf_dir: data_dir.join("cni/net.d"),
            bind: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 10250),
            tls_cert: data_dir.join("pki/kubelet.crt"),
            tls_key: data_dir.join("pki/kubelet.key"),
            client_ca: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            serve_dns: false,
            service_cidrs: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            dns_forward: Vec::new(),
            cluster_cidrs: Vec::new(),
            uplinks: Vec::new(),
            routing: xebec_dataplane::Routing::Native,
            xdp: xebec_dataplane::Xdp::Auto,
            pod_programs: xebec_dataplane::PodPrograms::Blocks,
            forwarding: xebec_dataplane::Forwarding::Snat,
            host_routing: xebec_dataplane::HostRouting::Bpf,
            maglev_size: None,
            map_entries: BTreeMap::new(),
            max_map_entries: xebec_dataplane::MAX_MAP_ENTRIES,
            max_pods: 110,
            labels: BTreeMap::new(),
            dataplane_only: false,
            proxy_health_port: 10256,
            cni_bin_dir: None,
            owner: None,
            data_dir,
            run_dir,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.node_name.is_empty() {
            return Err(Error::Config("the node needs a name".to_owned()));
        }
        if self.node_ips.is_empty() && !self.dataplane_only {
            return Err(Error::Config("the node needs an address (--node-ip)".to_owned()));
        }
        if self.node_ips.len() > 2 || self.node_ips.len() == 2 && self.node_ips[0].is_ipv4() == self.node_ips[1].is_ipv4() {
            return Err(Error::Config("a node has at most one address per family".to_owned()));
        }
        if !self.cgroup_parent.starts_with('/') {
            return Err(Error::Config(format!("cgroup parent {:?} must start with a slash", self.cgroup_parent)));
        }
        if self.kubeconfig.is_none() && !self.dataplane_only {
            return Err(Error::Config("the node needs a kubeconfig; a pod's service account is only for --dataplane-only".to_owned()));
        }
        Ok(())
    }

    pub(crate) async fn kube_config(&self) -> Result<kube::Config, Error> {
        let Some(path) = &self.kubeconfig else {
            return kube::Config::incluster_env().map_err(|error| Error::InCluster(error.to_string()));
        };
        let failed = |reason: String| Error::Kubeconfig { path: path.clone(), reason };
        let file = kube::config::Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
        kube::Config::from_custom_kubeconfig(file, &Default::default()).await.map_err(|error| failed(error.to_string()))
    }

    /// The dataplane's settings, for running it and for taking it down.
    ///
    /// # Errors
    /// If the root of this host's cgroup2 hierarchy cannot be found.
    pub fn dataplane(&self) -> Result<xebec_dataplane::Config, Error> {
        let cgroup = host_root::cgroup2(self.dataplane_only)?.join(self.cgroup_parent.trim_start_matches('/'));
        std::fs::create_dir_all(&cgroup).map_err(Error::io("create", &cgroup))?;
        let defaults = xebec_dataplane::Config::new(
            &self.node_name,
            cgroup,
            self.pin_dir.clone(),
            self.data_dir.join("dataplane"),
            self.run_dir.join("cni.sock"),
        );
        Ok(xebec_dataplane::Config {
            node_ips: self.node_ips.clone(),
            cni_conf_dir: Some(self.cni_conf_dir.clone()),
            uplinks: self.uplinks.clone(),
            routing: self.routing,
            cluster_cidrs: self.cluster_cidrs.clone(),
            // In a container it takes more to find the right cgroup.
            verify_hooks: self.dataplane_only,
            host_root: host_root::find().filter(|_| self.dataplane_only),
            xdp: self.xdp,
            pod_programs: self.pod_programs,
            forwarding: self.forwarding,
            host_routing: self.host_routing,
            maglev_size: self.maglev_size.unwrap_or(defaults.maglev_size),
            layout: defaults.layout.clone().sized(self.map_entries.clone())?,
            max_map_entries: self.max_map_entries,
            ..defaults
        })
    }

    /// The name server's settings; `None` if this node has none.
    pub(crate) fn dns(&self) -> Result<Option<xebec_dns::Config>, Error> {
        if !self.serve_dns || self.cluster_dns.is_empty() {
            return Ok(None);
        }
        let ranges = self.service_cidrs.iter().chain(&self.cluster_cidrs).copied().collect();
        let config =
            xebec_dns::Config::new(&self.cluster_domain, self.cluster_dns.clone(), ranges, self.resolv_conf.clone(), &self.dns_forward);
        config.map(Some).map_err(|error| Error::Config(error.to_string()))
    }

    /// The pod manager's settings.
    pub(crate) fn pods(&self) -> xebec_pods::Config {
        xebec_pods::Config {
            data_dir: self.data_dir.clone(),
            log_dir: self.data_dir.join("logs/pods"),
            cgroup_parent: self.cgroup_parent.clone(),
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            resolv_conf: self.resolv_conf.clone(),
            max_pods: self.max_pods,
            ..xebec_pods::Config::new(&self.node_name, self.node_ips.clone(), self.containerd.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new("a", Some("/k".into()), "/d".into(), "/r".into());
        config.node_ips = vec!["192.0.2.1".parse().unwrap()];
        config
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(config().check().is_ok());
        let broken: [fn(&mut Config); 5] = [
            |config| config.node_name.clear(),
            |config| config.node_ips.clear(),
            |config| config.node_ips = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).into(),
            |config| config.cgroup_parent = "xebec".to_owned(),
            |config| config.kubeconfig = None,
        ];
        for (index, change) in broken.iter().enumerate() {
            let mut config = config();
            change(&mut config);
            assert!(config.check().is_err(), "case {index}");
        }
    }
}
