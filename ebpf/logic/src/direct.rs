//! Direct server return: a client's packet goes to a pod of another node as it is, inside a packet of this node's, and
//! the pod answers the client itself. See `abi::direct` for what is on the wire.
//!
//! The sender chooses the backend, decrements the hop limit and puts the packet in. The receiver takes it out, remembers the
//! flow as that of a client of a pod of its own, and goes on as if the packet had come without anything around it.

use crate::checksum;
use crate::conntrack;
use crate::env::Env;
use crate::nat::{self, Owner};
use crate::packet::{Ipv4Header, Ipv6Header, Packet};
use crate::parse::{self, ETH_IPV4, ETH_IPV6, Family, Fragment, Headers, Kind, L3, V4, V6};
use crate::pod::{self, Verdict};
use crate::reject::{Reply, Resize};
use crate::relay::{self, Tell};
use crate::route::{self, Router, Way};
use crate::xdp;
use xebec_ebpf_abi::{
    Addr, Backend, Config, DropReason, Nat, Port, Tuple, direct::range, forward, proto,
};

/// A packet that can be put into another one, and taken out again.
pub trait Wrap: Resize {
    /// Makes room for a header of this family between the link header and the IP header, and knows from then on that this
    /// packet carries another one.
    fn put_in(&self, v4: bool) -> bool;
    /// Takes such a header away.
    fn take_out(&self, v4: bool) -> bool;
}

/// An IP version that can be around a packet of its own.
pub trait Outer: Reply {
    /// What the outer header says is inside.
    const TUNNEL: u8;
    /// Offset in the outer header of the pod's port.
    const PORT: u32;
    /// Offset of the hop limit.
    const HOPS: u32;
    /// Bytes of the packet of this family whose header is at `at`, as that says; 0: it cannot be one.
    fn length_at<P: Packet>(packet: P, at: u32) -> u32;
    /// Writes the outer header for `len` bytes inside.
    fn around<P: Packet>(packet: P, src: Addr, dst: Addr, port: u16, len: u16) -> bool;
}

/// A packet has been routed once when it is put in; from there it has as far as any.
const HOPS: u8 = 64;

impl Outer for V4 {
    const TUNNEL: u8 = proto::IPIP;
    const PORT: u32 = 4;
    const HOPS: u32 = 8;

    #[inline(always)]
    fn length_at<P: Packet>(packet: P, at: u32) -> u32 {
        match packet.load::<Ipv4Header>(at) {
            Some(header) if header.version_ihl >> 4 == 4 => {
                u32::from(u16::from_be(header.total_len))
            }
            Some(_) | None => 0,
        }
    }

    #[inline(always)]
    fn around<P: Packet>(packet: P, src: Addr, dst: Addr, port: u16, len: u16) -> bool {
        let total_len = (20 + len).to_be();
        let [high, low] = total_len.to_ne_bytes();
        let [port_high, port_low] = port.to_ne_bytes();
        let (src, dst) = (V4::raw(src), V4::raw(dst));
        // Not to be fragmented: the number is the port.
        let words = [
            u32::from_ne_bytes([0x45, 0, high, low]),
            u32::from_ne_bytes([port_high, port_low, 0x40, 0]),
            u32::from_ne_bytes([HOPS, proto::IPIP, 0, 0]),
        ];
        let mut sum = u64::from(src) + u64::from(dst);
        let mut i = 0;
        while i < 3 {
            sum += u64::from(words[i]);
            i += 1;
        }
        let header = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len,
            id: port,
            fragment: 0x4000u16.to_be(),
            ttl: HOPS,
            proto: proto::IPIP,
            checksum: !checksum::fold16(sum),
            src,
            dst,
        };
        packet.store(L3, &header)
    }
}

impl Outer for V6 {
    const TUNNEL: u8 = proto::IPV6;
    const PORT: u32 = 2;
    const HOPS: u32 = 7;

    #[inline(always)]
    fn length_at<P: Packet>(packet: P, at: u32) -> u32 {
        match packet.load::<Ipv6Header>(at) {
            Some(header) if u32::from_be(header.version_class_flow) >> 28 == 6 => {
                40 + u32::from(u16::from_be(header.payload_len))
            }
            Some(_) | None => 0,
        }
    }

