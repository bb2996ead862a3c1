use std::net::IpAddr;
use std::path::PathBuf;

/// What a [`crate::PodManager`] needs to know about its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// `metadata.name` of the Node, the value pods carry in `spec.nodeName`.
    pub node_name: String,
    /// The node's addresses, at most one per family, the primary family first (`status.hostIPs`).
    pub node_ips: Vec<IpAddr>,
    /// containerd's gRPC socket: CRI v1 and containerd's own services are both served there.
    pub containerd_socket: PathBuf,
    /// Volumes, termination messages and hosts files live below it (kubelet's `/var/lib/kubelet`).
    /// Keep it on one path across restarts: containers hold bind mounts into it.
    pub data_dir: PathBuf,
    /// Container logs, `<namespace>_<pod>_<uid>/<container>/<restart>.log` (kubelet's `/var/log/pods`).
    pub log_dir: PathBuf,
    /// cgroup below which `kubepods` is made on every hierarchy, `/` or for example `/xebec-up`.
    pub cgroup_parent: String,
    /// Name servers for pods with `dnsPolicy: ClusterFirst`. Empty means the node's own.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local` unless the cluster uses another.
    pub cluster_domain: String,
    /// The node's resolver configuration, source of `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// More pods than this are rejected with `OutOfpods`.
    pub max_pods: usize,
    /// sysctls outside the safe set that pods may ask for (`kernel.msg*`, `net.core.somaxconn`).
    pub allowed_unsafe_sysctls: Vec<String>,
}

impl Config {
    /// A configuration with kubelet's defaults for everything that has one.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>, containerd_socket: PathBuf) -> Self {
        Config {
            node_name: node_name.into(),
            node_ips,
            containerd_socket,
            data_dir: PathBuf::from("/var/lib/kubelet"),
            log_dir: PathBuf::from("/var/log/pods"),
            cgroup_parent: "/".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_pods: 110,
            allowed_unsafe_sysctls: Vec::new(),
        }
    }
}
