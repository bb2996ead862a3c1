//! News of the node's network: one netlink socket in every group that tells of something the agent keeps.

use std::io;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

/// Links, addresses, routes, rules, neighbours, and settings (rp_filter and forwarding) of both families.
const GROUPS: [MulticastGroup; 10] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];

/// The socket.
pub struct News(TokioSocket);

impl News {
    /// In the network namespace of the calling thread.
    pub fn open() -> io::Result<News> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.socket_mut().add_membership(group as u32)?;
        }
        Ok(News(socket))
    }

    /// Returns when something has changed. What exactly is read again anyway; only neighbours, which come and go all the
    /// time, are told apart: those of other devices than `tunnel` are none of ours.
    pub async fn changed(&mut self, tunnel: Option<u32>) -> io::Result<()> {
        loop {
            match self.0.recv_from_full().await {
                Ok((message, _)) if concerns(&message, tunnel) => return Ok(()),
                Ok(_) => {}
                // More than the socket could hold: something has certainly changed.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
}

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

fn concerns(message: &[u8], tunnel: Option<u32>) -> bool {
    let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    if !matches!(kind, Some(RTM_NEWNEIGH | RTM_DELNEIGH)) {
        return true;
    }
    // The header of 16 bytes, then family and padding of 4.
    let index = message.get(20..24).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    index.is_some() && index == tunnel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; 28];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[20..24].copy_from_slice(&index.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_neighbours_of_the_tunnel_count() {
        assert!(concerns(&message(16, 7), None), "links always");
        assert!(concerns(&message(RTM_NEWNEIGH, 7), Some(7)));
        assert!(!concerns(&message(RTM_NEWNEIGH, 7), Some(8)));
        assert!(!concerns(&message(RTM_DELNEIGH, 7), None));
        assert!(!concerns(&message(RTM_DELNEIGH, 7)[..10], None), "cut off");
    }
}
