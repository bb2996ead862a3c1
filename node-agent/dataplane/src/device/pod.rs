//! A pod's device: a veth pair whose pod side has a single address and sends everything to a gateway that
//! exists only as a permanent neighbour. No broadcast domain, no address resolution, nothing to learn.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use super::netlink::{Netlink, VethSide};
use super::{netns, sysctl};

/// Next hop of pods for IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Next hop of pods for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Prefix of the names of host-side devices.
pub const PREFIX: &str = "xbc";

/// Name of the host side: derived from the sandbox and the pod-side name, so that DEL finds it without state.
pub fn host_name(sandbox: &str, ifname: &str) -> String {
    // FNV-1a over both: sandbox ids share prefixes in tests and tools.
    let hash = |seed: u64| {
        let bytes = sandbox.bytes().chain([0]).chain(ifname.bytes());
        bytes.fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    format!("{PREFIX}{:011x}", hash(0xcbf2_9ce4_8422_2325) & 0xfff_ffff_ffff)
}

/// A locally administered unicast address.
pub fn random_mac() -> [u8; 6] {
    let mut mac: [u8; 6] = rand::random();
    mac[0] = (mac[0] & 0xfe) | 0x02;
    mac
}

/// What a pair is made of.
pub struct Plan<'a> {
    /// Network namespace of the pod.
    pub netns: &'a Path,
    /// Name of the pod's side.
    pub ifname: &'a str,
    /// Name of the host's side.
    pub host_name: &'a str,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Hardware address of the host's side.
    pub host_mac: [u8; 6],
    /// Addresses of the pod.
    pub ips: &'a [IpAddr],
    /// Largest packet.
    pub mtu: u32,
}

/// The gateway of an address' family.
pub fn gateway(ip: &IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// Makes the pair and sets up the pod's side; the host's side stays down, so nothing passes yet.
/// Returns the host side's index and the pod's namespace.
pub async fn create(host: &Netlink, plan: &Plan<'_>) -> io::Result<(u32, Netlink)> {
    let namespace = File::open(plan.netns)?;
    let host_side = VethSide { name: plan.host_name, mac: plan.host_mac };
    let pod_side = VethSide { name: plan.ifname, mac: plan.pod_mac };
    host.add_veth(host_side, pod_side, namespace.as_fd(), plan.mtu).await?;
    let link = host.link(plan.host_name).await?;
    let index = link.ok_or_else(|| io::Error::other("the device went away while it was set up"))?.index;
    // Of our own device in our own namespace: pods' packets come from addresses that are routed back here, but
    // translated ones may not be; autoconfiguration must not answer pods.
    for (name, value) in [
        (format!("net/ipv4/conf/{}/rp_filter", plan.host_name), "0"),
        (format!("net/ipv4/conf/{}/forwarding", plan.host_name), "1"),
        (format!("net/ipv6/conf/{}/forwarding", plan.host_name), "1"),
        (format!("net/ipv6/conf/{}/accept_ra", plan.host_name), "0"),
    ] {
        sysctl::set_own(&name, value)?;
    }
    Ok((index, configure(plan).await?))
}

async fn configure(plan: &Plan<'_>) -> io::Result<Netlink> {
    let (path, ifname) = (plan.netns.to_owned(), plan.ifname.to_owned());
    let v6 = plan.ips.iter().any(IpAddr::is_ipv6);
    let runtime = tokio::runtime::Handle::current();
    let enter = move || {
        netns::within(&path, || {
            // The address is leased and the gateway known: neither detection nor advertisements have a say.
            let conf = format!("net/ipv6/conf/{ifname}");
            sysctl::set_own(&format!("{conf}/accept_ra"), "0")?;
            sysctl::set_own(&format!("{conf}/accept_dad"), "0")?;
            sysctl::set_own(&format!("{conf}/disable_ipv6"), if v6 { "0" } else { "1" })?;
            let _guard = runtime.enter();
            Netlink::here()
        })
    };
    let pod = tokio::task::spawn_blocking(enter).await.map_err(io::Error::other)??;
    if let Some(lo) = pod.link("lo").await?.filter(|lo| !lo.up) {
        pod.up(lo.index).await?;
    }
    let link = pod.link(plan.ifname).await?;
    let index = link.ok_or_else(|| io::Error::other("the pod's device went away while it was set up"))?.index;
    for ip in plan.ips {
        pod.add_address(index, *ip).await?;
    }
    pod.up(index).await?;
    for ip in plan.ips {
        let gateway = gateway(ip);
        pod.add_neighbour(index, gateway, plan.host_mac).await?;
        pod.add_default_route(index, gateway).await?;
    }
    Ok(pod)
}

/// Brings the host's side up with routes and neighbours to the pod, and waits until packets pass both ways.
pub async fn connect(host: &Netlink, pod: &Netlink, index: u32, plan: &Plan<'_>) -> io::Result<()> {
    host.up(index).await?;
    for ip in plan.ips {
        host.add_neighbour(index, *ip, plan.pod_mac).await?;
        host.add_host_route(index, *ip).await?;
    }
    pod.running(plan.ifname).await?;
    host.running(plan.host_name).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let a = host_name("0123456789abcdef", "eth0");
        assert_eq!(a.len(), 14);
        assert!(a.starts_with(PREFIX));
        assert_ne!(a, host_name("0123456789abcdee", "eth0"));
        assert_ne!(a, host_name("0123456789abcdef", "eth1"));
        assert_eq!(a, host_name("0123456789abcdef", "eth0"));
    }

    #[test]
    fn macs_are_local_unicast() {
        for _ in 0..100 {
            assert_eq!(random_mac()[0] & 3, 2);
        }
    }
}
