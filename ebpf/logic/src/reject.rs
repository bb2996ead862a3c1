//! Refusals: the answer to a packet for a Service that nobody serves, made of the packet itself and sent
//! back where it came from. TCP is answered with a reset, all else with "port unreachable"; what is too big for its way with how
//! much fits, in direct server return even where IPv4 lets routers fragment it, so that its sender does that: nobody can here.
//!
//! As with the kernel's own reject targets, resets are as many as the packets that cause them, and ICMP
//! errors are limited.

use crate::budget::Budget;
use crate::checksum;
use crate::env::Env;
use crate::packet::{IcmpStart, Ipv4Header, Ipv6Header, Packet, TcpHeader};
use crate::parse::{ACK, FIN, Family, Fragment, Headers, Kind, L3, RST, SYN, V4, V6};
use xebec_ebpf_abi::{Addr, DropReason, proto};

/// A packet whose length may change.
pub trait Resize: Packet {
    /// Cuts the packet off, or fills it up with zeros.
    fn set_len(&self, len: u32) -> bool;
    /// Puts `bytes` between the link header and the IP header.
    fn make_room(&self, bytes: u32) -> bool;
}

/// An IP version that headers can be made of.
pub trait Reply: Family {
    const HEADER: u32;
    /// Kind and code of "port unreachable".
    const UNREACHABLE: (u8, u8);
    /// Of "fragmentation needed" or "packet too big".
    const TOO_BIG: (u8, u8);
    /// Bytes of the packet from its IP header on, as the header says; 0: it cannot be read. (No `Option`:
    /// see `uplink`.)
    fn length<P: Packet>(packet: P) -> u32;
    /// Writes the header of a packet with `payload` bytes behind it.
    fn header<P: Packet>(packet: P, src: Addr, dst: Addr, proto: u8, payload: u16) -> bool;
    /// Whether ICMP counts the addresses.
    const ICMP_PSEUDO: bool;
}

impl Reply for V4 {
    const HEADER: u32 = 20;
    const UNREACHABLE: (u8, u8) = (3, 3);
    const TOO_BIG: (u8, u8) = (3, 4);
    const ICMP_PSEUDO: bool = false;

    #[inline(always)]
    fn length<P: Packet>(packet: P) -> u32 {
        match packet.load::<Ipv4Header>(L3) {
            Some(header) => u32::from(u16::from_be(header.total_len)),
            None => 0,
        }
    }

    #[inline(always)]
    fn header<P: Packet>(packet: P, src: Addr, dst: Addr, proto: u8, payload: u16) -> bool {
        let mut header = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: (20 + payload).to_be(),
            id: 0,
            // Not to be fragmented.
            fragment: 0x4000u16.to_be(),
            ttl: TTL,
            proto,
            checksum: 0,
            src: V4::raw(src),
            dst: V4::raw(dst),
        };
        let words = [
            u32::from_ne_bytes([
                0x45,
                0,
                (20 + payload).to_be_bytes()[0],
                (20 + payload).to_be_bytes()[1],
            ]),
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([TTL, proto, 0, 0]),
            header.src,
            header.dst,
        ];
        header.checksum = checksum::apply(NO_SUM, sum(&words));
        packet.store(L3, &header)
    }
}

impl Reply for V6 {
    const HEADER: u32 = 40;
    const UNREACHABLE: (u8, u8) = (1, 4);
    const TOO_BIG: (u8, u8) = (2, 0);
    const ICMP_PSEUDO: bool = true;

    #[inline(always)]
    fn length<P: Packet>(packet: P) -> u32 {
        match packet.load::<Ipv6Header>(L3) {
            Some(header) => 40 + u32::from(u16::from_be(header.payload_len)),
            None => 0,
        }
    }

