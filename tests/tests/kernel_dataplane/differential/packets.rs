//! Random packets: well-formed ones, with options, extension headers and fragments, and broken ones.

use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};
use std::net::IpAddr;

use xebec_ebpf_abi::prog;

use super::world::{self, BALANCER, CLIENT, CLUSTER_IP, NODE, OTHER_NODE, OWN, PODS, STRANGER, port_number};
use crate::packet::{self, ACK, FIN, RST, SYN, TCP, UDP};

/// The kernel runs no program on less than an IP header, in the driver on less than a link header.
fn least(frame: &[u8], program: &str) -> usize {
    match (program, &frame[12..14]) {
        (prog::XDP_UPLINK, _) => 14,
        (_, [0x86, 0xdd]) => 14 + 40,
        _ => 14 + 20,
    }
}

/// Fills a frame up so that the kernel runs the program on it.
pub fn fill(frame: &mut Vec<u8>, program: &str) {
    let least = least(frame, program);
    frame.resize(frame.len().max(least), 0);
}

fn flags(rng: &mut SmallRng) -> u8 {
    *[SYN, SYN, ACK, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, 0xff].choose(rng).expect("some")
}

fn some_bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let len = rng.random_range(0..=most);
    (0..len).map(|_| rng.random()).collect()
}

/// What a packet carries; now and then as much as ways are wide.
fn data(rng: &mut SmallRng) -> Vec<u8> {
    if rng.random_ratio(1, 24) { vec![rng.random(); rng.random_range(1200..1600)] } else { some_bytes(rng, 24) }
}

/// Transport header and data, with the protocol that names them.
fn transport(rng: &mut SmallRng, src: IpAddr, dst: IpAddr, depth: u8) -> (u8, Vec<u8>) {
    let to_port = if rng.random() { 80 } else { port_number(rng) };
    let (from, to) = ((src, port_number(rng)), (dst, to_port));
    let data = data(rng);
    match rng.random_range(0..20) {
        0..=7 => (TCP, packet::tcp_segment(from, to, flags(rng), &data)),
        8..=12 => {
            let mut datagram = packet::udp_datagram(from, to, &data);
            if src.is_ipv4() && rng.random_ratio(1, 4) {
                datagram[6..8].fill(0);
            }
            (UDP, datagram)
        }
        13 => {
            let mut chunk = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
            chunk.extend(some_bytes(rng, 16));
            (132, chunk)
        }
        14 | 15 => payload(&packet::echo(src, dst, rng.random(), from.1)),
        16 | 17 if depth == 0 => error(rng, src, dst),
        18 => payload(&packet::icmp(src, dst, rng.random(), rng.random(), rng.random(), &data)),
        _ => (*[47, 50, 2, 0, 59, 103, 255].choose(rng).expect("some"), data),
    }
}

/// An ICMP error about a packet that `dst` may have sent.
fn error(rng: &mut SmallRng, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
    let other = world::address(rng, dst.is_ipv4());
    let (proto, about) = transport(rng, dst, other, 1);
    let about = network(rng, dst, other, proto, &about);
    payload(&error_about(rng, src, dst, &about))
}

/// An ICMP error to `dst` that quotes the beginning of an IP packet.
pub fn error_about(rng: &mut SmallRng, src: IpAddr, dst: IpAddr, about: &[u8]) -> Vec<u8> {
    let quoted = rng.random_range(0..=about.len().min(120));
    // Enough for the ports of what is inside another packet.
    let quoted = if rng.random_ratio(7, 8) { about.len().min(100) } else { quoted };
    let kinds: &[u8] = if src.is_ipv4() { &[3, 3, 11, 12, 5] } else { &[1, 2, 3, 4] };
    let kind = *kinds.choose(rng).expect("some");
    packet::icmp(src, dst, kind, rng.random_range(0..5), [0, 0, 5, 0], &about[..quoted])
}

/// What a frame without options carries.
fn payload(frame: &[u8]) -> (u8, Vec<u8>) {
    if frame[14] >> 4 == 4 { (frame[23], frame[34..].to_vec()) } else { (frame[20], frame[54..].to_vec()) }
}

