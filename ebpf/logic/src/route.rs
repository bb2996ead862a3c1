//! What pods send to other machines: from the pod's device straight to the one it leaves by. The routing table is asked, the
//! node's IP stack is passed by. And what does not fit its way, also of others.
//!
//! Only what the stack would do nothing with but pass it on, and what is too big for its way: of that its sender is told.
//! All else takes its way as ever: what is for the node, has options, comes in pieces, ends its hops here, has no route or an
//! unusual one, or is too big but may be cut up.

use crate::env::Env;
use crate::packet::{Packet, Ports};
use crate::parse::{ETH_IPV4, ETH_IPV6, Family, Fragment, Headers, Kind, L3, NO_TUPLE, V4, V6};
use crate::pod;
use crate::reject::{self, Reply, Resize};
use crate::xdp::{Layout, Plain, is_elsewhere};
use xebec_ebpf_abi::{Addr, Config, DropReason, Endpoint, Port, Tuple, forward as path, proto};

/// What the kernel knows of a packet beside its bytes.
pub trait Router: Copy {
    /// Bytes of payload in each of the packets that a device will make of this one; 0: it is one packet.
    fn segment(self) -> u32;
    /// Rules may lead marked packets anywhere, and nobody here asks them for a mark; 0: it has none.
    fn mark(self) -> u32;
    /// How packets of a flow leave that came in where this one did: a [`Way`] without a device is the stack's to say.
    fn way(self, tuple: &Tuple) -> u64;
}

/// A device, and how many bytes an IP packet may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    pub device: u32,
    pub mtu: u32,
}

/// In one number, for functions of their own: see `conntrack::judge`.
impl Way {
    #[inline(always)]
    pub const fn of(number: u64) -> Way {
        Way {
            device: (number >> 32) as u32,
            mtu: number as u32,
        }
    }

    #[inline(always)]
    pub const fn number(self) -> u64 {
        (self.device as u64) << 32 | self.mtu as u64
    }
}

/// The largest IP packet for any route of a device, of which the routing table says `mtu`: that does not tell what a route has
/// of its own, which the agent reads.
#[inline(always)]
pub fn largest<E: Env>(env: &E, device: u32, mtu: u32) -> u32 {
    match env.uplink(device) {
        Some(uplink) if uplink.mtu != 0 && uplink.mtu < mtu => uplink.mtu,
        Some(_) | None => mtu,
    }
}

/// Bytes of each IP packet that a device makes of this one, with so much payload in each; nobody can say: more than fits
/// anywhere.
#[inline(always)]
pub fn piece<P: Packet>(packet: P, headers: &Headers, segment: u32) -> u32 {
    match transport_len(packet, headers.l4, headers.proto) {
        0 => u32::MAX,
        header => headers.l4 - L3 + header + segment,
    }
}

/// Bytes of a transport header; 0: it cannot be read.
#[inline(always)]
fn transport_len<P: Packet>(packet: P, l4: u32, proto: u8) -> u32 {
    match proto {
        proto::TCP => packet
            .load::<u8>(l4 + 12)
            .map_or(0, |offset| u32::from(offset >> 4) * 4),
        proto::SCTP => 12,
        _ => 8,
    }
}

/// No way takes less of IPv6, where nobody need believe who says so, and hardly one of IPv4.
pub const SMALLEST: u32 = 1280;

/// Whether a packet of a family that is too big is told so. In IPv4 a router may be allowed to cut it up, which the stack
/// does.
#[inline(always)]
fn is_told<F: Family, P: Packet>(packet: P, mtu: u32) -> bool {
    if F::IS_V4 {
        packet
            .load::<u16>(L3 + 6)
            .is_some_and(|fragment| u16::from_be(fragment) & 0x4000 != 0)
    } else {
        mtu >= SMALLEST
    }
}

