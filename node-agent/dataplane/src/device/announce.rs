//! Tells a segment that an address is here now: neighbours send to whom they asked last until then.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use xebec_ebpf_logic::checksum;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Of `ff02::1`, all nodes.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sends a gratuitous ARP, or an unsolicited neighbour advertisement, on a device of the calling namespace.
pub fn tell(ifindex: u32, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    let frame = match address {
        IpAddr::V4(ip) => arp(mac, ip),
        IpAddr::V6(ip) => advertisement(mac, ip),
    };
    send(ifindex, &frame)
}

fn arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    const REQUEST: [u8; 10] = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&BROADCAST[..], &mac, &REQUEST, &mac, &ip.octets(), &[0; 6], &ip.octets()].concat()
}

fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let mut message = [&[136, 0, 0, 0][..], &OVERRIDE, &ip.octets(), &[2, 1], &mac].concat();
    let length = message.len() as u8;
    let pseudo = [&ip.octets()[..], &all_nodes, &[0, 0, 0, length, 0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&checksum::of(&pseudo, 0).to_ne_bytes());
    let header = [&[0x60, 0, 0, 0, 0, length, 58, 255][..], &ip.octets(), &all_nodes].concat();
    [&ALL_NODES_MAC[..], &mac, &[0x86, 0xdd], &header, &message].concat()
}

fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: a system call; its result is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a zeroed address is valid; what counts is set below.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // SAFETY: frame and address live for the call, and their lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_say_who_has_the_address() {
        let mac = [2, 0, 0, 0, 0, 1];
        let frame = arp(mac, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!((frame.len(), &frame[..6], &frame[6..12]), (42, &BROADCAST[..], &mac[..]));
        assert_eq!((&frame[28..32], &frame[38..42]), (&[192, 0, 2, 7][..], &[192, 0, 2, 7][..]));
        let ip: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frame = advertisement(mac, ip);
        assert_eq!((frame.len(), frame[54], &frame[62..78], &frame[80..86]), (86, 136, &ip.octets()[..], &mac[..]));
        let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat();
        assert_eq!(checksum::of(&pseudo, 0), 0, "the checksum is right");
    }
}