/// The IP packet around it, which may have few hops left.
fn network(rng: &mut SmallRng, src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = with_extensions(rng, src, dst, proto, payload);
    if rng.random_ratio(1, 6) {
        packet[if src.is_ipv4() { 8 } else { 7 }] = rng.random_range(0..3);
        sum(&mut packet);
    }
    packet
}

/// Puts the sum of an IPv4 header right.
fn sum(packet: &mut [u8]) {
    let end = usize::from(packet[0] & 0xf) * 4;
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = packet::checksum(&[&packet[..end]]);
        packet[10..12].copy_from_slice(&sum);
    }
}

fn with_extensions(rng: &mut SmallRng, src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => {
            let fragment = match rng.random_range(0..12) {
                0 => 0x2000,
                1 => 0x2000 | rng.random_range(1..20),
                2 => rng.random_range(1..20),
                _ => 0x4000,
            };
            let mut packet = packet::ip_fragment(src, dst, proto, payload, fragment, rng.random_range(0..3));
            if rng.random_ratio(1, 8) {
                let words = rng.random_range(1..=10u8);
                packet[0] = 0x45 + words;
                let total = packet.len() as u16 + u16::from(words) * 4;
                packet[2..4].copy_from_slice(&total.to_be_bytes());
                packet.splice(20..20, vec![1; usize::from(words) * 4]);
                sum(&mut packet);
            }
            packet
        }
        IpAddr::V6(_) => {
            let headers = if rng.random_ratio(1, 4) { rng.random_range(1..=8) } else { 0 };
            let (mut next, mut chain) = (proto, payload.to_vec());
            for _ in 0..headers {
                let kind = *[0u8, 43, 60, 135, 51, 44, 44].choose(rng).expect("some");
                let mut header = vec![next, 0];
                match kind {
                    44 => {
                        let offset = if rng.random_ratio(1, 3) { rng.random_range(0..20) << 3 } else { 0 };
                        let fragment: u16 = offset | rng.random_range(0..=1);
                        header.extend(fragment.to_be_bytes());
                        header.extend([0, 0, 0, rng.random_range(0..3)]);
                    }
                    _ => {
                        let units = rng.random_range(0..3u8);
                        header[1] = units;
                        header.resize(8 + if kind == 51 { 4 } else { 8 } * usize::from(units), 0);
                    }
                }
                header.extend(chain);
                (next, chain) = (kind, header);
            }
            packet::ip(src, dst, next, &chain)
        }
    }
}

/// A packet of direct server return with this one inside: mostly one that a node sends, to a pod here.
fn outside(rng: &mut SmallRng, inner: &[u8]) -> Vec<u8> {
    let v4 = (inner[0] >> 4 == 4) != rng.random_ratio(1, 24);
    let sender = *[OTHER_NODE, OTHER_NODE, NODE].choose(rng).expect("some");
    let (mut src, mut dst) = (world::of(sender, v4), world::of(*PODS.choose(rng).expect("some"), v4));
    match rng.random_range(0..16) {
        0 | 1 => src = world::address(rng, v4),
        2 => dst = world::address(rng, v4),
        _ => {}
    }
    let mut inner = inner.to_vec();
    match rng.random_range(0..24) {
        0 => inner.truncate(rng.random_range(0..inner.len())),
        1 => inner.extend(some_bytes(rng, 8)),
        2 => inner = outside(rng, &inner),
        _ => {}
    }
    let proto = if rng.random_ratio(1, 24) {
        world::proto(rng)
    } else if v4 {
        4
    } else {
        41
    };
    if rng.random_ratio(1, 24) {
        // In pieces, or with options.
        return network(rng, src, dst, proto, &inner);
    }
    let port = port_number(rng);
    if v4 {
        return packet::ip_fragment(src, dst, proto, &inner, 0x4000, port);
    }
    let mut packet = packet::ip(src, dst, proto, &inner);
    packet[2..4].copy_from_slice(&port.to_be_bytes());
    packet
}

/// A frame with what another one carries inside: as another node would send it.
pub fn inside(rng: &mut SmallRng, frame: &[u8]) -> Vec<u8> {
    match frame.get(14).map(|first| first >> 4) {
        Some(4 | 6) => packet::ethernet(&outside(rng, &frame[14..])),
        _ => frame.to_vec(),
    }
}

