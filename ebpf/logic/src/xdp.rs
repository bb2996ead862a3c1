//! Packets at an uplink before the kernel has made anything of them: those of flows between a client outside and
//! a backend elsewhere turn round in the driver. Everything else passes on to tc, which can do all of it too.
//!
//! Such a flow is translated in both of its ends at once ([`Nat::BOTH`]). What a packet becomes is decided once a
//! second from the flow's entry and a route; in between, packets follow what was decided ([`Decided`]).

use crate::checksum;
use crate::conntrack::{self, DECIDED};
use crate::direct::{self, Outer};
use crate::env::Env;
use crate::nat::{self, Owner};
use crate::packet::{Ipv4Header, Ipv6Header, Packet};
use crate::parse::{FIN, Family, Fragment, Headers, Kind, L3, RST, SYN, V4, V6};
use crate::reject::Reply;
use crate::service;
use xebec_ebpf_abi::{Addr, Backend, Frontend, Nat, Port, Tuple, forward, proto};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to tc and the stack.
    Pass,
    /// Out of the device it came in on.
    Turn,
    /// Out of another device.
    Redirect(u32),
    /// [`decide`] and then [`follow`].
    Undecided,
    /// As `decided` says, once there is room for the outer header: [`wrap`].
    Wrap,
}

/// What becomes of a flow's packets in one direction, for a second.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Counts until then.
    pub until: u64,
    pub src: Addr,
    pub dst: Addr,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// What changes in the IPv4 header's sum, the hop limit's step included.
    pub l3: u32,
    /// What changes in the transport's sum.
    pub l4: u32,
    /// Destination and source of the next link.
    pub link: [u32; 3],
    /// Device to leave by; 0: the one it came in on.
    pub ifindex: u32,
    /// The hardware address that packets must be for.
    pub own: [u16; 3],
    /// Largest IP packet that fits.
    pub mtu: u16,
    /// One of `abi::forward`'s.
    pub path: u32,
}

/// What is known of a packet's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Everything.
    Known,
    /// Only the device: the stack has to ask for the neighbour, or to say that the packet is too big for the way.
    Device,
    /// Nothing: there is no way there, or the stack is its end.
    None,
}

/// What there is beside maps at this hook.
pub trait Driver {
    /// A clock that is cheap and may be some milliseconds late.
    fn now(&self) -> u64;
    /// The device the packet came in on.
    fn ifindex(&self) -> u32;
    /// The hardware address of a device that has this hook; none: it has not.
    fn own(&self, ifindex: u32) -> Option<[u16; 3]>;
    fn with_decided<R>(&self, key: &Tuple, f: impl FnOnce(&Decided) -> R) -> Option<R>;
    fn set_decided(&self, key: &Tuple, value: &Decided);
    /// Finds where a packet with this tuple and length goes: device, link and MTU of `decided`.
    fn next_hop(&self, tuple: &Tuple, len: u16, decided: &mut Decided) -> Hop;
}

/// A whole packet without options or extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    pub ttl: u8,
    /// Bytes of the IP packet.
    pub len: u16,
}

/// Where things are in a packet without options.
pub trait Layout: Family {
    /// Offset of the transport header.
    const L4: u32;
    /// In the header's first two bytes: what its sender asks of the network.
    const DSCP: u16;
    fn plain<P: Packet>(packet: P) -> Option<Plain>;
    /// Sum over the addresses, as the pseudo header has them.
    fn address_sum(plain: &Plain) -> u64;
    /// One hop fewer, and the header's sum.
    fn step<P: Packet>(packet: P, plain: &Plain, l3: u32) -> bool;
    fn set_addrs<P: Packet>(packet: P, src: Addr, dst: Addr) -> bool;
}

impl Layout for V4 {
    const L4: u32 = L3 + 20;
    const DSCP: u16 = 0x00fc;

    #[inline(always)]
    fn plain<P: Packet>(packet: P) -> Option<Plain> {
        let header: Ipv4Header = packet.load(L3)?;
        // More fragments, or an offset.
        let is_whole = header.fragment & 0x3fffu16.to_be() == 0;
        if header.version_ihl != 0x45 || !is_whole {
            return None;
        }
        Some(Plain {
            src: Addr::from_v4_word(header.src),
            dst: Addr::from_v4_word(header.dst),
            proto: header.proto,
            ttl: header.ttl,
            len: u16::from_be(header.total_len),
        })
    }

