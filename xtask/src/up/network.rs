//! The nodes' network namespaces, and the bridge in a namespace of its own that joins them and the machine.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use super::{IpFamily, Layout, Node, offload};
use crate::sh;

/// A cluster's range of addresses, one of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Which of all ranges.
    index: u32,
    pub family: IpFamily,
}

/// Ranges of 64 addresses are cut from this /16.
const RANGE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);
const PREFIX: u32 = 26;
const NETWORKS: u32 = 1 << (PREFIX - 16);

/// The node's end of its veth, in the node's namespace.
pub const NODE_DEVICE: &str = "eth0";
/// The bridge, and the host's port on it.
const BRIDGE: &str = "wire";
const HOST_PORT: &str = "host";

impl Network {
    fn new(index: u32, family: IpFamily) -> Network {
        Network { index: index % NETWORKS, family }
    }

    /// The first address of the IPv4 range, of the network itself.
    fn base(&self) -> u32 {
        u32::from(RANGE) + (self.index << (32 - PREFIX))
    }

    fn v4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::from(self.base() + u32::from(host))
    }

    fn v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd58, 0x6562, 0x6563, self.index as u16, 0, 0, 0, host.into())
    }

    fn addresses(&self, host: u8) -> Vec<IpAddr> {
        let v4 = self.family.has_v4().then(|| self.v4(host).into());
        let v6 = self.family.has_v6().then(|| self.v6(host).into());
        v4.into_iter().chain(v6).collect()
    }

    /// The machine's own addresses, which are the nodes' gateways.
    pub fn host(&self) -> Vec<IpAddr> {
        self.addresses(1)
    }

    /// A node's addresses, the primary one first.
    pub fn node(&self, number: u8) -> Vec<IpAddr> {
        self.addresses(number.saturating_add(1))
    }

    /// The one that other nodes and users are told.
    pub fn primary(&self, number: u8) -> IpAddr {
        let host = number.saturating_add(1);
        if self.family.has_v4() { self.v4(host).into() } else { self.v6(host).into() }
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (self.base() ^ u32::from(address)) >> (32 - PREFIX) == 0
    }
}

/// With its prefix, and for IPv6 without waiting for others to object.
fn on_device(address: &IpAddr, device: &str) -> String {
    match address {
        IpAddr::V4(ip) => format!("addr replace {ip}/{PREFIX} dev {device}\n"),
        IpAddr::V6(ip) => format!("addr replace {ip}/64 dev {device} nodad\n"),
    }
}

/// The port of a node's veth on the bridge.
pub fn port(number: u8) -> String {
    format!("node{number}")
}

/// Makes what is missing of the namespaces, the bridge and the veths. The machine's own network gets one device with one route.
pub fn create(layout: &Layout, nodes: &[Node], family: IpFamily) -> Result<Network> {
    let network = Network::new(recorded(layout)?, family);
    for file in nodes.iter().map(Node::netns).chain([layout.wire()]) {
        if !is_namespace(&file) {
            make_namespace(&file)?;
        }
    }
    let wire = layout.wire_name();
    let there = devices(&wire)?;
    if !there.contains(BRIDGE) {
        // No delay and no learning of groups: what is sent at once must arrive.
        batch(
            &["-n", &wire],
            &format!("link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"),
        )?;
    }
    let mut ports = Vec::new();
    if !there.contains(HOST_PORT) {
        connect_host(layout, &network)?;
        ports.push(HOST_PORT.to_owned());
    }
    let mut commands = String::new();
    for node in nodes.iter().filter(|node| !there.contains(&port(node.number))) {
        let port = port(node.number);
        commands += &format!("link add {port} type veth peer name {NODE_DEVICE} netns {}\n", node.name);
        ports.push(port);
    }
    for port in &ports {
        commands += &format!("link set {port} master {BRIDGE} up\n");
    }
    if !ports.is_empty() {
        batch(&["-n", &wire], &commands)?;
        offload::receive(&layout.wire(), &ports)?;
    }
    // One process for each namespace: starting programs is what takes time here.
    for node in nodes {
        let addresses: String = network.node(node.number).iter().map(|address| on_device(address, NODE_DEVICE)).collect();
        let routes: String = network.host().iter().map(|host| format!("route replace default via {host}\n")).collect();
        batch(&["-n", &node.name], &format!("link set lo up\n{addresses}link set {NODE_DEVICE} up\n{routes}"))?;
    }
    Ok(network)
}

/// The veth from the machine to the bridge.
fn connect_host(layout: &Layout, network: &Network) -> Result<()> {
    let (device, wire) = (layout.device(), layout.wire_name());
    let addresses: String = network.host().iter().map(|address| on_device(address, &device)).collect();
    // One without its other end is of a wire that is gone.
    remove_device(&device)?;
    batch(&[], &format!("link add {device} type veth peer name {HOST_PORT} netns {wire}\n{addresses}link set {device} up\n"))
}

/// Removes everything; no error if it is not there.
pub(crate) fn remove(layout: &Layout, nodes: &[Node]) -> Result<()> {
    remove_device(&layout.device())?;
    for file in nodes.iter().map(Node::netns).chain([layout.wire()]) {
        remove_namespace(&file)?;
    }
    // Left behind by others' namespaces as well; goes only when empty.
    let _ = fs::remove_dir("/run/netns");
    Ok(())
}