/// Makes something of it wrong.
fn spoil(rng: &mut SmallRng, frame: &mut Vec<u8>, program: &str) {
    match rng.random_range(0..4) {
        0 => {
            let least = least(frame, program);
            if frame.len() > least {
                frame.truncate(rng.random_range(least..frame.len()));
            }
        }
        1 => frame.extend(some_bytes(rng, 20)),
        _ => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(12..frame.len());
                frame[at] = rng.random();
            }
        }
    }
}

fn arp(rng: &mut SmallRng) -> Vec<u8> {
    let octets = |rng: &mut SmallRng| match world::address(rng, true) {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 3, 8, 6, 0, 1, 8, 0, 6, 4, 0, rng.random_range(1..=2), 2, 0, 0, 0, 0, 3]);
    frame.extend(octets(rng));
    frame.extend([0; 6]);
    frame.extend(octets(rng));
    frame
}

/// Who has an IPv6 address?
fn solicitation(rng: &mut SmallRng) -> Vec<u8> {
    let (src, target) = (world::address(rng, false), world::address(rng, false));
    let IpAddr::V6(asked) = target else { return Vec::new() };
    let mut data = asked.octets().to_vec();
    if rng.random_ratio(3, 4) {
        data.extend([1, 1, 2, 0, 0, 0, 0, 3]);
    }
    let to = if rng.random() { target } else { "ff02::1:ff00:50".parse().expect("an address") };
    let mut frame = packet::icmp(src, to, 135, 0, [0; 4], &data);
    frame[21] = 255;
    frame
}

/// Where a packet that a program sees mostly comes from and goes to.
fn ends(rng: &mut SmallRng, program: &str, v4: bool) -> (IpAddr, IpAddr) {
    let (mut src, mut dst) = (world::address(rng, v4), world::address(rng, v4));
    let pod = world::of(*PODS.choose(rng).expect("some"), v4);
    let front = world::of(*[CLUSTER_IP, BALANCER, NODE, NODE].choose(rng).expect("some"), v4);
    match program {
        _ if rng.random_ratio(1, 8) => {}
        prog::FROM_POD => {
            src = pod;
            dst = if rng.random() { front } else { dst };
        }
        prog::TO_POD => dst = pod,
        prog::FROM_UPLINK => dst = if rng.random_ratio(3, 4) { front } else { pod },
        prog::XDP_UPLINK => {
            src = if rng.random() { world::of(CLIENT, v4) } else { src };
            dst = front;
        }
        // The packet inside.
        prog::TAKE_DIRECT => dst = front,
        _ => src = pod,
    }
    (src, dst)
}

/// Where a Service is asked for: address, port and protocol.
pub type Target = (IpAddr, u16, u8);

/// An IP packet for a Service, from outside or, for `from_pod`, a pod.
fn request(rng: &mut SmallRng, program: &str, (dst, port, proto): Target) -> Vec<u8> {
    let v4 = dst.is_ipv4();
    let (mut src, _) = ends(rng, program, v4);
    if program != prog::FROM_POD && rng.random() {
        src = world::of(*[CLIENT, STRANGER].choose(rng).expect("some"), v4);
    }
    let data = data(rng);
    let (from, to) = ((src, port_number(rng)), (dst, port));
    let transport = match proto {
        TCP => packet::tcp_segment(from, to, flags(rng), &data),
        _ => packet::udp_datagram(from, to, &data),
    };
    if rng.random_ratio(1, 4) { network(rng, src, dst, proto, &transport) } else { packet::ip(src, dst, proto, &transport) }
}