    #[inline(always)]
    fn address_sum(plain: &Plain) -> u64 {
        u64::from(V4::raw(plain.src)) + u64::from(V4::raw(plain.dst))
    }

    #[inline(always)]
    fn step<P: Packet>(packet: P, plain: &Plain, l3: u32) -> bool {
        let Some(sum) = packet.load::<u16>(L3 + 10) else {
            return false;
        };
        packet.store(L3 + 8, &plain.ttl.wrapping_sub(1))
            && packet.store(L3 + 10, &checksum::apply(sum, l3))
    }

    #[inline(always)]
    fn set_addrs<P: Packet>(packet: P, src: Addr, dst: Addr) -> bool {
        packet.store(L3 + 12, &[V4::raw(src), V4::raw(dst)])
    }
}

impl Layout for V6 {
    const L4: u32 = L3 + 40;
    const DSCP: u16 = 0x0fc0;

    #[inline(always)]
    fn plain<P: Packet>(packet: P) -> Option<Plain> {
        let header: Ipv6Header = packet.load(L3)?;
        let (src, dst) = (Addr::from_words(header.src), Addr::from_words(header.dst));
        let version = u32::from_be(header.version_class_flow) >> 28;
        if version != 6 || src.is_v4() || dst.is_v4() {
            return None;
        }
        Some(Plain {
            src,
            dst,
            proto: header.next,
            ttl: header.hop_limit,
            // A jumbogram says 0 and is left to the stack, as all that is too short for a header.
            len: u16::from_be(header.payload_len).saturating_add(40),
        })
    }

    #[inline(always)]
    fn address_sum(plain: &Plain) -> u64 {
        let (src, dst) = (plain.src.words(), plain.dst.words());
        let mut sum = 0;
        let mut i = 0;
        while i < 4 {
            sum += u64::from(src[i]) + u64::from(dst[i]);
            i += 1;
        }
        sum
    }

    #[inline(always)]
    fn step<P: Packet>(packet: P, plain: &Plain, _: u32) -> bool {
        packet.store(L3 + 7, &plain.ttl.wrapping_sub(1))
    }

    #[inline(always)]
    fn set_addrs<P: Packet>(packet: P, src: Addr, dst: Addr) -> bool {
        packet.store(L3 + 8, &[src.words(), dst.words()])
    }
}

/// A packet's transport header, as far as it is looked at.
#[derive(Clone, Copy)]
struct Transport {
    sum: u16,
    tcp_flags: u8,
}

/// A packet came in from the driver: does what was decided about its flow, or reads it for [`decide`]. For
/// [`Verdict::Wrap`] leaves a `copy` of what was decided.
#[inline(always)]
pub fn arrives<F: Layout, E: Env, D: Driver, P: Packet>(
    env: &E,
    driver: &D,
    packet: P,
    headers: &mut Headers,
    copy: &mut Decided,
) -> Verdict {
    let Some(plain) = F::plain(packet) else {
        return Verdict::Pass;
    };
    let Some((ports, transport)) = transport::<F, P>(packet, &plain) else {
        return Verdict::Pass;
    };
    // In memory that is not the stack's, which is short: the key is where it is needed next.
    headers.tuple = tuple(&plain, ports);
    if transport.tcp_flags & (SYN | FIN | RST) == 0 {
        let now = driver.now();
        let known = driver.with_decided(&headers.tuple, |decided| {
            if decided.until <= now {
                return Verdict::Undecided;
            }
            let verdict = forward::<F, E, P>(env, packet, &plain, transport, decided);
            if verdict == Verdict::Wrap {
                *copy = *decided;
            }
            verdict
        });
        match known {
            Some(Verdict::Undecided) | None => {}
            Some(verdict) => return verdict,
        }
    }
    headers.src = plain.src;
    headers.dst = plain.dst;
    headers.proto = plain.proto;
    headers.kind = if plain.proto == proto::TCP {
        Kind::Tcp
    } else {
        Kind::Ports
    };
    headers.tcp_flags = transport.tcp_flags;
    headers.ttl = plain.ttl;
    headers.l4 = F::L4;
    headers.fragment = Fragment::Whole;
    Verdict::Undecided
}

