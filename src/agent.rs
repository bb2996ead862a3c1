//! `xebec agent`: the node's part.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::signals;

/// Settings of the node.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the Node object; the host's name by default.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// The node's addresses, at most one per family; by default the one of the default route, with --dataplane-only those of the
    /// Node object.
    #[arg(long, value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// How to reach the API server, as system:node:NAME (`xebec kubeconfig --node` makes it). DATA_DIR/pki/kubeconfig by
    /// default, with --dataplane-only the service account of the pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where the API server is (HOST[:PORT] or URL, several with commas), for when the address of its Service is not served yet.
    /// Addresses that are learnt are kept. Only with --dataplane-only.
    #[arg(long, env = "XEBEC_API_SERVERS", value_delimiter = ',')]
    api_server: Vec<String>,
    /// Volumes, logs and address leases.
    #[arg(long, default_value = "/var/lib/xebec/agent")]
    data_dir: PathBuf,
    /// Sockets.
    #[arg(long, default_value = "/run/xebec")]
    run_dir: PathBuf,
    /// The container runtime's socket; RUN_DIR/containerd/containerd.sock by default.
    #[arg(long)]
    containerd: Option<PathBuf>,
    /// cgroup that holds pods (below kubepods) and this node's own processes.
    #[arg(long, default_value = "/")]
    cgroup_parent: String,
    /// Directory in a BPF file system for programs, maps and links.
    #[arg(long, default_value = "/sys/fs/bpf/xebec")]
    pin_dir: PathBuf,
    /// Where containerd reads CNI configuration from; RUN_DIR/cni by default, with --dataplane-only /etc/cni/net.d.
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
    /// Where the kubelet API listens, 0.0.0.0:10250 by default; with --dataplane-only probes and metrics,
    /// 0.0.0.0:10249.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Authorities of clients of the kubelet API; those of the kubeconfig by default.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Ranges of Service addresses, as the server has them.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12")]
    service_cidr: Vec<IpNet>,
    /// Name servers of pods with dnsPolicy ClusterFirst; the tenth address of each Service range by default. The node answers there
    /// itself unless a Service has the address (with --dataplane-only: if they are given).
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// Do not answer on --cluster-dns: somebody else does, without a Service.
    #[arg(long)]
    no_dns: bool,
    /// Names the servers for names outside the cluster.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Names below DOMAIN are asked for at these servers: DOMAIN=ADDRESS[:PORT][+ADDRESS...]. May be given several times.
    #[arg(long)]
    dns_forward: Vec<String>,
    /// Domain of cluster names.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Ranges that pods and nodes reach without masquerade.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    cluster_cidr: Vec<IpNet>,
    /// Devices towards other nodes; found by the node's address by default.
    #[arg(long, value_delimiter = ',')]
    uplink: Vec<String>,
    /// How packets get to pods of other nodes: by routes (the nodes share a segment), through a tunnel, or through a tunnel
    /// only to nodes on other segments. The same on every node.
    #[arg(long, value_enum, default_value_t = Routing::Native)]
    routing: Routing,
    /// Network identifier of the tunnel.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vxlan_vni: u32,
    /// UDP port of the tunnel.
    #[arg(long, default_value_t = 4789)]
    vxlan_port: u16,
    /// Where XDP takes what goes to other nodes' pods: nowhere, on every uplink whose driver has it but veths, or on those too
    /// (their other ends must run an XDP program too).
    #[arg(long, value_enum, default_value_t = Xdp::Auto)]
    xdp: Xdp,
    /// Attach programs to pods' devices by links of their own and not by tc blocks that all share: for one start, before going
    /// back to an agent that knows only links.
    #[arg(long)]
    pod_links: bool,
    /// How packets from outside get to pods of other nodes: behind this node's address (answers come back through it), or as
    /// they are inside packets between nodes (direct server return: pods see and answer their clients). A Service's annotation
    /// xebec.dev/forwarding-mode has the last word. The same on every node.
    #[arg(long, value_enum, env = "XEBEC_LB_MODE", default_value_t = LbMode::Snat)]
    lb_mode: LbMode,
    /// Who passes on what pods send to other machines: BPF programs by the kernel's routing tables, or the node's IP stack, with
    /// its forwarding firewall rules and IPsec, which programs pass by.
    #[arg(long, value_enum, default_value_t = HostRouting::Bpf)]
    host_routing: HostRouting,
    /// Places of a ring of consistent hashing (a prime below a power of two, 251 to 131071), the same on every node.
    #[arg(long)]
    maglev_table_size: Option<u32>,
    /// Entries that BPF maps may grow to have: they do by themselves, at need, and break no connection. What does not fit then is
    /// refused, with an Event.
    #[arg(long, default_value_t = xebec_dataplane::MAX_MAP_ENTRIES, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_map_entries: u32,
    /// Entries of BPF maps that shall not grow but have this size, NAME=ENTRIES. A restart with another number copies what the map
    /// holds and breaks no connection.
    #[arg(long, value_delimiter = ',')]
    map_entries: Vec<String>,
    /// Most pods this node takes.
    #[arg(long, default_value_t = 110)]
    max_pods: usize,
    /// Labels to register the node with, NAME=VALUE.
    #[arg(long, value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Only Services, policies and pod devices, beside an upstream kubelet.
    #[arg(long)]
    dataplane_only: bool,
    /// Port of /healthz and /livez, which load balancers ask about this node.
    #[arg(long, default_value_t = 10256)]
    proxy_health_port: u16,
    /// Where `xebec cni install` put xebec-cni, to be removed together with the dataplane.
    #[arg(long, requires = "dataplane_only")]
    cni_bin_dir: Option<PathBuf>,
    /// NAMESPACE/NAME of the DaemonSet that runs this agent: once that is deleted, the agent ends by removing all it made on
    /// this node.
    #[arg(long, requires = "dataplane_only")]
    daemonset: Option<xebec_agent::Owner>,
}

