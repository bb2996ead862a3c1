//! News of the node's network: one netlink socket in every group that tells of something the agent keeps.

use std::collections::BTreeSet;
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

/// Devices whose settings may be others than they were. Pods' are many and those of one change when it comes: they are not all
/// read again for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resettled {
    /// All of them.
    pub all: bool,
    /// These.
    pub devices: BTreeSet<u32>,
}

impl Resettled {
    /// Whether the settings of a device are to be read.
    pub fn has(&self, index: u32) -> bool {
        self.all || self.devices.contains(&index)
    }

    fn note(&mut self, message: &[u8]) {
        match settings_of(message) {
            Some(Ok(index)) => self.all |= u32::try_from(index).map(|index| self.devices.insert(index)).is_err(),
            Some(Err(())) => self.all = true,
            None => {}
        }
    }
}

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

    /// Returns when something has changed, and notes whose settings. What else exactly is read again anyway; only neighbours,
    /// which come and go all the time, are told apart: those of other devices than `tunnel` are none of ours.
    pub async fn changed(&mut self, tunnel: Option<u32>, resettled: &mut Resettled) -> io::Result<()> {
        loop {
            match self.0.recv_from_full().await {
                Ok((message, _)) if concerns(&message, tunnel) => {
                    resettled.note(&message);
                    return Ok(());
                }
                Ok(_) => {}
                // More than the socket could hold: something has certainly changed.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    resettled.all = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes what else has been told by now, so that a burst of news is looked at once.
    pub fn gather(&mut self, resettled: &mut Resettled) {
        loop {
            match self.0.socket_ref().recv_from_full() {
                Ok((message, _)) => resettled.note(&message),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => resettled.all = true,
                // Nothing is left; an error that stays is met by the next wait.
                Err(_) => return,
            }
        }
    }
}

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

const RTM_NEWNETCONF: u16 = 80;
const NETCONFA_IFINDEX: u16 = 1;

/// Of a message about settings, the device: negative for those that hold for all. `Err`: it does not say which.
fn settings_of(message: &[u8]) -> Option<Result<i32, ()>> {
    let at = |from: usize| message.get(from..from + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    if at(4)? != RTM_NEWNETCONF {
        return None;
    }
    // The header of 16 bytes, family and padding of 4, attributes: length, kind, value.
    let mut from = 20;
    while let (Some(length @ 4..), Some(kind)) = (at(from), at(from + 2)) {
        if kind == NETCONFA_IFINDEX {
            let value = message.get(from + 4..from + 8).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
            return Some(value.ok_or(()));
        }
        from += usize::from(length).next_multiple_of(4);
    }
    Some(Err(()))
}

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
    fn settings_of_one_device_are_told_from_those_of_all() {
        let netconf = |attributes: &[(u16, i32)]| {
            let mut bytes = message(RTM_NEWNETCONF, 0)[..20].to_vec();
            for (kind, value) in attributes {
                bytes.extend(8u16.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).chain(value.to_ne_bytes()));
            }
            bytes
        };
        let noted = |message: &[u8]| {
            let mut resettled = Resettled::default();
            resettled.note(message);
            resettled
        };
        let one = noted(&netconf(&[(3, 1), (NETCONFA_IFINDEX, 7)]));
        assert_eq!((one.has(7), one.has(8)), (true, false));
        assert!(noted(&netconf(&[(NETCONFA_IFINDEX, -1)])).all, "for all devices");
        assert!(noted(&netconf(&[(3, 1)])).all, "does not say");
        assert!(noted(&netconf(&[(NETCONFA_IFINDEX, 7)])[..26]).all, "cut off");
        assert_eq!(noted(&message(16, 7)), Resettled::default(), "a link");
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