#[inline(always)]
fn tuple(plain: &Plain, ports: [u16; 2]) -> Tuple {
    let [sport, dport] = ports.map(Port::from_raw);
    Tuple::new(plain.src, sport, plain.dst, dport, plain.proto)
}

/// Does to the packet what [`decide`] has just said, and lets those behind it do the same for a while.
#[inline(always)]
pub fn follow<F: Layout, E: Env, D: Driver, P: Packet>(
    env: &E,
    driver: &D,
    packet: P,
    headers: &Headers,
    decided: &mut Decided,
) -> Verdict {
    let Some(plain) = F::plain(packet) else {
        return Verdict::Pass;
    };
    let Some((ports, transport)) = transport::<F, P>(packet, &plain) else {
        return Verdict::Pass;
    };
    let is_direct = decided.path == forward::DRIVER_DIRECT;
    decided.l3 = if is_direct {
        0
    } else {
        F::diff((plain.src, plain.dst), (decided.src, decided.dst))
    };
    decided.l4 = checksum::add(
        decided.l3,
        checksum::add(
            checksum::diff16(ports[0], decided.ports[0]),
            checksum::diff16(ports[1], decided.ports[1]),
        ),
    );
    // The hop limit is the first byte of its word: one less, wherever it stands.
    decided.l3 = checksum::add(decided.l3, u32::from(!u16::from_ne_bytes([1, 0])));
    let verdict = forward::<F, E, P>(env, packet, &plain, transport, decided);
    if transport.tcp_flags & (FIN | RST) == 0 {
        driver.set_decided(&headers.tuple, decided);
    }
    verdict
}

/// Ports and checksum of what may be forwarded: TCP or UDP that may make another hop, whose checksum is complete.
#[inline(always)]
fn transport<F: Layout, P: Packet>(packet: P, plain: &Plain) -> Option<([u16; 2], Transport)> {
    let (header_len, sum, tcp_flags) = match plain.proto {
        proto::TCP => {
            let flags: [u8; 2] = packet.load(F::L4 + 12)?;
            (20, packet.load::<u16>(F::L4 + 16)?, flags[1])
        }
        proto::UDP => (8, packet.load::<u16>(F::L4 + 6)?, 0),
        _ => return None,
    };
    let ip_header = (F::L4 - L3) as u16;
    let len = plain.len.wrapping_sub(ip_header);
    if plain.ttl <= 1 || plain.len < ip_header + header_len {
        return None;
    }
    // A neighbour on the same machine leaves the sum to a device that there is not: only the pseudo header is in
    // it. The kernel knows which packets those are, this hook does not; so what looks like one is the kernel's.
    let pseudo =
        F::address_sum(plain) + u64::from(u16::from(plain.proto).to_be()) + u64::from(len.to_be());
    if checksum::fold16(pseudo) == sum {
        return None;
    }
    // Past the end of the frame there is nothing to forward.
    if packet.len() < L3 + u32::from(plain.len) {
        return None;
    }
    Some((packet.load(F::L4)?, Transport { sum, tcp_flags }))
}

/// Does what was decided. A packet that was not meant, or does not fit, stays as it is and passes.
#[inline(always)]
fn forward<F: Layout, E: Env, P: Packet>(
    env: &E,
    packet: P,
    plain: &Plain,
    transport: Transport,
    decided: &Decided,
) -> Verdict {
    // A switch that does not know where an address is sends its packets everywhere.
    if packet.load::<[u16; 3]>(0) != Some(decided.own) || plain.len > decided.mtu {
        return Verdict::Pass;
    }
    if decided.path == forward::DRIVER_DIRECT {
        return if F::step(packet, plain, decided.l3) {
            Verdict::Wrap
        } else {
            Verdict::Pass
        };
    }
    let (at, sum) = if plain.proto == proto::UDP {
        (6, checksum::apply_if_any(transport.sum, decided.l4))
    } else {
        (16, checksum::apply(transport.sum, decided.l4))
    };
    if !packet.store(F::L4 + at, &sum) {
        return Verdict::Pass;
    }
    let done = packet.store(F::L4, &decided.ports)
        && F::step(packet, plain, decided.l3)
        && F::set_addrs(packet, decided.src, decided.dst)
        && packet.store(0, &decided.link);
    if !done {
        // All of it was read before: it cannot be out of the packet.
        return Verdict::Pass;
    }
    env.forwarded(decided.path, L3 + u32::from(plain.len));
    out(decided)
}