/// A frame of any kind, mostly one that the program may see. `targets`: of the Services that there are.
pub fn any(rng: &mut SmallRng, program: &str, targets: &[Target]) -> Vec<u8> {
    let mut frame = match rng.random_range(0..40) {
        0 => arp(rng),
        1 => solicitation(rng),
        _ => {
            let target = targets.choose(rng).filter(|_| rng.random());
            let mut packet = match (program, target) {
                (prog::FROM_POD | prog::FROM_UPLINK | prog::XDP_UPLINK | prog::TAKE_DIRECT, Some(target)) => request(rng, program, *target),
                _ => {
                    let v4 = rng.random();
                    let (src, dst) = ends(rng, program, v4);
                    let (proto, payload) = transport(rng, src, dst, 0);
                    network(rng, src, dst, proto, &payload)
                }
            };
            if program == prog::TAKE_DIRECT && !rng.random_ratio(1, 12) {
                packet = outside(rng, &packet);
            }
            packet::ethernet(&packet)
        }
    };
    if rng.random_ratio(1, 24) {
        leave_sum_to_device(&mut frame);
    }
    if rng.random_ratio(1, 30) {
        // To many.
        frame[0] |= 1;
    }
    if rng.random_ratio(1, 8) {
        spoil(rng, &mut frame, program);
    }
    fill(&mut frame, program);
    frame
}

/// As a sender on the same machine has it: of the transport's sum only the pseudo header's is there.
fn leave_sum_to_device(frame: &mut [u8]) {
    let at = match (frame[14] >> 4, frame[20], frame[23]) {
        (4, _, proto) => (proto, 14 + 20),
        (6, proto, _) => (proto, 14 + 40),
        _ => return,
    };
    let at = match at {
        (TCP, at) => at + 16,
        (UDP, at) => at + 6,
        _ => return,
    };
    if frame[14] & 0xf != 5 && frame[14] >> 4 == 4 || frame.len() < at + 2 {
        return;
    }
    let sum = packet::pseudo_sum(frame);
    frame[at..at + 2].copy_from_slice(&sum);
}

/// Where a frame's IP header ends, if it has no extensions: what follows begins with ports, or with an echo's identifier.
fn ports(frame: &[u8]) -> Option<usize> {
    let (proto, at) = match frame.get(14)? >> 4 {
        4 => (*frame.get(23)?, 14 + usize::from(frame[14] & 0xf) * 4),
        _ => (*frame.get(20)?, 54),
    };
    (matches!(proto, TCP | UDP | 132) && frame.len() >= at + 4).then_some(at)
}

/// The same packet with other TCP flags.
pub fn again(rng: &mut SmallRng, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(flag) = ports(&frame).and_then(|at| frame.get_mut(at + 13))
        && rng.random()
    {
        // Its checksum is wrong then, which is nobody's business on the way.
        *flag = flags(rng);
    }
    frame
}

/// What the receiver of a frame sends back: both sums stay right.
pub fn answer(rng: &mut SmallRng, frame: &[u8]) -> Vec<u8> {
    let mut back = frame.to_vec();
    if frame.len() < 15 {
        return back;
    }
    // It comes in from a wire.
    back[..6].copy_from_slice(&OWN);
    let (at, len) = if frame[14] >> 4 == 4 { (26, 4) } else { (22, 16) };
    if frame.len() < at + 2 * len {
        return back;
    }
    back[at..at + len].copy_from_slice(&frame[at + len..at + 2 * len]);
    back[at + len..at + 2 * len].copy_from_slice(&frame[at..at + len]);
    if let Some(l4) = ports(frame) {
        back[l4..l4 + 2].copy_from_slice(&frame[l4 + 2..l4 + 4]);
        back[l4 + 2..l4 + 4].copy_from_slice(&frame[l4..l4 + 2]);
        return again(rng, &back);
    }
    // An echo request's reply.
    let l4 = if frame[14] >> 4 == 4 { 34 } else { 54 };
    match back.get_mut(l4) {
        Some(kind @ 8) => *kind = 0,
        Some(kind @ 128) => *kind = 129,
        _ => {}
    }
    back
}

/// An ICMP error about a frame, to who sent it.
pub fn complaint(rng: &mut SmallRng, frame: &[u8]) -> Vec<u8> {
    if frame.len() < 15 {
        return frame.to_vec();
    }
    let v4 = frame[14] >> 4 == 4;
    let read = |at: usize| -> Option<IpAddr> {
        if v4 {
            let octets: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        } else {
            let octets: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        }
    };
    let ends = if v4 { (read(26), read(30)) } else { (read(22), read(38)) };
    let (Some(sender), Some(receiver)) = ends else { return frame.to_vec() };
    let from = if rng.random() { receiver } else { world::address(rng, v4) };
    error_about(rng, from, sender, &frame[14..])
}
