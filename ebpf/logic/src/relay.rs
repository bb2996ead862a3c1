//! What routers say of the packets that direct server return sends between nodes: an ICMP error about one comes to this node, and
//! the client whose packet is inside is the one to be told, in its own addresses (RFC 2003, section 4).
//!
//! The error becomes one of the address that the client has asked, about the client's own packet: of what the router has quoted,
//! the header between nodes is taken away. How far it is quoted is the router's to say; most quote far more than that header.

use crate::checksum;
use crate::direct::{Outer, Wrap};
use crate::env::Env;
use crate::packet::{IcmpStart, Packet};
use crate::parse::{Family, Headers, Kind, L3, V4, V6};
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
/// It is as one for the client now.
pub const TURNED: u32 = 1;
/// It could not be made one.
pub const UNRELATED: u32 = 2;

/// Makes an ICMP error about a packet of this node's to a pod elsewhere one for the client whose packet that carried. It is then to
/// be read anew, and asked for by [`is_sent`]: here there is no stack left for that.
#[inline(never)]
pub fn turn<F: Tell, E: Env, P: Wrap>(env: &E, packet: P) -> u32 {
    let Some(outer) = F::plain(packet) else {
        return NOT_OURS;
    };
    // The router's header, ICMP, ours, the client's; of that the ports.
    const ICMP: u32 = 8;
    let (ours, inner) = (F::L4 + ICMP, F::L4 + ICMP + F::HEADER);
    let len = u32::from(outer.len);
    let shortest = 3 * F::HEADER + ICMP + 8;
    if len < shortest || packet.len() < L3 + len || !is_ours::<F, E, P>(env, packet, &outer, ours) {
        return NOT_OURS;
    }
    // One after the other: of several at once the verifier sees parts that nobody has written.
    let Some(icmp) = packet.load::<IcmpStart>(F::L4) else {
        return NOT_OURS;
    };
    let Some(client) = address::<F, P>(packet, inner, 0) else {
        return NOT_OURS;
    };
    let Some(asked) = address::<F, P>(packet, inner, 1) else {
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
        && packet.store(F::L4, &told);
    if done { TURNED } else { UNRELATED }
}

/// Whether this node has sent what an error is about, as read anew: anybody may write one.
#[inline(never)]
pub fn is_sent<E: Env>(env: &E, headers: &Headers) -> u32 {
    if !matches!(headers.inner_kind, Kind::Tcp | Kind::Ports) {
        return 0;
    }
    let sent = env.with_nat(&headers.tuple.reversed(), |nat| {
        nat.flags & Nat::DIRECT != 0
    });
    u32::from(sent == Some(true))
}

/// Whether an error that came in is about a packet which this node has sent to a pod of another one, as far as its headers say so.
#[inline(always)]
fn is_ours<F: Tell, E: Env, P: Packet>(env: &E, packet: P, outer: &Plain, ours: u32) -> bool {
    if outer.proto != F::ICMP {
        return false;
    }
    let is_error = packet
        .load::<u8>(F::L4)
        .is_some_and(|kind| F::icmp_kind(kind) == Kind::IcmpError);
    let wanted = env.config().is_some_and(|c| c.flags & Config::DIRECT != 0);
    if !is_error || !wanted || env.node_addr(&outer.dst).is_none() {
        return false;
    }
    // As `Outer::around` has written it.
    let (mask, first) = F::FIRST;
    let begins = packet
        .load::<u8>(ours)
        .is_some_and(|byte| byte & mask == first);
    let carries = packet
        .load::<u8>(ours + F::NEXT)
        .is_some_and(|next| next == F::TUNNEL);
    if !begins || !carries {
        return false;
    }
    let is_own = address::<F, P>(packet, ours, 0).is_some_and(|src| src == outer.dst);
    is_own && address::<F, P>(packet, ours, 1).is_some_and(|dst| env.range(&dst) & range::PODS != 0)
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