    #[inline(always)]
    fn header<P: Packet>(packet: P, src: Addr, dst: Addr, proto: u8, payload: u16) -> bool {
        let header = Ipv6Header {
            version_class_flow: 0x6000_0000u32.to_be(),
            payload_len: payload.to_be(),
            next: proto,
            hop_limit: TTL,
            src: V6::raw(src),
            dst: V6::raw(dst),
        };
        packet.store(L3, &header)
    }
}

const TTL: u8 = 64;
/// A checksum field over nothing. It also is the other zero of one's complement: where the device
/// completes the sum and the field holds that of the pseudo header alone, it stands for 0.
const NO_SUM: u16 = 0xffff;

/// One ICMP error in a millisecond, as `net.ipv4.icmp_msgs_per_sec` has it,
const COST: u64 = 1_000_000;
/// and as many at once as `net.ipv4.icmp_msgs_burst`.
const BURST: u64 = 50 * COST;

/// Whether one more may be sent.
#[inline(always)]
pub fn may_answer(budget: &mut Budget, now: u64) -> bool {
    budget.spend(now, COST, BURST)
}

/// Whether a packet that was dropped for this reason is answered.
#[inline(always)]
pub fn is_answered(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoBackend
            | DropReason::NoServicePort
            | DropReason::DirectTooBig
            | DropReason::TooBig
    )
}

/// Makes the packet the refusal of what it was. False: it gets none.
#[inline(always)]
pub fn turn<E: Env, P: Resize>(env: &E, packet: P, headers: &Headers) -> bool {
    if headers.dst.is_v4() {
        answer::<V4, E, P>(env, packet, headers) != 0
    } else {
        answer::<V6, E, P>(env, packet, headers) != 0
    }
}

#[inline(never)]
fn answer<F: Reply, E: Env, P: Resize>(env: &E, packet: P, headers: &Headers) -> u32 {
    let Some([to, from]) = packet.load::<[[u8; 6]; 2]>(0) else {
        return 0;
    };
    // Nobody answers what was sent to many, or came from nobody.
    if to[0] & 1 != 0 || !is_unicast(headers.src) {
        return 0;
    }
    let too_big = headers.fits != 0;
    let done = match headers.kind {
        Kind::Tcp if !too_big => reset::<F, P>(packet, headers),
        Kind::EchoRequest | Kind::EchoReply if !too_big => false,
        // Of a datagram in pieces the first tells enough.
        Kind::Tcp | Kind::Ports | Kind::EchoRequest | Kind::EchoReply
            if headers.fragment != Fragment::Later =>
        {
            let message = if too_big { F::TOO_BIG } else { F::UNREACHABLE };
            env.with_budget(|budget| may_answer(budget, env.now())) == Some(true)
                && error::<F, P>(packet, headers, message, headers.fits)
        }
        Kind::Tcp | Kind::Ports | Kind::EchoRequest | Kind::EchoReply => false,
        Kind::IcmpError | Kind::Link | Kind::Other => false,
    };
    u32::from(done && packet.store(0, &[from, to]))
}

#[inline(always)]
fn is_unicast(addr: Addr) -> bool {
    let words = addr.words();
    if addr.is_v4() {
        let first = words[3].to_ne_bytes()[0];
        first != 0 && first != 127 && first < 224
    } else {
        words[0].to_ne_bytes()[0] != 0xff && addr != Addr::ANY && !addr.is_loopback()
    }
}

