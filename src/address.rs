//! This host's own address.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, bail};

/// The source address of the default route. Nothing is sent: connecting a datagram socket only looks the route up.
pub fn of_default_route() -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
    // An address for documentation (RFC 5737), which no host has a more specific route to.
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).context("this host has no default route; give --node-ip")?;
    let address = socket.local_addr().context("cannot read the socket's address")?.ip();
    if address.is_loopback() || address.is_unspecified() {
        bail!("the default route leads to {address}; give --node-ip");
    }
    Ok(address)
}
