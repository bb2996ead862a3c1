//! A pod's device: a veth pair whose pod side has a single address and sends everything to a gateway that
//! exists only as a permanent neighbour. No broadcast domain, no address resolution, nothing to learn.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::request::{self, VethSide};
use super::rtnl::{Answer, Rtnl};
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

/// Makes the pair and sets up the pod's side; the host's side stays down, so nothing passes yet. Blocks.
/// Returns the host side's index and a socket in the pod's namespace.
pub fn create(plan: &Plan<'_>) -> io::Result<(u32, Rtnl)> {
    let namespace = File::open(plan.netns)?;
    let host_side = VethSide { name: plan.host_name, mac: plan.host_mac };
    let pod_side = VethSide { name: plan.ifname, mac: plan.pod_mac };
    let mut host = Rtnl::here()?;
    let requests = vec![request::veth(host_side, pod_side, namespace.as_fd(), plan.mtu), request::link(plan.host_name)];
    let mut answers = host.ask_all(requests)?.into_iter();
    answers.next().transpose()?;
    let index = request::found(answers.next().unwrap_or(Ok(None)))?.index;
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
    Ok((index, netns::within(plan.netns, || configure(plan))?))
}

/// In the pod's namespace.
fn configure(plan: &Plan<'_>) -> io::Result<Rtnl> {
    let v6 = plan.ips.iter().any(IpAddr::is_ipv6);
    // The address is leased and the gateway known: neither detection nor advertisements have a say.
    let conf = format!("net/ipv6/conf/{}", plan.ifname);
    sysctl::set_own(&format!("{conf}/accept_ra"), "0")?;
    sysctl::set_own(&format!("{conf}/accept_dad"), "0")?;
    sysctl::set_own(&format!("{conf}/disable_ipv6"), if v6 { "0" } else { "1" })?;
    let mut pod = Rtnl::here()?;
    let mut links = pod.ask_all(vec![request::link("lo"), request::link(plan.ifname)])?.into_iter();
    let mut link = || request::found(links.next().unwrap_or(Ok(None)));
    let (lo, index) = (link()?, link()?.index);
    let mut requests = Vec::new();
    if !lo.up {
        requests.push(request::up(lo.index));
    }
    requests.extend(plan.ips.iter().map(|ip| request::address(index, *ip)));
    requests.push(request::up(index));
    for ip in plan.ips {
        requests.push(request::neighbour(index, gateway(ip), plan.host_mac));
        requests.push(request::default_route(index, gateway(ip)));
    }
    all_done(pod.ask_all(requests)?)?;
    Ok(pod)
}

/// Brings the host's side up with routes and neighbours to the pod, and waits until packets pass both ways. Blocks.
pub fn connect(pod: &mut Rtnl, index: u32, plan: &Plan<'_>) -> io::Result<()> {
    let mut host = Rtnl::here()?;
    let mut requests = vec![request::up(index)];
    for ip in plan.ips {
        requests.push(request::neighbour(index, *ip, plan.pod_mac));
        requests.push(request::host_route(index, *ip));
    }
    all_done(host.ask_all(requests)?)?;
    running(pod, plan.ifname)?;
    running(&mut host, plan.host_name)
}

fn all_done(answers: Vec<Answer>) -> io::Result<()> {
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

/// How long a device may take to carry packets once both sides are up.
const RUNNING: Duration = Duration::from_secs(10);

/// Waits until a device carries packets. The kernel starts the queues of the side that was up first from a
/// work queue; what is sent before that is lost without a trace.
fn running(netlink: &mut Rtnl, name: &str) -> io::Result<()> {
    let end = Instant::now() + RUNNING;
    while !request::found(netlink.ask(request::link(name)))?.running {
        if Instant::now() >= end {
            let text = format!("{name} has no carrier {RUNNING:?} after both sides were set up");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
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