/// RFC 9293, 3.5.2: the reset takes its number from what the segment acknowledges, else it acknowledges
/// all of the segment.
#[inline(always)]
fn reset<F: Reply, P: Resize>(packet: P, headers: &Headers) -> bool {
    if headers.tcp_flags & RST != 0 || headers.fragment != Fragment::Whole {
        return false;
    }
    let length = F::length(packet);
    let Some(tcp) = packet.load::<TcpHeader>(headers.l4) else {
        return false;
    };
    let head = headers.l4 - L3 + u32::from(tcp.data_offset >> 4) * 4;
    let (seq, ack, flags) = if tcp.flags & ACK != 0 {
        (tcp.ack, 0, RST)
    } else {
        let data = length.saturating_sub(head);
        let marks = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
        let ack = u32::from_be(tcp.seq).wrapping_add(data).wrapping_add(marks);
        (0, ack.to_be(), RST | ACK)
    };
    let (sport, dport) = (tcp.dport, tcp.sport);
    let l4 = L3 + F::HEADER;
    let reply = TcpHeader {
        sport,
        dport,
        seq,
        ack,
        data_offset: 5 << 4,
        flags,
        window: 0,
        checksum: NO_SUM,
        urgent: 0,
    };
    let ports = u32::from(sport) + u32::from(dport);
    let bits = u32::from(u16::from_ne_bytes([5 << 4, flags]));
    let (src, dst) = (headers.dst, headers.src);
    packet.set_len(l4 + 20)
        && F::header(packet, src, dst, proto::TCP, 20)
        && packet.store(l4, &reply)
        && packet.l4_checksum(l4 + 16, pseudo(src, dst, proto::TCP, 20), true, false)
        && packet.l4_checksum(l4 + 16, sum(&[seq, ack, ports, bits]), false, false)
}

/// Words of a packet that an ICMP error quotes at most; what has more in front of its ports (a long chain
/// of IPv6 extensions) is dropped without an answer.
const MAX_QUOTE: u32 = 48;

/// Where what an ICMP error quotes of a packet ends: behind the IP header and 8 bytes more, which is all that RFC 792 asks for,
/// and enough to find a socket; of TCP behind all of its header, as the kernel cuts nothing off in front of a sum that a device
/// is to complete.
#[inline(always)]
pub fn quoted(headers: &Headers) -> u32 {
    headers.l4
        + if headers.kind == Kind::Tcp {
            size_of::<TcpHeader>() as u32
        } else {
            8
        }
}

/// Makes the packet an ICMP error about itself.
#[inline(always)]
fn error<F: Reply, P: Resize>(
    packet: P,
    headers: &Headers,
    (kind, code): (u8, u8),
    mtu: u32,
) -> bool {
    let quote = quoted(headers) - L3;
    if quote > MAX_QUOTE * 4 || packet.len() < L3 + quote || !packet.set_len(L3 + quote) {
        return false;
    }
    let mut total = 0u64;
    let mut word = 0;
    while word < MAX_QUOTE && word * 4 < quote {
        let Some(value) = packet.load::<u32>(L3 + word * 4) else {
            return false;
        };
        total += u64::from(value);
        word += 1;
    }
    let (src, dst) = (headers.dst, headers.src);
    let length = (8 + quote) as u16;
    // The last two of the four bytes behind the sum, in both families.
    let seq = (mtu as u16).to_be();
    total += u64::from(u16::from_ne_bytes([kind, code])) + u64::from(seq);
    if F::ICMP_PSEUDO {
        total += u64::from(pseudo(src, dst, F::ICMP, length));
    }
    let icmp = IcmpStart {
        kind,
        code,
        checksum: checksum::apply(NO_SUM, checksum::fold32(total)),
        id: 0,
        seq,
    };
    packet.make_room(F::HEADER + 8)
        && F::header(packet, src, dst, F::ICMP, length)
        && packet.store(L3 + F::HEADER, &icmp)
}

/// The sum of words as they lie in a packet.
#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u32 {
    let mut total = 0u64;
    let mut i = 0;
    while i < N {
        total += u64::from(words[i]);
        i += 1;
    }
    checksum::fold32(total)
}

/// The sum over the pseudo header. A mapped address adds a word of ones, which is nothing.
#[inline(always)]
pub(crate) fn pseudo(src: Addr, dst: Addr, proto: u8, length: u16) -> u32 {
    let rest = [u32::from(u16::from_ne_bytes([0, proto])) + u32::from(length.to_be())];
    checksum::add(
        checksum::add(sum(&src.words()), sum(&dst.words())),
        sum(&rest),
    )
}
