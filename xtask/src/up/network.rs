//! The node's network namespace and the veth that joins it to the machine.

use std::{fs, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use super::Layout;
use crate::sh;

/// The two ends of the veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub host: Ipv4Addr,
    pub node: Ipv4Addr,
}

/// Links of four addresses are cut from this /16.
const RANGE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);
const LINKS: u32 = 1 << 14;

/// The node's end of the veth, in the node's namespace.
const NODE_DEVICE: &str = "eth0";

/// Makes the namespace and the veth, or finds them as they are. The machine's own network gets one device with one route.
pub fn create(layout: &Layout) -> Result<Network> {
    let network = addresses(layout)?;
    if !is_namespace(&layout.netns()) {
        make_namespace(&layout.netns())?;
    }
    let (device, namespace) = (layout.device(), layout.netns_name());
    if Path::new("/sys/class/net").join(&device).exists() {
        return Ok(network);
    }
    let Network { host, node } = network;
    // One process for each namespace: starting programs is what takes time here.
    batch(
        &[],
        &format!(
            "link add {device} type veth peer name {NODE_DEVICE} netns {namespace}\naddr add {host}/30 dev {device}\nlink set {device} up\n"
        ),
    )?;
    batch(
        &["-n", &namespace],
        &format!("link set lo up\naddr add {node}/30 dev {NODE_DEVICE}\nlink set {NODE_DEVICE} up\nroute add default via {host}\n"),
    )?;
    Ok(network)
}

/// Removes both; no error if they are not there.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let device = layout.device();
    if Path::new("/sys/class/net").join(&device).exists() {
        // The namespace's end takes this one with it, perhaps just now.
        let removed = sh::quiet(&mut sh::cmd("ip", ["link", "delete", &device]));
        if Path::new("/sys/class/net").join(&device).exists() {
            removed?;
        }
    }
    let file = layout.netns();
    if file.exists() {
        while umount2(&file, MntFlags::MNT_DETACH).is_ok() {}
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    // Left behind by others' namespaces as well; goes only when empty.
    let _ = fs::remove_dir("/run/netns");
    Ok(())
}

/// The link's addresses, the same at every `up`, because certificates and objects hold them.
fn addresses(layout: &Layout) -> Result<Network> {
    let file = layout.dir.join("network");
    if let Some(index) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(link(index));
    }
    let taken = host_addresses()?;
    let index = choose((layout.hash() % u64::from(LINKS)) as u32, &taken).context("no free link in 172.30.0.0/16")?;
    fs::write(&file, format!("{index}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(link(index))
}

/// The first link from `preferred` on that no address of the machine lies in.
fn choose(preferred: u32, taken: &[Ipv4Addr]) -> Option<u32> {
    let free = |index: u32| {
        let first = u32::from(link(index).host) - 1;
        !taken.iter().any(|address| (first..first + 4).contains(&u32::from(*address)))
    };
    (0..LINKS).map(|step| (preferred + step) % LINKS).find(|index| free(*index))
}

fn link(index: u32) -> Network {
    let first = u32::from(RANGE) + (index % LINKS) * 4;
    Network { host: Ipv4Addr::from(first + 1), node: Ipv4Addr::from(first + 2) }
}

fn host_addresses() -> Result<Vec<Ipv4Addr>> {
    let text = sh::quiet(&mut sh::cmd("ip", ["-json", "-4", "address", "show"]))?;
    let links: Value = serde_json::from_str(&text).context("cannot read what `ip` prints")?;
    let infos = links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    Ok(infos.filter_map(|info| info["local"].as_str()?.parse().ok()).collect())
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

    #[test]
    fn links_do_not_overlap() {
        assert_eq!(link(0), Network { host: Ipv4Addr::new(172, 30, 0, 1), node: Ipv4Addr::new(172, 30, 0, 2) });
        assert_eq!(link(1).host, Ipv4Addr::new(172, 30, 0, 5));
        assert_eq!(link(LINKS - 1).node, Ipv4Addr::new(172, 30, 255, 254));
    }

    #[test]
    fn a_link_in_use_is_passed_over() {
        assert_eq!(choose(7, &[]), Some(7));
        assert_eq!(choose(7, &[link(7).host, link(8).node]), Some(9));
        assert_eq!(choose(LINKS - 1, &[link(LINKS - 1).node]), Some(0));
    }
}