    #[inline(always)]
    fn around<P: Packet>(packet: P, src: Addr, dst: Addr, port: u16, len: u16) -> bool {
        let [high, low] = port.to_ne_bytes();
        let header = Ipv6Header {
            version_class_flow: u32::from_ne_bytes([0x60, 0, high, low]),
            payload_len: len.to_be(),
            next: proto::IPV6,
            hop_limit: HOPS,
            src: V6::raw(src),
            dst: V6::raw(dst),
        };
        packet.store(L3, &header)
    }
}

/// Whether the backend that was just chosen for a flow from outside can be sent its packets as they are. It has to be a pod of
/// another node, which takes such packets; that node has to know this one by the address it sends from; and the client must not
/// be in the cluster: a pod's answer to one beside it would not pass the device where it gets the Service's address.
#[inline(never)]
pub fn may<E: Env>(env: &E, headers: &Headers, ifindex: u32) -> bool {
    let client = headers.tuple.src;
    let chosen = &headers.backend.backend;
    if headers.notes & Headers::DIRECT == 0 || chosen.flags & Backend::LOCAL != 0 {
        return false;
    }
    if headers.to.dport != headers.tuple.dport && !nat::has_ports(headers.proto) {
        return false;
    }
    if !xdp::is_elsewhere(client) || env.node_addr(&client).is_some() {
        return false;
    }
    let own = source(env, ifindex, client.is_v4());
    own != Addr::ANY
        && env.range(&chosen.addr) & range::PODS != 0
        && env.range(&client) & (range::PODS | range::NODE) == 0
        && env.range(&own) & range::NODE != 0
}

/// The address that this node sends from, for what came in on a device; [`Addr::ANY`]: there is none.
#[inline(always)]
pub fn source<E: Env>(env: &E, ifindex: u32, v4: bool) -> Addr {
    match env.uplink(ifindex) {
        Some(uplink) if v4 => uplink.v4,
        Some(uplink) => uplink.v6,
        None => Addr::ANY,
    }
}

/// Remembers a new flow; false: the map took no entry.
#[inline(always)]
pub fn keep<E: Env>(env: &E, headers: &mut Headers, set: u32, now: u64) -> Result<(), DropReason> {
    let owner = Owner {
        flags: Nat::DIRECT,
        backend: headers.backend.id,
        set,
    };
    nat::remember(env, &headers.tuple, &mut headers.to, owner, now)
}

/// What [`put`] answers, as plain numbers: see `conntrack::judge`.
const SENT: u32 = 0;
const OUT_OF_HOPS: u32 = 1;
const NO_ROUTE: u32 = 2;
const TOO_BIG: u32 = 3;

/// Makes a packet, which came in on the device `ifindex`, ready to go to the pod that `headers.to` leads to, by
/// `headers.device`.
#[inline(always)]
pub fn send<E: Env, R: Router, P: Wrap>(
    env: &E,
    router: R,
    packet: P,
    headers: &mut Headers,
    ifindex: u32,
) -> Result<(), DropReason> {
    let bytes = packet.len();
    let answer = if headers.dst.is_v4() {
        put::<V4, E, R, P>(env, router, packet, headers, ifindex)
    } else {
        put::<V6, E, R, P>(env, router, packet, headers, ifindex)
    };
    match answer {
        SENT => {}
        OUT_OF_HOPS => return Err(DropReason::TtlExceeded),
        NO_ROUTE => return Err(DropReason::DirectNoRoute),
        TOO_BIG => return Err(DropReason::DirectTooBig),
        _ => return Err(DropReason::RewriteFailed),
    }
    env.forwarded(forward::UPLINK_DIRECT, bytes);
    headers.tuple = headers.to;
    Ok(())
}

#[inline(never)]
fn put<F: Outer, E: Env, R: Router, P: Wrap>(
    env: &E,
    router: R,
    packet: P,
    headers: &mut Headers,
    ifindex: u32,
) -> u32 {
    const FAILED: u32 = 4;
    if headers.ttl <= 1 {
        return OUT_OF_HOPS;
    }
    let own = source(env, ifindex, F::IS_V4);
    let len = F::length_at(packet, L3);
    // Nobody can say how long one is that does not say so itself.
    if own == Addr::ANY || len == 0 || packet.len() < L3 + len {
        return FAILED;
    }
    let way = Way::of(router.way(&around_tuple::<F>(own, headers.to.dst)));
    if way.device == 0 {
        return NO_ROUTE;
    }
    let mtu = route::largest(env, way.device, way.mtu);
    if longest::<F, R, P>(router, packet, headers, len) > mtu {
        headers.fits = mtu.saturating_sub(F::HEADER);
        return TOO_BIG;
    }
    // The hop limit is the first byte of its word: one less.
    let one_less = u32::from(!u16::from_ne_bytes([1, 0]));
    if let Some(offset) = F::CHECKSUM
        && !packet.l3_checksum(L3 + offset, one_less)
    {
        return FAILED;
    }
    let done = packet.store(L3 + F::HOPS, &(headers.ttl - 1))
        && packet.put_in(F::IS_V4)
        && F::around(
            packet,
            own,
            headers.to.dst,
            headers.to.dport.raw(),
            len as u16,
        );
    headers.device = way.device;
    if done { SENT } else { FAILED }
}

