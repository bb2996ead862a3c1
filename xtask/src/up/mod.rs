//! `cargo xtask up`: a cluster whose nodes are network namespaces, from nothing to checked Services.

mod etcd;
mod family;
mod layout;
mod network;
mod node;
mod offload;
mod parts;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub use family::IpFamily;
pub use layout::{Layout, MOST_NODES};
pub use network::{NODE_DEVICE, Network, port};
pub(crate) use network::{remove as remove_network, remove_namespace};
pub use node::Node;

use crate::{
    build::{self, Binaries, Profile},
    down, image, packages, sh,
};

/// What to bring up.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Name of the cluster; clusters of different names run beside each other.
    #[arg(long, default_value = "up")]
    pub name: String,
    /// How many nodes; as many as the cluster had the last time by default, one at first. What is too many goes.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub nodes: Option<u8>,
    /// Where the cluster's state is kept.
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    pub store: Store,
    /// How packets get from node to node.
    #[arg(long, value_enum, default_value_t = Routing::Native)]
    pub routing: Routing,
    /// How packets from outside get to pods of other nodes.
    #[arg(long, value_enum, default_value_t = LbMode::Snat)]
    pub lb_mode: LbMode,
    /// Which addresses nodes, pods and Services have.
    #[arg(long, value_enum, default_value_t = IpFamily::Ipv4)]
    pub ip_family: IpFamily,
    /// Which binaries to build and run.
    #[arg(long, value_enum, default_value = "release", env = "XEBEC_PROFILE")]
    pub profile: Profile,
    /// Leave out the demo and its checks.
    #[arg(long)]
    pub no_demo: bool,
    /// The binaries are built: use them as they are.
    #[arg(long)]
    pub no_build: bool,
}

/// Where the cluster's state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Store {
    /// In a file of the server's own.
    Embedded,
    /// In an etcd that is started for it.
    Etcd,
}

/// How packets get from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Routing {
    /// By routes on the segment they share.
    Native,
    /// Through a tunnel.
    Vxlan,
    /// Through a tunnel only to nodes on other segments.
    Auto,
}

impl Routing {
    /// As the agent's option has it.
    pub fn name(self) -> &'static str {
        match self {
            Routing::Native => "native",
            Routing::Vxlan => "vxlan",
            Routing::Auto => "auto",
        }
    }
}

/// How packets from outside get to pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LbMode {
    /// Behind the address of the node that was asked.
    Snat,
    /// As they are: pods see and answer their clients.
    Dsr,
}

impl LbMode {
    /// As the agent's option has it.
    pub fn name(self) -> &'static str {
        match self {
            LbMode::Snat => "snat",
            LbMode::Dsr => "dsr",
        }
    }
}

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub layout: Layout,
    pub binaries: Binaries,
    pub nodes: Vec<Node>,
    pub network: Network,
    /// Credentials of a cluster administrator.
    pub kubeconfig: PathBuf,
    /// From the start of the first process to every node Ready.
    pub ready_after: std::time::Duration,
}

impl Cluster {
    /// The first node's address, which the API server and NodePorts answer on.
    pub fn node_ip(&self) -> std::net::IpAddr {
        self.network.primary(1)
    }
}

/// Builds, brings the cluster up, applies and checks the demo, and says what comes next.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&[packages::NODE])?;
    if args.store == Store::Etcd {
        packages::ensure(&[packages::ETCD])?;
    }
    if !args.no_build {
        sh::step(format_args!("building ({:?})", args.profile));
        build::binaries(args.profile)?;
    }
    if !sh::is_root() {
        return sh::again_as_root(&["--no-build"]);
    }
    let cluster = bring_up(args)?;
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let (what, is) = if names.len() == 1 { ("node", "is") } else { ("nodes", "are") };
    println!("{what} {} {is} Ready, {:.1} s after the first process started", names.join(", "), cluster.ready_after.as_secs_f64());
    if !args.no_demo {
        sh::step("applying deploy/demo.yaml and checking what it promises");
        demo(&cluster)?;
    }
    println!("{}", next_steps(&cluster));
    Ok(())
}

