//! What routers say of the packets that direct server return sends between nodes: an ICMP error about one comes to this node, and
//! the client whose packet is inside is the one to be told, in its own addresses (RFC 2003, section 4).
//!
//! The error becomes one of the address that the client has asked, about the client's own packet: of what the router has quoted,
//! the header between nodes is taken away. How far it is quoted is the router's to say; most quote far more than that header.

use crate::checksum;
use crate::direct::{Outer, Wrap};
use crate::env::Env;
use crate::packet::{IcmpStart, Packet};
use crate::parse::{self, Family, Headers, Kind, L3, V4, V6};
use crate::reject::pseudo;
use crate::xdp::{Layout, Plain};
use xebec_ebpf_abi::{Addr, Config, Nat, direct::range};

/// An IP version whose errors can be told on.
pub trait Tell: Outer + Layout {
    /// Offset in the IP header of what it says is inside.
    const NEXT: u32;
    /// "There is no way to that host".
    const NO_WAY: (u8, u8);
    /// 32-bit words of the header without options.
    const WORDS: u32;
    /// What its first byte is, as far as the mask goes: routers may change what senders ask of the network.
    const FIRST: (u8, u8);
}

impl Tell for V4 {
    const NEXT: u32 = 9;
    const NO_WAY: (u8, u8) = (3, 1);
    const WORDS: u32 = 5;
    const FIRST: (u8, u8) = (0xff, 0x45);
}

impl Tell for V6 {
    const NEXT: u32 = 6;
    const NO_WAY: (u8, u8) = (1, 3);
    const WORDS: u32 = 10;
    const FIRST: (u8, u8) = (0xf0, 0x60);
}

/// What [`turn`] answers, as plain numbers: see `conntrack::judge`. The packet is as it was.
pub const NOT_OURS: u32 = 0;
/// It is for the client now.
pub const TURNED: u32 = 1;
/// Nobody here has sent what it is about.
pub const UNRELATED: u32 = 2;

/// Makes an ICMP error about a packet of this node's to a pod elsewhere one for the client whose packet that carried; `headers` is
/// then its.
#[inline(never)]
pub fn turn<F: Tell, E: Env, P: Wrap>(
    env: &E,
    packet: P,
    outer: &Plain,
    headers: &mut Headers,
) -> u32 {
    // The router's header, ICMP, ours, the client's; of that the ports.
    const ICMP: u32 = 8;
    let (ours, inner) = (F::L4 + ICMP, F::L4 + ICMP + F::HEADER);
    let len = u32::from(outer.len);
    let shortest = 3 * F::HEADER + ICMP + 8;
    if len < shortest || packet.len() < L3 + len || !is_ours::<F, E, P>(env, packet, outer, ours) {
        return NOT_OURS;
    }
    let (Some(icmp), Some(pod), Some(client), Some(asked)) = (
        packet.load::<IcmpStart>(F::L4),
        address::<F, P>(packet, ours, 1),
        address::<F, P>(packet, inner, 0),
        address::<F, P>(packet, inner, 1),
    ) else {
        return NOT_OURS;
    };
    let told = translated::<F>(&icmp);
    // All that is behind our header stays; what is before it comes from the sum and goes into it anew.
    let mut old = start(&icmp);
    let mut word = 0;
    while word < F::WORDS {
        let Some(value) = packet.load::<u32>(ours + word * 4) else {
            return NOT_OURS;
        };
        old += u64::from(value);
        word += 1;
    }
    let mut new = start(&told);
    let (was, is) = ((len - F::HEADER) as u16, (len - 2 * F::HEADER) as u16);
    if F::ICMP_PSEUDO {
        old += u64::from(pseudo(outer.src, outer.dst, F::ICMP, was));
        new += u64::from(pseudo(asked, client, F::ICMP, is));
    }
    let diff = checksum::add(checksum::fold32(new), !checksum::fold32(old));
    let told = IcmpStart {
        checksum: checksum::apply(icmp.checksum, diff),
        ..told
    };
    // Where the two headers of the node's were, there are now as many bytes as the error's own take.
    let done = packet.take_out(F::IS_V4)
        && F::header(packet, asked, client, F::ICMP, is)
        && packet.store(F::L4, &told)
        && parse::parse::<F, P>(packet, headers).is_ok();
    if !done || !matches!(headers.inner_kind, Kind::Tcp | Kind::Ports) {
        return UNRELATED;
    }
    // What was not sent is not told on: anybody may write such an error.
    let sent = env.with_nat(&headers.tuple.reversed(), |nat| {
        nat.flags & Nat::DIRECT != 0 && nat.to.dst == pod
    });
    if sent == Some(true) {
        TURNED
    } else {
        UNRELATED
    }
}

/// Whether an error that came in is about a packet which this node has sent to a pod of another one, as far as its headers say so.
#[inline(always)]
fn is_ours<F: Tell, E: Env, P: Packet>(env: &E, packet: P, outer: &Plain, ours: u32) -> bool {
    let kind = packet.load::<u8>(F::L4).map(F::icmp_kind);
    let wanted = env.config().is_some_and(|c| c.flags & Config::DIRECT != 0);
    if kind != Some(Kind::IcmpError) || !wanted || env.node_addr(&outer.dst).is_none() {
        return false;
    }
    let (Some(src), Some(dst)) = (
        address::<F, P>(packet, ours, 0),
        address::<F, P>(packet, ours, 1),
    ) else {
        return false;
    };
    let (mask, first) = F::FIRST;
    // As `Outer::around` has written it.
    packet.load::<u8>(ours).map(|byte| byte & mask) == Some(first)
        && packet.load::<u8>(ours + F::NEXT) == Some(F::TUNNEL)
        && src == outer.dst
        && env.range(&dst) & range::PODS != 0
}

/// The source (0) or destination (1) in the header at an offset.
#[inline(always)]
fn address<F: Family, P: Packet>(packet: P, at: u32, which: u32) -> Option<Addr> {
    let size = size_of::<F::Addr>() as u32;
    packet
        .load::<F::Addr>(at + F::ADDRS + which * size)
        .map(F::addr)
}

/// What the client is told of it, without its sum. Whatever else is wrong between the nodes, to the client there is no way.
#[inline(always)]
fn translated<F: Tell>(icmp: &IcmpStart) -> IcmpStart {
    let ((kind, code), fits) = if (icmp.kind, icmp.code) == F::TOO_BIG {
        // The last two of the four bytes behind the sum, in both families.
        let fits = u16::from_be(icmp.seq).saturating_sub(F::HEADER as u16);
        (F::TOO_BIG, fits)
    } else {
        (F::NO_WAY, 0)
    };
    IcmpStart {
        kind,
        code,
        checksum: 0,
        id: 0,
        seq: fits.to_be(),
    }
}

/// The sum of an ICMP header but for its own field.
#[inline(always)]
fn start(icmp: &IcmpStart) -> u64 {
    u64::from(u16::from_ne_bytes([icmp.kind, icmp.code])) + u64::from(icmp.id) + u64::from(icmp.seq)
}