/// Bytes of the largest IP packet that leaves. A device that makes several of one is told to put less into each, so that they
/// are as long as they were; it cannot be where each is a datagram.
#[inline(always)]
fn longest<F: Outer, R: Router, P: Packet>(
    router: R,
    packet: P,
    headers: &Headers,
    len: u32,
) -> u32 {
    let segment = router.segment();
    if segment == 0 {
        return len + F::HEADER;
    }
    let whole = route::piece(packet, headers, segment);
    if headers.proto == proto::TCP {
        whole
    } else {
        whole.saturating_add(F::HEADER)
    }
}

/// What routes are asked for of a packet with another one inside.
#[inline(always)]
pub fn around_tuple<F: Outer>(src: Addr, dst: Addr) -> Tuple {
    const NONE: Port = Port::from_raw(0);
    Tuple::new(src, NONE, dst, NONE, F::TUNNEL)
}

/// The same in a driver: writes link and outer header in front of a packet for which there is already room, and says how long
/// the packet inside is; 0: it could not be written.
#[inline(always)]
pub fn around<F: Outer, P: Packet>(packet: P, decided: &xdp::Decided) -> u32 {
    let ethertype = if F::IS_V4 { ETH_IPV4 } else { ETH_IPV6 };
    let len = F::length_at(packet, L3 + F::HEADER);
    let done = packet.store(0, &decided.link)
        && packet.store(12, &ethertype.to_be())
        && F::around(
            packet,
            decided.src,
            decided.dst,
            decided.ports[1],
            len as u16,
        );
    if done { len } else { 0 }
}

/// A packet came in on an uplink: if it is one for a pod of this node with a client's packet inside, that is taken out, and its
/// flow remembered, for the programs behind this one to go on with.
#[inline(always)]
pub fn arrives<E: Env, R: Router, P: Wrap>(
    env: &E,
    router: R,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
) -> Verdict {
    let answer = match ethertype {
        ETH_IPV4 => look::<V4, E, P>(env, packet, headers),
        ETH_IPV6 => look::<V6, E, P>(env, packet, headers),
        _ => NOT_OURS,
    };
    let reason = match answer {
        NOT_OURS => return Verdict::Pass,
        TAKEN => match settle(env, headers) {
            Ok(()) => {
                env.forwarded(forward::DIRECT_RECEIVED, packet.len());
                return Verdict::Pass;
            }
            Err(reason) => reason,
        },
        TOLD => return tell(env, router, packet, headers),
        UNRELATED => DropReason::IcmpUnrelated,
        FOREIGN => DropReason::DirectSource,
        _ => DropReason::DirectInner,
    };
    pod::refuse(env, packet, reason)
}

/// What [`take`] answers, as plain numbers.
const NOT_OURS: u32 = 0;
const TAKEN: u32 = 1;
/// No node sent it.
const FOREIGN: u32 = 2;
/// There is no client's packet inside.
const BROKEN: u32 = 3;
/// It is what a router says of a packet that this node has sent, and now for the client whose packet that was.
const TOLD: u32 = 4;

/// Sends a client what a router says, by the way that there is to it.
#[inline(always)]
fn tell<E: Env, R: Router, P: Packet>(env: &E, router: R, packet: P, headers: &Headers) -> Verdict {
    let way = Way::of(router.way(&headers.tuple));
    if way.device == 0 {
        return pod::refuse(env, packet, DropReason::DirectNoRoute);
    }
    env.forwarded(forward::DIRECT_ERROR, packet.len());
    Verdict::Neighbor(way.device)
}

/// What a router says, or a packet to take out.
#[inline(always)]
fn look<F: Tell, E: Env, P: Wrap>(env: &E, packet: P, headers: &mut Headers) -> u32 {
    match relay::turn::<F, E, P>(env, packet) {
        relay::TURNED => {
            let read = parse::parse::<F, P>(packet, headers).is_ok();
            if read && relay::is_sent(env, headers) != 0 {
                TOLD
            } else {
                UNRELATED
            }
        }
        relay::UNRELATED => UNRELATED,
        _ => take::<F, E, P>(env, packet, headers),
    }
}

