//! Shortcuts: a TCP connection of a pod that has lived for a moment is judged once a second, not with every packet. In
//! between its packets read one header and ask one map.
//!
//! What must hold for that is asked when the shortcut is made: every policy on the way lets the connection pass, nothing
//! is translated, nobody has a limit. What could end that (an endpoint that is written or deleted, with its policy's epoch
//! and its flags) makes user space put another number into `GENERATION`. Packets that open or close a connection are
//! always judged.

use crate::conntrack::DECIDED;
use crate::env::Env;
use crate::packet::{Packet, TcpIpv4, TcpIpv6, TcpStart};
use crate::parse::{ETH_IPV4, ETH_IPV6, FIN, Fragment, Headers, Kind, L3, RST, SYN};
use xebec_ebpf_abi::{Addr, Endpoint, Port, Shortcut, Tuple, forward, proto};

/// What [`take`] says: there is no shortcut.
pub const JUDGE: u32 = u32::MAX;
/// What [`take`] says: on to the stack.
pub const STACK: u32 = Shortcut::STACK;

const OPENS_OR_ENDS: u8 = SYN | FIN | RST;

/// Follows the shortcut of a packet that came from the pod at `ifindex`, if there is one: counts the packet and readies it
/// for where it goes. [`JUDGE`], [`STACK`], or the host-side device of the pod that it is for.
#[inline(always)]
pub fn take<E: Env, P: Packet>(env: &E, packet: P, ethertype: u16, ifindex: u32) -> u32 {
    match ethertype {
        ETH_IPV4 => take_v4(env, packet, ifindex),
        ETH_IPV6 => take_v6(env, packet, ifindex),
        _ => JUDGE,
    }
}

#[inline(never)]
fn take_v4<E: Env, P: Packet>(env: &E, packet: P, ifindex: u32) -> u32 {
    let Some(read) = packet.glimpse::<TcpIpv4>(L3) else {
        return JUDGE;
    };
    let (ip, tcp) = (&read.ip, &read.tcp);
    // Without options, and no fragment.
    let is_plain = ip.version_ihl == 0x45 && u16::from_be(ip.fragment) & 0x3fff == 0;
    if !is_plain || ip.proto != proto::TCP || tcp.flags & OPENS_OR_ENDS != 0 {
        return JUDGE;
    }
    let (src, dst) = (Addr::from_v4_word(ip.src), Addr::from_v4_word(ip.dst));
    follow(env, packet, &tcp_tuple(src, dst, tcp), ifindex)
}

#[inline(never)]
fn take_v6<E: Env, P: Packet>(env: &E, packet: P, ifindex: u32) -> u32 {
    let Some(read) = packet.glimpse::<TcpIpv6>(L3) else {
        return JUDGE;
    };
    let (ip, tcp) = (&read.ip, &read.tcp);
    let is_plain = u32::from_be(ip.version_class_flow) >> 28 == 6 && ip.next == proto::TCP;
    if !is_plain || tcp.flags & OPENS_OR_ENDS != 0 {
        return JUDGE;
    }
    let (src, dst) = (Addr::from_words(ip.src), Addr::from_words(ip.dst));
    // It would name a connection of the other family.
    if src.is_v4() || dst.is_v4() {
        return JUDGE;
    }
    follow(env, packet, &tcp_tuple(src, dst, tcp), ifindex)
}

#[inline(always)]
fn tcp_tuple(src: Addr, dst: Addr, tcp: &TcpStart) -> Tuple {
    let (sport, dport) = (Port::from_raw(tcp.sport), Port::from_raw(tcp.dport));
    Tuple::new(src, sport, dst, dport, proto::TCP)
}

#[inline(always)]
fn follow<E: Env, P: Packet>(env: &E, packet: P, tuple: &Tuple, ifindex: u32) -> u32 {
    let followed = env.with_shortcut(Shortcut::place(tuple), |shortcut| {
        if shortcut.tuple != *tuple || shortcut.from != ifindex {
            return JUDGE;
        }
        if shortcut.generation != env.generation() || shortcut.until <= env.now() {
            return JUDGE;
        }
        if shortcut.to != STACK && !packet.store(0, &[shortcut.pod_mac, shortcut.host_mac]) {
            return JUDGE;
        }
        shortcut.to
    });
    let to = followed.unwrap_or(JUDGE);
    if to == JUDGE {
        return JUDGE;
    }
    if to != STACK {
        env.forwarded(forward::TO_POD, packet.len());
    }
    env.forwarded(forward::FROM_POD, packet.len());
    to
}

/// Makes a shortcut for a packet that was judged and goes on, straight to the pod behind a device or to the [`STACK`], if
/// its flow has just been pushed on ([`STEP`](crate::conntrack::STEP)): nobody pays for connections that are short.
#[inline(never)]
pub fn make<E: Env>(env: &E, headers: &Headers, ifindex: u32, to: u32) -> u32 {
    const AGAINST: u32 = Headers::NEW | Headers::TRANSLATED;
    if headers.kind != Kind::Tcp
        || headers.fragment != Fragment::Whole
        || headers.tcp_flags & OPENS_OR_ENDS != 0
        || headers.notes & (Headers::PUSHED | AGAINST) != Headers::PUSHED
        || headers.limited != 0
    {
        return 0;
    }
    let until = env.now() + DECIDED;
    let mut shortcut = Shortcut::new(headers.tuple, ifindex, to, until, headers.generation);
    if to != STACK {
        let Some(endpoint) = env.endpoint(&headers.dst) else {
            return 0;
        };
        if endpoint.flags & Endpoint::LIMIT_INGRESS != 0 {
            return 0;
        }
        shortcut.pod_mac = endpoint.pod_mac;
        shortcut.host_mac = endpoint.host_mac;
    }
    env.with_shortcut(Shortcut::place(&headers.tuple), |place| *place = shortcut);
    1
}