/// Starts what does not run yet and waits until every node is Ready. Needs root and built binaries.
pub fn bring_up(args: &Args) -> Result<Cluster> {
    let layout = Layout::new(&args.name)?;
    let binaries = args.profile.binaries();
    for file in [&binaries.xebec, &binaries.cni] {
        if !file.is_file() {
            bail!("{} is not built", file.display());
        }
    }
    let images = image::make()?;
    let begun = Instant::now();
    sh::step(format_args!("starting cluster {}", layout.name));
    let count = args.nodes.or_else(|| layout.recorded_nodes()).unwrap_or(1);
    let nodes: Vec<Node> = (1..=count).map(|number| layout.node(number)).collect();
    layout.create(count)?;
    let network = network::create(&layout, &nodes, args.ip_family)?;
    let (routing, lb_mode) = (args.routing, args.lb_mode);
    let starter = parts::Starter { layout: &layout, binaries: &binaries, network: &network, images: &images, routing, lb_mode };
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros().to_string();
    let started = starter.start(args.store, &nodes)?;
    let kubeconfig = layout.kubeconfig();
    copy_private(&layout.server_dir().join("admin.kubeconfig"), &kubeconfig)?;
    let cluster = Cluster { layout, binaries, nodes, network, kubeconfig, ready_after: begun.elapsed() };
    let surplus: Vec<Node> = cluster.layout.nodes_with_traces().into_iter().filter(|node| node.number > count).collect();
    remove_nodes(&cluster, &surplus)?;
    cluster.layout.record_nodes(count)?;
    let mut status = sh::cmd(&cluster.binaries.xebec, ["status", "--wait", "120", "--nodes", &count.to_string(), "--kubeconfig"]);
    status.arg(&cluster.kubeconfig);
    if started {
        status.args(["--renewed-since", &since]);
    }
    if let Err(error) = sh::quiet(&mut status) {
        bail!("{error:#}\nthe logs are in {}", logs(&cluster.nodes));
    }
    Ok(Cluster { ready_after: begun.elapsed(), ..cluster })
}

/// Ends nodes for good: their processes, their state, their objects.
fn remove_nodes(cluster: &Cluster, surplus: &[Node]) -> Result<()> {
    for node in surplus {
        sh::step(format_args!("removing node {}", node.name));
        let failures = down::take_node_down(node);
        if !failures.is_empty() {
            bail!("not everything of {} could be removed:\n  {}", node.name, failures.join("\n  "));
        }
        let mut forget = sh::cmd(&cluster.binaries.xebec, ["remove-node", &node.name, "--wait", "120", "--kubeconfig"]);
        sh::quiet(forget.arg(&cluster.kubeconfig))?;
    }
    Ok(())
}

/// Where the nodes' logs are.
fn logs(nodes: &[Node]) -> String {
    let dirs: Vec<String> = nodes.iter().map(|node| node.logs().display().to_string()).collect();
    dirs.join(" ")
}

/// Applies the demo and prints what its checks saw.
pub fn demo(cluster: &Cluster) -> Result<()> {
    sh::run(&mut demo_command(cluster))
}

pub(crate) fn demo_command(cluster: &Cluster) -> std::process::Command {
    let mut demo = sh::cmd(&cluster.binaries.xebec, ["demo", "--kubeconfig"]);
    demo.arg(&cluster.kubeconfig).arg("--manifest").arg(crate::workspace::root().join("deploy/demo.yaml"));
    demo
}

/// For the user who called sudo too, whose kubectl reads it.
fn copy_private(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let context = || format!("cannot write {}", to.display());
    let mut file = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new("."))).with_context(context)?;
    std::io::Write::write_all(&mut file, &content).with_context(context)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).with_context(context)?;
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    if let (Some(user), Some(group)) = (number("SUDO_UID"), number("SUDO_GID")) {
        std::os::unix::fs::chown(file.path(), Some(user), Some(group)).with_context(context)?;
    }
    file.persist(to).with_context(context)?;
    Ok(())
}

fn next_steps(cluster: &Cluster) -> String {
    let name = &cluster.layout.name;
    let option = if name == "up" { String::new() } else { format!(" --name {name}") };
    let (xebec, socket) = (cluster.binaries.xebec.display(), cluster.layout.first().containerd(&cluster.binaries).socket());
    let (node_port, kubeconfig, logs) =
        (std::net::SocketAddr::new(cluster.node_ip(), 30080), cluster.kubeconfig.display(), logs(&cluster.nodes));
    format!(
        "
kubeconfig  {kubeconfig}
logs        {logs}

try next
  export KUBECONFIG={kubeconfig}
  kubectl get nodes,pods -A -o wide
  kubectl run hello --image={image} --command -- sh -c 'while sleep 1; do date; done'
  kubectl logs -f hello
  kubectl exec -it hello -- sh
  wget -qO- http://{node_port}/
  {xebec} image import --containerd {socket} FILE
  cargo xtask down{option}",
        image = xebec_images::BUSYBOX,
        socket = socket.display(),
    )
}