#[inline(always)]
fn out(decided: &Decided) -> Verdict {
    if decided.ifindex == 0 {
        Verdict::Turn
    } else {
        Verdict::Redirect(decided.ifindex)
    }
}

/// Puts the packet into another one, in front of which there is room for that by now.
#[inline(always)]
pub fn wrap<F: Outer, E: Env, P: Packet>(env: &E, packet: P, decided: &Decided) -> Verdict {
    let len = direct::around::<F, P>(packet, decided);
    if len == 0 {
        // All of it was read before.
        return Verdict::Pass;
    }
    env.forwarded(forward::DRIVER_DIRECT, L3 + len);
    out(decided)
}

/// Finds out what becomes of a flow's packets: by its entry, or as a new flow. True with all of `decided` but the
/// sums. What is refused is passed too: tc refuses it again, and tells the client.
#[inline(never)]
pub fn decide<E: Env, D: Driver>(
    env: &E,
    driver: &D,
    headers: &mut Headers,
    len: u16,
    decided: &mut Decided,
) -> bool {
    headers.notes = 0;
    headers.rules = [0; 2];
    let now = env.now();
    let ifindex = driver.ifindex();
    let Some(own) = driver.own(ifindex) else {
        return false;
    };
    decided.own = own;
    decided.until = now + DECIDED;
    // The backend set of a new flow.
    let mut set = 0;
    decided.path = match nat::lookup(env, headers, now) {
        Some(flags) if flags & Nat::DIRECT != 0 => forward::DRIVER_DIRECT,
        Some(flags) if flags & Nat::BOTH == 0 => return false,
        Some(flags) if flags & Nat::REPLY != 0 => forward::DRIVER_REPLY,
        Some(_) => forward::DRIVER_SERVICE,
        None => {
            set = choose(env, headers);
            if set == 0 {
                return false;
            }
            if direct::may(env, headers, ifindex) {
                forward::DRIVER_DIRECT
            } else if hide(env, headers, ifindex) {
                forward::DRIVER_SERVICE
            } else {
                return false;
            }
        }
    };
    let is_direct = decided.path == forward::DRIVER_DIRECT;
    let hop = if is_direct {
        hop_around((env, driver), headers, ifindex, len, decided)
    } else {
        driver.next_hop(&headers.to, len, decided)
    };
    if hop == Hop::None {
        return false;
    }
    if decided.ifindex == ifindex {
        decided.ifindex = 0;
    } else if driver.own(decided.ifindex).is_none() {
        // Without this hook a device may not take what it is redirected: a tunnel, for one. A new flow there is
        // tc's from the start.
        return false;
    }
    if set != 0 {
        let kept = if is_direct {
            direct::keep(env, headers, set, now).is_ok()
        } else {
            keep(env, headers, set, now)
        };
        if !kept {
            return false;
        }
        headers.notes |= Headers::NEW;
        env.served(headers.service, false);
    }
    let to = &headers.to;
    if !is_direct {
        decided.src = to.src;
    }
    decided.dst = to.dst;
    decided.ports = [to.sport.raw(), to.dport.raw()];
    hop == Hop::Known
}

/// The next hop of a packet with another one inside, whose source it leaves in `decided`. Two parameters are one here:
/// kernels from 7.2 on refuse a function of six, though `env` is nothing at run time.
#[inline(never)]
fn hop_around<E: Env, D: Driver>(
    (env, driver): (&E, &D),
    headers: &Headers,
    ifindex: u32,
    len: u16,
    decided: &mut Decided,
) -> Hop {
    let pod = headers.to.dst;
    decided.src = direct::source(env, ifindex, pod.is_v4());
    if decided.src == Addr::ANY {
        return Hop::None;
    }
    let (outer, header) = if pod.is_v4() {
        let outer = direct::around_tuple::<V4>(decided.src, pod);
        (outer, V4::HEADER as u16)
    } else {
        let outer = direct::around_tuple::<V6>(decided.src, pod);
        (outer, V6::HEADER as u16)
    };
    let hop = driver.next_hop(&outer, len.saturating_add(header), decided);
    decided.mtu = decided.mtu.saturating_sub(header);
    hop
}