/// What becomes of a packet that a pod may send, which came from its device `ifindex`. A [`Way`] without a device: it is the
/// stack's, as it was. One without a size: the packet is ready to leave by that device. Both: its sender is to be told that no
/// more than that fits, see [`refuse`].
#[inline(always)]
pub fn leave<E: Env, R: Router, P: Packet>(
    env: &E,
    router: R,
    packet: P,
    ethertype: u16,
    ifindex: u32,
) -> Way {
    let wanted = env
        .config()
        .is_some_and(|c| c.flags & Config::PAST_STACK != 0);
    if !wanted || router.mark() != 0 {
        return Way::default();
    }
    Way::of(match ethertype {
        ETH_IPV4 => forward::<V4, E, R, P>(env, router, packet, ifindex),
        ETH_IPV6 => forward::<V6, E, R, P>(env, router, packet, ifindex),
        _ => 0,
    })
}

#[inline(never)]
fn forward<F: Layout, E: Env, R: Router, P: Packet>(
    env: &E,
    router: R,
    packet: P,
    ifindex: u32,
) -> u64 {
    const STACK: u64 = 0;
    let Some(plain) = F::plain(packet) else {
        return STACK;
    };
    // The stack orders packets by what they ask of the network, and does not pass on what is longer or shorter than it says.
    let asks = packet
        .load::<u16>(L3)
        .is_none_or(|start| u16::from_be(start) & F::DSCP != 0);
    let whole = packet.len() == L3 + u32::from(plain.len);
    if asks || !whole || plain.ttl <= 1 || !is_elsewhere(plain.dst) {
        return STACK;
    }
    let mut tuple = NO_TUPLE;
    let header = transport::<F, P>(packet, &plain, &mut tuple);
    if header == 0 {
        return STACK;
    }
    let segment = router.segment();
    let len = if segment == 0 {
        u32::from(plain.len)
    } else {
        F::L4 - L3 + header + segment
    };
    let Way { device, mtu } = Way::of(router.way(&tuple));
    if device == 0 {
        return STACK;
    }
    if len > mtu {
        let told = is_told::<F, P>(packet, mtu)
            && is_answerable::<F, P>(packet, &plain)
            && pod::own(env, &plain.src, ifindex)
                .is_some_and(|endpoint| endpoint.flags & Endpoint::DIRECT != 0);
        return if told {
            Way { device, mtu }.number()
        } else {
            STACK
        };
    }
    // Only where `to_uplink` sees it; and a route may have less than its device, which the stack knows of each.
    let fits = env.uplink(device).is_some_and(|uplink| len <= uplink.mtu);
    // The hop limit is the first byte of its word: one less.
    let one_less = u32::from(!u16::from_ne_bytes([1, 0]));
    if !fits || !F::step(packet, &plain, one_less) {
        return STACK;
    }
    env.forwarded(path::ROUTED, packet.len());
    Way { device, mtu: 0 }.number()
}

