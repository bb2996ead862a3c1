//! What pods send to other machines: from the pod's device straight to the one it leaves by. The routing table is asked, the
//! node's IP stack is passed by.
//!
//! Only what the stack would do nothing with but pass it on. All else takes its way as ever: what is for the node, has options,
//! comes in pieces, ends its hops here, has no route or an unusual one; and what is too big for the way, because the stack cuts
//! it up or tells the sender (`to_pod` and `to_uplink` give such an error the addresses that the sender knows).

use crate::env::Env;
use crate::packet::{Packet, Ports};
use crate::parse::{ETH_IPV4, ETH_IPV6, Kind, L3, NO_TUPLE, V4, V6};
use crate::xdp::{Layout, Plain, is_elsewhere};
use xebec_ebpf_abi::{Config, Port, Tuple, forward as path, proto};

/// What the kernel knows beside maps and the packet's bytes.
pub trait Router {
    /// Bytes of payload in each of the packets that a device will make of this one; 0: it is one packet.
    fn segment(&self) -> u32;
    /// The device by which a packet of this length leaves that came in here; 0: that is the stack's to say.
    fn way(&self, tuple: &Tuple, len: u16) -> u32;
}

/// Makes a packet that a pod may send ready to leave, and says by which device; 0: it is as it was, and the stack's.
#[inline(always)]
pub fn leave<E: Env, R: Router, P: Packet>(env: &E, router: &R, packet: P, ethertype: u16) -> u32 {
    let wanted = env
        .config()
        .is_some_and(|c| c.flags & Config::PAST_STACK != 0);
    if !wanted {
        return 0;
    }
    match ethertype {
        ETH_IPV4 => forward::<V4, E, R, P>(env, router, packet),
        ETH_IPV6 => forward::<V6, E, R, P>(env, router, packet),
        _ => 0,
    }
}

#[inline(never)]
fn forward<F: Layout, E: Env, R: Router, P: Packet>(env: &E, router: &R, packet: P) -> u32 {
    let Some(plain) = F::plain(packet) else {
        return 0;
    };
    // The stack orders packets by what they ask of the network, and does not pass on what is longer or shorter than it says.
    let asks = packet
        .load::<u16>(L3)
        .is_none_or(|start| u16::from_be(start) & F::DSCP != 0);
    let whole = packet.len() == L3 + u32::from(plain.len);
    if asks || !whole || plain.ttl <= 1 || !is_elsewhere(plain.dst) {
        return 0;
    }
    let mut tuple = NO_TUPLE;
    let header = transport::<F, P>(packet, &plain, &mut tuple);
    if header == 0 {
        return 0;
    }
    let segment = router.segment();
    let len = if segment == 0 {
        u32::from(plain.len)
    } else {
        F::L4 - L3 + header + segment
    };
    if len > u32::from(u16::MAX) {
        return 0;
    }
    let device = router.way(&tuple, len as u16);
    if device == 0 {
        return 0;
    }
    // Only where `to_uplink` sees it; and a route may have less than its device, which the table does not tell here.
    let fits = env.uplink(device).is_some_and(|uplink| len <= uplink.mtu);
    // The hop limit is the first byte of its word: one less.
    let one_less = u32::from(!u16::from_ne_bytes([1, 0]));
    if !fits || !F::step(packet, &plain, one_less) {
        return 0;
    }
    env.forwarded(path::ROUTED, packet.len());
    device
}

/// Bytes of the transport header, which the packets made of this one all have; and what names the flow. 0: it is of no
/// protocol that is simply passed on, an extension of the IPv6 header for one.
#[inline(always)]
fn transport<F: Layout, P: Packet>(packet: P, plain: &Plain, tuple: &mut Tuple) -> u32 {
    let (ports, header) = match plain.proto {
        proto::TCP => match packet.load::<u8>(F::L4 + 12) {
            Some(offset) => (true, u32::from(offset >> 4) * 4),
            None => return 0,
        },
        proto::UDP => (true, 8),
        proto::SCTP => (true, 12),
        // What keeps the link itself going goes no further.
        proto::ICMP | proto::ICMPV6 => match packet.load::<u8>(F::L4) {
            Some(kind) if F::icmp_kind(kind) != Kind::Link => (false, 8),
            Some(_) | None => return 0,
        },
        _ => return 0,
    };
    let (mut sport, mut dport) = (0, 0);
    if ports {
        let Some(both) = packet.load::<Ports>(F::L4) else {
            return 0;
        };
        (sport, dport) = (both.sport, both.dport);
    }
    *tuple = Tuple::new(
        plain.src,
        Port::from_raw(sport),
        plain.dst,
        Port::from_raw(dport),
        plain.proto,
    );
    header
}