/// The backend of a new flow from outside, which `headers.to` then leads to, and its set; 0: it is none of a backend
/// elsewhere, or may not be.
#[inline(never)]
fn choose<E: Env>(env: &E, headers: &mut Headers) -> u32 {
    let from = &headers.tuple;
    let Some(frontend) = service::find(env, from.dst, from.dport, from.proto(), false) else {
        return 0;
    };
    if frontend.flags & Frontend::EXTERNAL == 0 || !service::admits(env, &frontend, &from.src) {
        return 0;
    }
    let assigned = service::assign_outside(env, &frontend, frontend.external, headers);
    // News only once it is this hook's.
    headers.notes &= !Headers::NEW;
    if assigned.is_err() {
        return 0;
    }
    if headers.backend.backend.flags & Backend::LOCAL != 0 {
        return 0;
    }
    frontend.external
}

/// Puts the node's address in the place of a new flow's client. False: that is not possible, or the stack would not
/// take packets from this source.
#[inline(never)]
fn hide<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> bool {
    let client = headers.tuple.src;
    if !is_elsewhere(client) || env.node_addr(&client).is_some() {
        return false;
    }
    let Some(uplink) = env.uplink(ifindex) else {
        return false;
    };
    headers.to.src = if client.is_v4() { uplink.v4 } else { uplink.v6 };
    headers.to.src != Addr::ANY
}

/// Whether an address can be that of another machine beyond a router: no loopback, multicast, broadcast, reserved or
/// link-local one.
#[inline(always)]
pub fn is_elsewhere(addr: Addr) -> bool {
    let words = addr.words();
    if addr.is_v4() {
        let first = u32::from_be(words[3]) >> 24;
        return first != 0 && first != 127 && first < 224;
    }
    // ff00::/8, fe80::/10 and what begins with 32 zero bits, which nobody has.
    let first = u32::from_be(words[0]);
    first >> 24 != 0xff && first >> 22 != 0x3fa && first != 0
}

/// Remembers a new flow. False: that is not possible, or tc or another CPU was quicker and wants it otherwise.
#[inline(never)]
fn keep<E: Env>(env: &E, headers: &mut Headers, set: u32, now: u64) -> bool {
    let owner = Owner {
        flags: Nat::BOTH,
        backend: headers.backend.id,
        set,
    };
    let hidden = headers.to.src;
    nat::source(env, &headers.tuple, &mut headers.to, owner, now).is_ok()
        && headers.to.src == hidden
        && headers.to.dst == headers.backend.backend.addr
}

/// A packet of a flow with [`Nat::BOTH`] goes through the stack after all, which drops what arrives with the node's
/// own source address: so its destination changes here, and its source when it leaves again. `headers.to` becomes
/// the half of it that is due now; the entries for the other half are there when this returns.
#[inline(never)]
pub fn unfold<E: Env>(env: &E, headers: &mut Headers, now: u64) {
    let Headers { tuple, to, .. } = headers;
    let whole = *to;
    to.src = tuple.src;
    to.sport = tuple.sport;
    let Some(mut entry) = env.with_nat(tuple, |nat| *nat) else {
        return;
    };
    let due = env.with_nat(to, |nat| {
        nat.to != whole || nat.expires < now + conntrack::TIMEOUT_CLOSING / 2
    });
    if due == Some(false) {
        return;
    }
    entry.flags &= !Nat::BOTH;
    // Only the flow's own entry leads elsewhere when its backend goes.
    entry.set = 0;
    entry.to = whole;
    // A map that takes no more costs the packet its source: the other side then drops it, and it is sent again.
    env.set_nat(to, &entry, false);
    // What the stack itself has to say about the packet is about this half of it.
    entry.flags ^= Nat::REPLY;
    entry.to = tuple.reversed();
    env.set_nat(&to.reversed(), &entry, false);
}
