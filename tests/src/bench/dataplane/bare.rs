//! The least there is between two pods of a node: a veth pair each, and at its host end a program that does nothing but send the
//! packet to the other pod. What loopback is ahead of this by, no program that decides something can win back.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};

use super::{place::Place, raw};
use crate::{bench::inside::Helper, netns::net::Netns};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Two pods without an agent.
pub struct Bare {
    pub client: Place,
    pub server: Place,
    _serving: Helper,
    _links: [OwnedFd; 2],
    _host: Netns,
}

impl Bare {
    pub fn new() -> Result<Bare> {
        let host = Netns::new();
        let [client, server] = [(CLIENT, SERVER, "client0"), (SERVER, CLIENT, "server0")].map(|(ip, other, device)| {
            let netns = Netns::new();
            host.join(device, &netns, "eth0");
            netns.ip(&format!("link set eth0 address {}", mac(ip)));
            netns.ip(&format!("addr add {ip}/24 dev eth0"));
            // Nobody passes on a question for it.
            netns.ip(&format!("neigh add {other} lladdr {} dev eth0", mac(other)));
            Place { netns, ip, procs: Vec::new() }
        });
        let links = host.run(|| -> Result<[OwnedFd; 2]> { Ok([redirect("client0", "server0")?, redirect("server0", "client0")?]) })?;
        let serving = server.serve()?;
        Ok(Bare { client, server, _serving: serving, _links: links, _host: host })
    }
}

/// The hardware address of the pod with this address.
fn mac(ip: Ipv4Addr) -> String {
    format!("0a:00:00:00:00:{:02x}", ip.octets()[3])
}

/// What comes out of a pod goes into the other.
fn redirect(from: &str, to: &str) -> Result<OwnedFd> {
    const REDIRECT_PEER: u64 = 155;
    let [from, to] = [from, to].map(nix::net::if_::if_nametoindex);
    // r1 = the device; r2 = 0; call; exit.
    let program = raw::load(raw::SCHED_CLS, &[0x1b7 | u64::from(to?) << 32, 0x2b7, 0x85 | REDIRECT_PEER << 32, 0x95])?;
    raw::attach_tcx_ingress(program.as_fd(), from?).context("attach the program")
}
