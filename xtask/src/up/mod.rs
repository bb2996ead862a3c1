//! `cargo xtask up`: a cluster of one node in a network namespace of its own, from nothing to checked Services.

mod etcd;
mod layout;
mod network;
mod parts;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub use layout::Layout;
pub(crate) use network::remove as remove_network;

use crate::{
    build::{self, Binaries, Profile},
    image, packages, sh,
};

/// What to bring up.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Name of the cluster; clusters of different names run beside each other.
    #[arg(long, default_value = "up")]
    pub name: String,
    /// Where the cluster's state is kept.
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    pub store: Store,
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

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub layout: Layout,
    pub binaries: Binaries,
    /// The node's address, which its API server and NodePorts answer on.
    pub node_ip: std::net::Ipv4Addr,
    /// Credentials of a cluster administrator.
    pub kubeconfig: PathBuf,
    /// From the start of the first process to Node Ready.
    pub ready_after: std::time::Duration,
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
    println!("node {} is Ready, {:.1} s after the first process started", cluster.layout.node_name(), cluster.ready_after.as_secs_f64());
    if !args.no_demo {
        sh::step("applying deploy/demo.yaml and checking what it promises");
        demo(&cluster)?;
    }
    println!("{}", next_steps(&cluster));
    Ok(())
}

/// Starts what does not run yet and waits until the node is Ready. Needs root and built binaries.
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
    layout.create()?;
    let network = network::create(&layout)?;
    parts::start(&layout, &binaries, &network, args.store, &images)?;
    let source = layout.server_dir().join("admin.kubeconfig");
    let kubeconfig = layout.kubeconfig();
    copy_private(&source, &kubeconfig)?;
    let mut status = sh::cmd(&binaries.xebec, ["status", "--wait", "120", "--kubeconfig"]);
    if let Err(error) = sh::quiet(status.arg(&kubeconfig)) {
        bail!("{error:#}\nthe logs are in {}", layout.logs().display());
    }
    Ok(Cluster { node_ip: network.node, binaries, kubeconfig, ready_after: begun.elapsed(), layout })
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
    let (xebec, socket) = (cluster.binaries.xebec.display(), cluster.layout.containerd(&cluster.binaries).socket());
    let (node_ip, kubeconfig, logs) = (cluster.node_ip, cluster.kubeconfig.display(), cluster.layout.logs());
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
  wget -qO- http://{node_ip}:30080/
  {xebec} image import --containerd {socket} FILE
  cargo xtask down{option}",
        logs = logs.display(),
        image = xebec_images::BUSYBOX,
        socket = socket.display(),
    )
}