/// Settings of the process that answers load balancers' health checks. The agent starts it.
#[derive(Debug, clap::Args)]
pub struct ResponderArgs {
    /// Where agents report.
    #[arg(long)]
    socket: PathBuf,
}

/// Answers until an agent ends it.
pub async fn respond(args: ResponderArgs) -> Result<()> {
    xebec_agent::proxy_health::respond(&args.socket).await.with_context(|| format!("cannot listen on {}", args.socket.display()))
}

/// How packets get to pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Routing {
    Native,
    Vxlan,
    Auto,
}

/// Where runtimes that are not ours look for CNI configuration.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Xdp {
    Off,
    Auto,
    All,
}

/// How packets from outside get to pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LbMode {
    Snat,
    Dsr,
}

impl LbMode {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            LbMode::Snat => "snat",
            LbMode::Dsr => "dsr",
        }
    }
}

impl From<LbMode> for xebec_dataplane::Forwarding {
    fn from(mode: LbMode) -> xebec_dataplane::Forwarding {
        match mode {
            LbMode::Snat => xebec_dataplane::Forwarding::Snat,
            LbMode::Dsr => xebec_dataplane::Forwarding::Dsr,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum HostRouting {
    Bpf,
    Kernel,
}

impl From<HostRouting> for xebec_dataplane::HostRouting {
    fn from(host_routing: HostRouting) -> xebec_dataplane::HostRouting {
        match host_routing {
            HostRouting::Bpf => xebec_dataplane::HostRouting::Bpf,
            HostRouting::Kernel => xebec_dataplane::HostRouting::Kernel,
        }
    }
}

impl From<Xdp> for xebec_dataplane::Xdp {
    fn from(xdp: Xdp) -> xebec_dataplane::Xdp {
        match xdp {
            Xdp::Off => xebec_dataplane::Xdp::Off,
            Xdp::Auto => xebec_dataplane::Xdp::Auto,
            Xdp::All => xebec_dataplane::Xdp::All,
        }
    }
}

/// Runs until SIGTERM.
pub async fn run(args: Args) -> Result<()> {
    let cancel = signals::cancelled_by_signals()?;
    Ok(xebec_agent::run(config(args)?, cancel).await?)
}

fn config(args: Args) -> Result<xebec_agent::Config> {
    let node_name = match args.node_name {
        Some(name) => name,
        None => host_name()?,
    };
    let only = args.dataplane_only;
    let kubeconfig = match args.kubeconfig {
        None if !only => Some(args.data_dir.join("pki/kubeconfig")),
        given => given,
    };
    let vxlan = xebec_dataplane::Vxlan { vni: args.vxlan_vni, port: args.vxlan_port };
    let routing = match args.routing {
        Routing::Native => xebec_dataplane::Routing::Native,
        Routing::Vxlan => xebec_dataplane::Routing::Vxlan(vxlan),
        Routing::Auto => xebec_dataplane::Routing::Auto(vxlan),
    };
    let defaults = xebec_agent::Config::new(&node_name, kubeconfig, args.data_dir, args.run_dir.clone());
    let port = if only { 10249 } else { 10250 };
    Ok(xebec_agent::Config {
        node_ips: if args.node_ip.is_empty() && !only { vec![crate::address::of_default_route()?] } else { args.node_ip },
        api_servers: args.api_server,
        containerd: args.containerd.unwrap_or_else(|| args.run_dir.join("containerd/containerd.sock")),
        cgroup_parent: args.cgroup_parent,
        pin_dir: args.pin_dir,
        cni_conf_dir: args.cni_conf_dir.unwrap_or_else(|| if only { CNI_CONF_DIR.into() } else { args.run_dir.join("cni") }),
        bind: args.bind.unwrap_or_else(|| (std::net::Ipv4Addr::UNSPECIFIED, port).into()),
        client_ca: args.client_ca_file,
        serve_dns: !args.no_dns && (!args.dataplane_only || !args.cluster_dns.is_empty()),
        cluster_dns: if args.cluster_dns.is_empty() {
            args.service_cidr.iter().filter_map(xebec_dns::cluster_dns).collect()
        } else {
            args.cluster_dns
        },
        service_cidrs: args.service_cidr,
        resolv_conf: args.resolv_conf,
        dns_forward: args.dns_forward,
        cluster_domain: args.cluster_domain,
        cluster_cidrs: args.cluster_cidr,
        uplinks: args.uplink,
        routing,
        xdp: args.xdp.into(),
        pod_programs: match args.pod_links {
            true => xebec_dataplane::PodPrograms::Links,
            false => xebec_dataplane::PodPrograms::Blocks,
        },
        forwarding: args.lb_mode.into(),
        host_routing: args.host_routing.into(),
        maglev_size: args.maglev_table_size,
        map_entries: map_entries(&args.map_entries)?,
        max_map_entries: args.max_map_entries,
        max_pods: args.max_pods,
        labels: labels(&args.node_labels)?,
        dataplane_only: only,
        proxy_health_port: args.proxy_health_port,
        cni_bin_dir: args.cni_bin_dir,
        owner: args.daemonset,
        ..defaults
    })
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').with_context(|| format!("label {text:?} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

fn map_entries(given: &[String]) -> Result<BTreeMap<String, u32>> {
    let pair = |text: &String| {
        let (name, entries) = text.split_once('=').with_context(|| format!("map size {text:?} is not NAME=ENTRIES"))?;
        Ok((name.to_owned(), entries.parse().with_context(|| format!("map size {text:?}: {entries:?} is not a number"))?))
    };
    given.iter().map(pair).collect()
}

/// The dataplane of a node that is to be taken down.
pub fn dataplane_config(data_dir: &Path, run_dir: &Path, pin_dir: &Path, cgroup_parent: &str) -> Result<xebec_dataplane::Config> {
    let defaults = xebec_agent::Config::new("down", None, data_dir.to_owned(), run_dir.to_owned());
    let config = xebec_agent::Config {
        pin_dir: pin_dir.to_owned(),
        cgroup_parent: cgroup_parent.to_owned(),
        cni_conf_dir: run_dir.join("cni"),
        ..defaults
    };
    Ok(config.dataplane()?)
}

/// In lower case, as node names must be.
pub fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host's name; give --node-name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> xebec_agent::Config {
        config(Line::try_parse_from([&["agent", "--node-name", "a"], words].concat()).unwrap().args).unwrap()
    }

    #[test]
    fn beside_a_kubelet_the_defaults_are_those_of_the_cluster() {
        let only = parse(&["--dataplane-only", "--api-server", "a:6443,https://b"]);
        assert_eq!((only.kubeconfig, only.node_ips.len(), only.bind.port()), (None, 0, 10249));
        assert_eq!((only.cni_conf_dir, only.api_servers.len()), (CNI_CONF_DIR.into(), 2));
        let own = parse(&["--node-ip", "192.0.2.1"]);
        assert_eq!((own.kubeconfig, own.bind.port()), (Some("/var/lib/xebec/agent/pki/kubeconfig".into()), 10250));
        assert!(Line::try_parse_from(["agent", "--daemonset", "a/b"]).is_err(), "only beside a kubelet");
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(labels(&["a=b".to_owned(), "c=".to_owned()]).unwrap().len(), 2);
        assert!(labels(&["a".to_owned()]).is_err());
    }

    #[test]
    fn map_sizes_are_names_and_numbers() {
        assert_eq!(map_entries(&["BACKENDS=1048576".to_owned()]).unwrap()["BACKENDS"], 1_048_576);
        assert!(map_entries(&["BACKENDS".to_owned()]).is_err() && map_entries(&["BACKENDS=many".to_owned()]).is_err());
    }
}