/// Takes the packet inside out and reads it: `headers` is then its, and `headers.asked` the pod it was sent to.
#[inline(always)]
fn take<F: Tell, E: Env, P: Wrap>(env: &E, packet: P, headers: &mut Headers) -> u32 {
    // No node sends it in pieces or with options.
    let Some(outer) = F::plain(packet) else {
        return NOT_OURS;
    };
    if outer.proto != F::TUNNEL {
        return NOT_OURS;
    }
    let wanted = env.config().is_some_and(|c| c.flags & Config::DIRECT != 0);
    if !wanted || env.endpoint(&outer.dst).is_none() {
        return NOT_OURS;
    }
    if env.range(&outer.src) & range::NODE == 0 {
        return FOREIGN;
    }
    let Some(port) = packet.load::<u16>(L3 + F::PORT) else {
        return BROKEN;
    };
    let (len, inner) = (u32::from(outer.len), F::length_at(packet, F::L4));
    if inner < F::HEADER || inner + F::HEADER != len || packet.len() < L3 + len {
        return BROKEN;
    }
    if !packet.take_out(F::IS_V4) || parse::parse::<F, P>(packet, headers).is_err() {
        return BROKEN;
    }
    headers.asked = (outer.dst, Port::from_raw(port));
    let carried = matches!(headers.kind, Kind::Tcp | Kind::Ports | Kind::IcmpError);
    // A packet whose answer would not leave by an uplink, or that has arrived, was not put in by a node that balances.
    let is_own = |addr: &Addr| env.endpoint(addr).is_some() || env.node_addr(addr).is_some();
    let loops = is_own(&headers.src) || env.endpoint(&headers.dst).is_some();
    if loops || !(carried || headers.fragment == Fragment::Later) {
        return BROKEN;
    }
    TAKEN
}

/// Sees to it that the flow of a packet that was taken out leads to the pod it was sent to.
#[inline(always)]
fn settle<E: Env>(env: &E, headers: &mut Headers) -> Result<(), DropReason> {
    conntrack::fragment(env, headers)?;
    let now = env.now();
    // An entry from when it was this node that sent it elsewhere knows of no answers.
    let known = nat::lookup(env, headers, now).is_some_and(|flags| flags & Nat::DIRECT == 0);
    match lead(env, headers, known, now) {
        KEPT => Ok(()),
        UNRELATED => Err(DropReason::IcmpUnrelated),
        UNSUPPORTED => Err(DropReason::ProtocolUnsupported),
        FULL => Err(DropReason::NatTableFull),
        _ => Err(DropReason::NatPortExhausted),
    }
}

/// What [`lead`] answers, as plain numbers.
const KEPT: u32 = 0;
const UNSUPPORTED: u32 = 2;
const FULL: u32 = 3;
const CLASHES: u32 = 4;
/// An error about nothing that is known here; [`take`] answers it too.
const UNRELATED: u32 = 5;

#[inline(never)]
fn lead<E: Env>(env: &E, headers: &mut Headers, known: bool, now: u64) -> u32 {
    let opens = conntrack::opens(headers);
    let related = headers.kind == Kind::IcmpError;
    let (pod, port) = headers.asked;
    let (tuple, to) = (&headers.tuple, &mut headers.to);
    // What the client has asked for.
    headers.asked = (tuple.dst, tuple.dport);
    if known {
        // The port may have been counted up: see `abi::direct`.
        let there = to.dst == pod && (to.dport == port || !opens);
        if related || (there && to.src == tuple.src && to.sport == tuple.sport) {
            return KEPT;
        }
        // The node that sent it has chosen anew.
        env.remove_nat(&to.reversed());
        env.remove_nat(tuple);
    }
    if related {
        return UNRELATED;
    }
    if port != tuple.dport && !nat::has_ports(tuple.proto()) {
        return UNSUPPORTED;
    }
    *to = *tuple;
    to.dst = pod;
    to.dport = port;
    let owner = Owner {
        flags: 0,
        backend: 0,
        set: 0,
    };
    match nat::remember(env, tuple, to, owner, now) {
        Ok(()) => KEPT,
        Err(DropReason::NatTableFull) => FULL,
        Err(_) => CLASHES,
    }
}
