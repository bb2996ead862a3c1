//! Packets made up for questions.

use std::net::IpAddr;

use xebec_ebpf_abi::{Addr, Port, Tuple, proto};

use crate::compile::expand::addr;

const ETHERNET: usize = 14;
/// A first packet's hop limit on Linux.
const HOPS: u8 = 64;

/// The first packet of a flow: TCP with SYN, an ICMP echo request, or a header with ports and no payload.
pub fn first(tuple: &Tuple) -> Vec<u8> {
    let v4 = tuple.src.is_v4();
    let transport = transport(tuple);
    let mut packet = vec![0; 12];
    packet.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    let length = transport.len() as u16;
    if v4 {
        let mut header = [0u8; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        header[6] = 0x40;
        header[8] = HOPS;
        header[9] = tuple.proto();
        header[12..16].copy_from_slice(&tuple.src.octets()[12..]);
        header[16..20].copy_from_slice(&tuple.dst.octets()[12..]);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(header);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([tuple.proto(), HOPS]);
        packet.extend(tuple.src.octets());
        packet.extend(tuple.dst.octets());
    }
    packet.extend(transport);
    packet
}

fn transport(tuple: &Tuple) -> Vec<u8> {
    let ports = [tuple.sport.get().to_be_bytes(), tuple.dport.get().to_be_bytes()].concat();
    let rest: &[u8] = match tuple.proto() {
        // Sequence, acknowledgement, length and SYN, window, checksum, urgent.
        proto::TCP => &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0],
        // A checksum of 0 is none.
        proto::UDP => &[0, 8, 0, 0],
        proto::SCTP => &[0; 8],
        kind => {
            let request = if kind == proto::ICMP { 8 } else { 128 };
            return [&[request, 0, 0, 0][..], &tuple.sport.get().to_be_bytes(), &[0, 1]].concat();
        }
    };
    [&ports, rest].concat()
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// The source of a packet that has another one inside.
pub fn outer(packet: &[u8]) -> Option<Addr> {
    let outer = tuple(packet)?;
    matches!(outer.proto(), proto::IPIP | proto::IPV6).then_some(outer.src)
}

/// What a packet that [`first`] made has become.
pub fn tuple(packet: &[u8]) -> Option<Tuple> {
    let ip = packet.get(ETHERNET..)?;
    let (src, dst, proto, transport): (IpAddr, IpAddr, u8, &[u8]) = match ip.first()? >> 4 {
        4 => {
            let octets = |at: usize| Some(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?.into());
            (octets(12)?, octets(16)?, *ip.get(9)?, ip.get(20..)?)
        }
        6 => {
            let octets = |at: usize| Some(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?.into());
            (octets(8)?, octets(24)?, *ip.get(6)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let word = |at: usize| Some(Port::new(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?)));
    let (sport, dport) = match proto {
        proto::ICMP | proto::ICMPV6 => (word(4)?, Port::new(0)),
        _ => (word(0)?, word(2)?),
    };
    Some(Tuple::new(addr(src), sport, addr(dst), dport, proto))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_as_it_was_made() {
        for (src, dst, icmp) in [("10.0.0.1", "10.0.0.2", proto::ICMP), ("fd00::1", "fd00::2", proto::ICMPV6)] {
            for kind in [proto::TCP, proto::UDP, proto::SCTP, icmp] {
                let dport = if kind == icmp { 0 } else { 80 };
                let ip = |text: &str| addr(text.parse().unwrap());
                let made = Tuple::new(ip(src), Port::new(40000), ip(dst), Port::new(dport), kind);
                assert_eq!(tuple(&first(&made)), Some(made));
            }
        }
        assert_eq!(tuple(&[0; 60]), None);
        assert_eq!(tuple(&[0; 3]), None);
    }

    #[test]
    fn the_header_sums_to_nothing() {
        let ip = |text: &str| addr(text.parse().unwrap());
        let made = first(&Tuple::new(ip("192.168.1.77"), Port::new(1), ip("203.0.113.9"), Port::new(2), proto::TCP));
        assert_eq!(checksum(&made[14..34]), 0);
    }
}