/// Removes a namespace with its devices, and with them their other ends.
pub(crate) fn remove_namespace(file: &Path) -> Result<()> {
    if file.exists() {
        while umount2(file, MntFlags::MNT_DETACH).is_ok() {}
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}

fn remove_device(device: &str) -> Result<()> {
    let there = || Path::new("/sys/class/net").join(device).exists();
    if there() {
        // Its other end takes it along, perhaps just now.
        let removed = sh::quiet(&mut sh::cmd("ip", ["link", "delete", device]));
        if there() {
            removed?;
        }
    }
    Ok(())
}

/// The cluster's range, the same at every `up`, because certificates and objects hold its addresses.
fn recorded(layout: &Layout) -> Result<u32> {
    let file = layout.dir.join("subnet");
    if let Some(index) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(index);
    }
    let taken = host_addresses()?;
    let index = choose((layout.hash() % u64::from(NETWORKS)) as u32, &taken).context("no free range in 172.30.0.0/16")?;
    fs::write(&file, format!("{index}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(index)
}

/// The first range from `preferred` on that no address of the machine lies in.
fn choose(preferred: u32, taken: &[Ipv4Addr]) -> Option<u32> {
    let free = |index: u32| !taken.iter().any(|address| Network::new(index, IpFamily::Ipv4).contains(*address));
    (0..NETWORKS).map(|step| (preferred + step) % NETWORKS).find(|index| free(*index))
}

fn host_addresses() -> Result<Vec<Ipv4Addr>> {
    let text = sh::quiet(&mut sh::cmd("ip", ["-json", "-4", "address", "show"]))?;
    let links: Value = serde_json::from_str(&text).context("cannot read what `ip` prints")?;
    let infos = links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    let addresses = infos.filter_map(|info| info["local"].as_str()?.parse::<IpAddr>().ok());
    Ok(addresses.filter_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }).collect())
}

/// Names of the devices in a namespace.
fn devices(namespace: &str) -> Result<BTreeSet<String>> {
    let text = sh::quiet(&mut sh::cmd("ip", ["-n", namespace, "-json", "link", "show"]))?;
    let links: Value = serde_json::from_str(&text).context("cannot read what `ip` prints")?;
    Ok(links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect())
}

fn is_namespace(file: &Path) -> bool {
    const NSFS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6e73_6673);
    nix::sys::statfs::statfs(file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// What `ip netns add` does, without its mount of /run/netns onto itself, which would stay for good.
fn make_namespace(file: &Path) -> Result<()> {
    let context = || format!("cannot make the network namespace {}", file.display());
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).with_context(context)?;
    fs::File::create(file).with_context(context)?;
    let target = file.to_owned();
    // A thread of its own, because a thread that has left its namespace does not come back.
    let made = std::thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    match made.join() {
        Ok(result) => result.with_context(context),
        Err(_) => bail!("{}: the thread that makes it died", context()),
    }
}

/// Runs commands of `ip`, one a line.
fn batch(options: &[&str], commands: &str) -> Result<()> {
    use std::io::Write;
    let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
    file.write_all(commands.as_bytes())?;
    std::io::Seek::rewind(&mut file)?;
    let output = Command::new("ip").args(options).args(["-batch", "-"]).stdin(file).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("`ip {} -batch` failed: {}\n{commands}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::layout::MOST_NODES;

    fn network(index: u32) -> Network {
        Network::new(index, IpFamily::Ipv4)
    }

    #[test]
    fn networks_do_not_overlap() {
        let first = network(0);
        assert_eq!((first.v4(1), first.primary(1)), (Ipv4Addr::new(172, 30, 0, 1), Ipv4Addr::new(172, 30, 0, 2).into()));
        let last = first.v4(MOST_NODES + 1);
        assert!(first.contains(last) && !network(1).contains(last));
        // The last address of a range is its broadcast address.
        assert_ne!(last, Ipv4Addr::new(172, 30, 0, 63));
        assert_eq!(network(1).v4(1), Ipv4Addr::new(172, 30, 0, 65));
        assert_eq!(network(NETWORKS - 1).primary(MOST_NODES), Ipv4Addr::new(172, 30, 255, 253));
    }

    #[test]
    fn addresses_follow_the_family() {
        let of = |family| Network::new(3, family).node(1).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(IpFamily::Ipv4), ["172.30.0.194"]);
        assert_eq!(of(IpFamily::Ipv6), ["fd58:6562:6563:3::2"]);
        assert_eq!(of(IpFamily::Dual), ["172.30.0.194", "fd58:6562:6563:3::2"]);
    }

    #[test]
    fn a_network_in_use_is_passed_over() {
        assert_eq!(choose(7, &[]), Some(7));
        assert_eq!(choose(7, &[network(7).v4(1), network(8).v4(3)]), Some(9));
        assert_eq!(choose(NETWORKS - 1, &[network(NETWORKS - 1).v4(2)]), Some(0));
    }
}
