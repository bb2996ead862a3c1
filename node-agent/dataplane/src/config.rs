//! What the agent tells the dataplane about its node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::Error;
use crate::bpf::layout::Layout;
use crate::compile::input::Forwarding;
use crate::compile::maglev;
use crate::device::xdp::Xdp;

/// Four times as many flows, and eight times as many endpoints, as maps are made for: some 250 MiB of flows, if there are so many.
pub const MAX_MAP_ENTRIES: u32 = 1 << 21;

/// Everything that differs between nodes. Plain data: the agent fills it in once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object; pods with this `spec.nodeName` are local.
    pub node_name: String,
    /// Addresses of the node as given on the command line; empty: those of the Node object. Addresses found on the
    /// uplinks are added to them.
    pub node_ips: Vec<IpAddr>,
    /// Directory in the cgroup2 hierarchy the socket hooks are attached to. It must hold (directly or below)
    /// every process that is to reach Services: the pods, and the node's own processes.
    pub cgroup: PathBuf,
    /// Refuse to start if the socket hooks do not see this process's own sockets.
    pub verify_hooks: bool,
    /// Directory for pinned programs, maps and links. A bpffs is mounted on it if it is on none.
    pub pin_dir: PathBuf,
    /// Where the host's file system is, if this process lives in another mount namespace: network namespaces that the
    /// runtime names are looked for below it.
    pub host_root: Option<PathBuf>,
    /// Unix socket (mode 0600) on which `xebec-cni` reaches the agent.
    pub cni_socket: PathBuf,
    /// Directory that containerd reads CNI configuration from; the conflist appears there once the node can
    /// take pods. `None`: no conflist is written.
    pub cni_conf_dir: Option<PathBuf>,
    /// Durable state: address leases and the original values of changed sysctls.
    pub state_dir: PathBuf,
    /// Devices towards other nodes. Empty: those that carry a node address, else that of the default route.
    pub uplinks: Vec<String>,
    /// Ranges that pods and nodes reach without masquerade, usually the cluster's pod range. The node's own
    /// podCIDRs always count.
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges for pods of this node. Empty: `spec.podCIDRs` of the Node object.
    pub pod_cidrs: Vec<IpNet>,
    /// Layout of the maps: that of the embedded object, unless a test plays another version.
    pub layout: Layout,
    /// Sizes that maps are made with which have not grown yet; for all others the object says.
    pub first_entries: BTreeMap<String, u32>,
    /// Entries that a map which grows by itself has at most.
    pub max_map_entries: u32,
    /// MTU of pod devices; `None` takes the smallest of the uplinks, less what encapsulation adds.
    pub mtu: Option<u32>,
    /// How packets get to pods of other nodes.
    pub routing: Routing,
    /// Where drivers run the XDP program.
    pub xdp: Xdp,
    /// How pods' devices get their programs.
    pub pod_programs: PodPrograms,
    /// How packets from outside get to pods of other nodes, unless a Service says otherwise.
    pub forwarding: Forwarding,
    /// Whose work it is to pass on what pods send to other machines.
    pub host_routing: HostRouting,
    /// Places of a ring of consistent hashing: one of [`maglev::SIZES`], the same on every node.
    pub maglev_size: u32,
}

/// How pods' devices get their programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPrograms {
    /// By tc blocks that all of them share; devices that have links keep them.
    #[default]
    Blocks,
    /// By links of each device, which is all that agents before there were blocks know.
    Links,
}

/// Who passes on what pods send to other machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostRouting {
    /// The programs, by the kernel's routing tables; the stack has what is unusual.
    #[default]
    Bpf,
    /// The node's IP stack, with its forwarding rules for filtering and IPsec.
    Kernel,
}

/// How packets get to pods of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// By routes: the nodes share a segment, or the network between them knows their ranges.
    #[default]
    Native,
    /// Through a tunnel.
    Vxlan(Vxlan),
    /// By routes where a node is on a segment of this one, else through a tunnel.
    Auto(Vxlan),
}

/// What all nodes' tunnels have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Config {
    /// A path of the host, as this process reaches it.
    pub fn on_host(&self, path: &str) -> PathBuf {
        match &self.host_root {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => PathBuf::from(path),
        }
    }

    /// A configuration with nothing but what every node needs; the other fields are empty.
    pub fn new(node_name: impl Into<String>, cgroup: PathBuf, pin_dir: PathBuf, state_dir: PathBuf, cni_socket: PathBuf) -> Self {
        Config {
            node_name: node_name.into(),
            node_ips: Vec::new(),
            cgroup,
            verify_hooks: false,
            host_root: None,
            pin_dir,
            cni_socket,
            cni_conf_dir: None,
            state_dir,
            uplinks: Vec::new(),
            cluster_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            layout: Layout::default(),
            first_entries: BTreeMap::new(),
            max_map_entries: MAX_MAP_ENTRIES,
            mtu: None,
            routing: Routing::Native,
            xdp: Xdp::default(),
            pod_programs: PodPrograms::default(),
            forwarding: Forwarding::default(),
            host_routing: HostRouting::default(),
            maglev_size: maglev::DEFAULT_SIZE,
        }
    }

    /// Whether the values are possible.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if maglev::SIZES.contains(&self.maglev_size) {
            return Ok(());
        }
        Err(Error::Config(format!("a ring of {} places is not possible; choose one of {:?}", self.maglev_size, maglev::SIZES)))
    }
}
