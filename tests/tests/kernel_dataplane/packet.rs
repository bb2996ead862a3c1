//! Packets as bytes: made with right checksums, and checked for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// The one's complement sum of RFC 1071, written the plain way: 16-bit big-endian words.
fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut all: u32 = parts.iter().map(|p| sum(p)).sum();
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    (!(all as u16)).to_be_bytes()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().into(),
        IpAddr::V6(a) => a.octets().into(),
    }
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = [octets(src), octets(dst)].concat();
    bytes.extend([0, proto]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

/// An IP packet without its link header.
pub fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    ip_fragment(src, dst, proto, payload, 0x4000, 0)
}

/// The same with the IPv4 flags and offset field, and the datagram's number.
pub fn ip_fragment(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8], flags: u16, id: u16) -> Vec<u8> {
    let mut bytes;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes = vec![0x45, 0];
            bytes.extend((20 + payload.len() as u16).to_be_bytes());
            bytes.extend(id.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            bytes.extend([64, proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            let check = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&check);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes = vec![0x60, 0, 0, 0];
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([proto, 64]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("two families in one packet"),
    }
    bytes.extend(payload);
    bytes
}

pub fn ethernet(ip: &[u8]) -> Vec<u8> {
    let ethertype: u16 = if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(ip);
    bytes
}

pub fn tcp_segment(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(src.1.to_be_bytes());
    bytes.extend(dst.1.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    let check = checksum(&[&pseudo(src.0, dst.0, TCP, bytes.len()), &bytes]);
    bytes[16..18].copy_from_slice(&check);
    bytes
}

pub fn udp_datagram(src: (IpAddr, u16), dst: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(src.1.to_be_bytes());
    bytes.extend(dst.1.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    let check = checksum(&[&pseudo(src.0, dst.0, UDP, bytes.len()), &bytes]);
    bytes[6..8].copy_from_slice(&check);
    bytes
}

pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Vec<u8> {
    ethernet(&ip(src.0, dst.0, TCP, &tcp_segment(src, dst, flags, b"data")))
}

pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    ethernet(&ip(src.0, dst.0, UDP, &udp_datagram(src, dst, b"datagram")))
}

/// ICMP of the addresses' family: type, code, the four bytes after the checksum, the rest.
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(data);
    let (proto, check) = match src {
        IpAddr::V4(_) => (1, checksum(&[&bytes])),
        IpAddr::V6(_) => (58, checksum(&[&pseudo(src, dst, 58, bytes.len()), &bytes])),
    };
    bytes[2..4].copy_from_slice(&check);
    ethernet(&ip(src, dst, proto, &bytes))
}

/// An echo request (or reply) with an identifier.
pub fn echo(src: IpAddr, dst: IpAddr, reply: bool, id: u16) -> Vec<u8> {
    let kind = match (src, reply) {
        (IpAddr::V4(_), false) => 8,
        (IpAddr::V4(_), true) => 0,
        (IpAddr::V6(_), false) => 128,
        (IpAddr::V6(_), true) => 129,
    };
    let id = id.to_be_bytes();
    icmp(src, dst, kind, 0, [id[0], id[1], 0, 1], b"ping")
}

/// "Fragmentation needed" (or "packet too big") about a packet given without its link header.
pub fn too_big(src: IpAddr, dst: IpAddr, about: &[u8]) -> Vec<u8> {
    let about = &about[..about.len().min(48)];
    match src {
        IpAddr::V4(_) => icmp(src, dst, 3, 4, [0, 0, 5, 0], about),
        IpAddr::V6(_) => icmp(src, dst, 2, 0, [0, 0, 5, 0], about),
    }
}

/// What a packet says, after all its checksums were found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    /// Ports; for ICMP zeros.
    pub sport: u16,
    pub dport: u16,
    /// From the transport header on.
    pub l4: Vec<u8>,
}

impl Read {
    pub fn tuple(&self) -> ((IpAddr, u16), (IpAddr, u16)) {
        ((self.src, self.sport), (self.dst, self.dport))
    }
}

/// Reads an Ethernet frame with a whole IP packet without options.
pub fn read(frame: &[u8]) -> Read {
    let read = read_ip(&frame[14..]);
    let sums = match read.proto {
        1 => sum(&read.l4),
        TCP | UDP | 58 => {
            let pseudo = pseudo(read.src, read.dst, read.proto, read.l4.len());
            let mut both = sum(&pseudo) + sum(&read.l4);
            while both > 0xffff {
                both = (both & 0xffff) + (both >> 16);
            }
            both
        }
        _ => 0xffff,
    };
    assert_eq!(sums, 0xffff, "transport checksum of {read:?}");
    read
}

/// Reads an IP packet that may be cut off; its IP checksum must be right.
pub fn read_ip(ip: &[u8]) -> Read {
    let (src, dst, proto, l4): (IpAddr, IpAddr, u8, &[u8]) = if ip[0] >> 4 == 4 {
        assert_eq!(sum(&ip[..20]), 0xffff, "IPv4 header checksum");
        let addr = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]).into();
        (addr(12), addr(16), ip[9], &ip[20..])
    } else {
        let addr = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap()).into();
        (addr(8), addr(24), ip[6], &ip[40..])
    };
    let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    let (sport, dport) = if matches!(proto, TCP | UDP | 132) { (port(0), port(2)) } else { (0, 0) };
    Read { src, dst, proto, sport, dport, l4: l4.to_vec() }
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The sum of a frame's pseudo header, as a packet has it whose checksum a device is to complete.
pub fn pseudo_sum(frame: &[u8]) -> [u8; 2] {
    let read = read_ip(&frame[14..]);
    (sum(&pseudo(read.src, read.dst, read.proto, read.l4.len())) as u16).to_be_bytes()
}