/// Bytes of the transport header, which the packets made of this one all have; and what names the flow. 0: it is of no
/// protocol that is simply passed on, an extension of the IPv6 header for one.
#[inline(always)]
fn transport<F: Layout, P: Packet>(packet: P, plain: &Plain, tuple: &mut Tuple) -> u32 {
    let ports = match plain.proto {
        proto::TCP | proto::UDP | proto::SCTP => true,
        // What keeps the link itself going goes no further.
        proto::ICMP | proto::ICMPV6 => match packet.load::<u8>(F::L4) {
            Some(kind) if F::icmp_kind(kind) != Kind::Link => false,
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
    transport_len(packet, F::L4, plain.proto)
}

/// Whether [`reject`] answers such a packet: an ICMP error is not about another one.
#[inline(always)]
fn is_answerable<F: Layout, P: Packet>(packet: P, plain: &Plain) -> bool {
    match plain.proto {
        proto::TCP | proto::UDP | proto::SCTP => true,
        proto if proto == F::ICMP => packet
            .load::<u8>(F::L4)
            .is_some_and(|kind| matches!(F::icmp_kind(kind), Kind::EchoRequest | Kind::EchoReply)),
        _ => false,
    }
}

/// Says in `headers.fits` how much fits the way of a packet that is to become `headers.to`, if it does not and its sender is to
/// be told so. It does, has arrived, or the stack knows better: nothing is said. (In memory: so what the verifier knows of each
/// way through here is forgotten where they meet.)
#[inline(never)]
pub fn measure<E: Env, R: Router, P: Packet>(env: &E, router: R, packet: P, headers: &mut Headers) {
    let is_answered = matches!(
        headers.kind,
        Kind::Tcp | Kind::Ports | Kind::EchoRequest | Kind::EchoReply
    );
    if !is_answered || headers.fragment != Fragment::Whole || router.mark() != 0 {
        return;
    }
    if !is_elsewhere(headers.to.dst) || env.endpoint(&headers.to.dst).is_some() {
        return;
    }
    let segment = router.segment();
    let len = if segment == 0 {
        packet.len() - L3
    } else {
        piece(packet, headers, segment)
    };
    let Way { device, mtu } = Way::of(router.way(&headers.to));
    if device == 0 || len <= mtu || len == u32::MAX {
        return;
    }
    let told = if headers.dst.is_v4() {
        is_whole::<V4, P>(packet) && is_told::<V4, P>(packet, mtu)
    } else {
        is_whole::<V6, P>(packet) && is_told::<V6, P>(packet, mtu)
    };
    if told {
        headers.fits = mtu;
    }
}

/// Whether a packet is as long as it says.
#[inline(always)]
fn is_whole<F: Reply, P: Packet>(packet: P) -> bool {
    packet.len() == L3 + F::length(packet)
}

/// Makes a packet of a pod that is too big for its way, of which [`leave`] has said so, ready for [`pod::answer`] to tell it
/// what fits, as the router that this node is: about the packet as the pod has sent it. `judged`: it was [`pod::leaves`] that
/// let it go, and `headers` are its; otherwise it took a shortcut, and nothing was changed. False: it is the stack's, as it was.
#[inline(always)]
pub fn refuse<E: Env, P: Resize>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    way: Way,
    judged: bool,
) -> bool {
    if !judged {
        fill(packet, headers);
    }
    let translated = headers.notes & Headers::TRANSLATED != 0;
    if translated {
        // What its answer would become, turned round.
        let (answer, to) = (headers.tuple.reversed(), &mut headers.to);
        let known = env.with_nat(&answer, |nat| *to = nat.to.reversed());
        if known.is_none() {
            return false;
        }
    }
    let len = packet.len();
    // The kernel lets nobody cut off what carries another packet of the pod's own.
    if !packet.set_len(reject::quoted(headers)) {
        return false;
    }
    env.dropped(DropReason::TooBig, len);
    headers.refused = DropReason::TooBig as u32;
    headers.fits = way.mtu;
    if translated && pod::apply(packet, headers).is_err() {
        // All of it was read before.
        headers.kind = Kind::Other;
    }
    if let Some(uplink) = env.uplink(way.device) {
        let own = if headers.dst.is_v4() {
            uplink.v4
        } else {
            uplink.v6
        };
        if own != Addr::ANY {
            headers.dst = own;
        }
    }
    true
}

/// Says of a packet that took a shortcut what [`reject`] wants to know.
#[inline(never)]
fn fill<P: Packet>(packet: P, headers: &mut Headers) {
    *headers = Headers::EMPTY;
    headers.kind = Kind::Tcp;
    headers.proto = proto::TCP;
    if packet
        .load::<u8>(L3)
        .is_some_and(|version| version >> 4 == 4)
    {
        fill_from::<V4, P>(packet, headers);
    } else {
        fill_from::<V6, P>(packet, headers);
    }
}

#[inline(always)]
fn fill_from<F: Layout, P: Packet>(packet: P, headers: &mut Headers) {
    let (Some(plain), Some(ports)) = (F::plain(packet), packet.load::<Ports>(F::L4)) else {
        return;
    };
    (headers.src, headers.dst, headers.l4) = (plain.src, plain.dst, F::L4);
    headers.tuple = Tuple::new(
        plain.src,
        Port::from_raw(ports.sport),
        plain.dst,
        Port::from_raw(ports.dport),
        proto::TCP,
    );
}
