//! Packets at a pod's device.
//!
//! A packet from a pod is, in this order: read, checked for its source, translated if it is for a
//! Service (the socket hooks leave few of those), judged by policy as what it has become, remembered. A
//! packet to a pod is judged as what it is on the wire and then translated back. Packets between pods of
//! one node are both at once and go straight from one to the other.

use crate::conntrack::{self, KNOWN_ONLY, UNKNOWN};
use crate::env::Env;
use crate::limit;
use crate::nat::{self, Owner};
use crate::packet::Packet;
use crate::parse::{self, ETH_ARP, ETH_IPV4, ETH_IPV6, Fragment, Headers, Kind, V4, V6};
use crate::reject::{self, Resize};
use crate::rewrite::rewrite;
use crate::service;
use crate::shortcut;
use crate::steer;
use xebec_ebpf_abi::{
    Addr, DropReason, Endpoint, Flow, FlowKey, FrontendKey, Nat, direction, forward, proto,
};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program and the stack.
    Pass,
    Drop(DropReason),
    /// To the other side of the veth pair with this ifindex.
    Peer(u32),
    /// Out of the device with this ifindex.
    Out(u32),
    /// Out of the device with this ifindex, to the neighbour that routes there have.
    Neighbor(u32),
    /// Back to the pod it came from as the answer to itself: [`answer`].
    Back,
}

/// A packet for which there is no shortcut left a pod through the device `ifindex`. `ethertype` in host order. What passes
/// is not for a pod that can be reached directly: see [`route`](crate::route).
#[inline(always)]
pub fn leaves<E: Env, P: Resize>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    let is_ip = match read(packet, headers, ethertype) {
        Ok(is_ip) => is_ip,
        Err(reason) => return refuse(env, packet, reason),
    };
    // Before anything is asked: what is written meanwhile must end the shortcut that is made of the answers.
    headers.generation = env.generation();
    if is_ip && let Err(reason) = leaving(env, packet, headers, ifindex) {
        env.dropped(reason, packet.len());
        headers.refused = reason as u32;
        return if reject::is_answered(reason) {
            Verdict::Back
        } else {
            Verdict::Drop(reason)
        };
    }
    if is_ip
        && headers.limited != 0
        && let Err(reason) = limit::check(env, headers.limited, direction::EGRESS, packet.len())
    {
        return refuse(env, packet, reason);
    }
    env.forwarded(forward::FROM_POD, packet.len());
    if !is_ip {
        return Verdict::Pass;
    }
    let verdict = deliver(env, packet, headers);
    match verdict {
        Verdict::Pass => shortcut::make(env, headers, ifindex, shortcut::STACK),
        Verdict::Peer(peer) => shortcut::make(env, headers, ifindex, peer),
        Verdict::Drop(_) | Verdict::Out(_) | Verdict::Neighbor(_) | Verdict::Back => 0,
    };
    verdict
}

/// Answers a pod whose packet is refused (`headers.refused`). False: it is dropped in silence.
#[inline(always)]
pub fn answer<E: Env, P: Resize>(env: &E, packet: P, headers: &mut Headers, ifindex: u32) -> bool {
    // Another way to the pod would be under the policy for what it has not asked for.
    let is_direct = own(env, &headers.src, ifindex)
        .is_some_and(|endpoint| endpoint.flags & Endpoint::DIRECT != 0);
    is_direct && reject::turn(env, packet, headers)
}

/// A packet is handed to the pod behind the device `ifindex`. `ethertype` in host order.
#[inline(always)]
pub fn enters<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    let is_ip = match read(packet, headers, ethertype) {
        Ok(is_ip) => is_ip,
        Err(reason) => return refuse(env, packet, reason),
    };
    if is_ip && headers.kind != Kind::Link {
        let Some(endpoint) = own(env, &headers.dst, ifindex) else {
            return refuse(env, packet, DropReason::UnknownEndpoint);
        };
        if let Err(reason) = conntrack::fragment(env, headers) {
            return refuse(env, packet, reason);
        }
        if let Err(reason) = entering(env, packet, headers, &endpoint) {
            return refuse(env, packet, reason);
        }
    }
    env.forwarded(forward::TO_POD, packet.len());
    Verdict::Pass
}

/// Hands a packet that may go on to the pod it is for, if that is here and may be reached directly. Its
/// hop limit stays: it has crossed no router that could be part of a loop.
#[inline(always)]
pub fn deliver<E: Env, P: Packet>(env: &E, packet: P, headers: &mut Headers) -> Verdict {
    let Some(endpoint) = env.endpoint(&headers.dst) else {
        return Verdict::Pass;
    };
    if endpoint.flags & Endpoint::DIRECT == 0 || headers.kind == Kind::Link {
        return Verdict::Pass;
    }
    if let Err(reason) = entering(env, packet, headers, &endpoint) {
        return refuse(env, packet, reason);
    }
    if !packet.store(0, &[endpoint.pod_mac, endpoint.host_mac]) {
        return refuse(env, packet, DropReason::RewriteFailed);
    }
    env.forwarded(forward::TO_POD, packet.len());
    Verdict::Peer(endpoint.ifindex)
}

/// False: not IP, but needed to talk IP.
#[inline(always)]
fn read<P: Packet>(packet: P, headers: &mut Headers, ethertype: u16) -> Result<bool, DropReason> {
    match ethertype {
        ETH_IPV4 => parse::parse::<V4, P>(packet, headers)?,
        ETH_IPV6 => parse::parse::<V6, P>(packet, headers)?,
        ETH_ARP => return Ok(false),
        _ => return Err(DropReason::NotIp),
    }
    Ok(true)
}

/// Counts a drop.
#[inline(always)]
pub fn refuse<E: Env, P: Packet>(env: &E, packet: P, reason: DropReason) -> Verdict {
    env.dropped(reason, packet.len());
    Verdict::Drop(reason)
}

/// Counts a drop, and answers it where a Service's client is to be told at once.
#[inline(always)]
pub fn turn_back<E: Env, P: Resize>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    reason: DropReason,
    back: Verdict,
) -> Verdict {
    env.dropped(reason, packet.len());
    headers.refused = reason as u32;
    if reject::is_answered(reason) && reject::turn(env, packet, headers) {
        back
    } else {
        Verdict::Drop(reason)
    }
}

/// Who has an address, if that is behind the device.
#[inline(always)]
pub(crate) fn own<E: Env>(env: &E, addr: &Addr, ifindex: u32) -> Option<Endpoint> {
    env.endpoint(addr).filter(|e| e.ifindex == ifindex)
}

#[inline(always)]
fn leaving<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ifindex: u32,
) -> Result<(), DropReason> {
    if headers.kind == Kind::Link {
        return Ok(());
    }
    let endpoint = own(env, &headers.src, ifindex).ok_or(DropReason::SpoofedSource)?;
    conntrack::fragment(env, headers)?;
    if endpoint.flags & Endpoint::LIMIT_EGRESS != 0 {
        headers.limited = endpoint.id;
    }
    let mut state = conntrack::admit(env, &endpoint, headers, direction::EGRESS, KNOWN_ONLY)?;
    headers.asked = (headers.tuple.dst, headers.tuple.dport);
    // Asking for the socket costs more than seeing that nothing hangs on it.
    let steered = match headers.tuple.proto() {
        proto::UDP => steer::check(env, packet.socket(), headers),
        _ => steer::STAYS,
    };
    if steered == steer::GONE {
        return Err(DropReason::BackendGone);
    }
    if steered != steer::STAYS {
        state = UNKNOWN;
    }
    if state != UNKNOWN && state & Flow::TRANSLATED == 0 {
        return Ok(());
    }
    let itself = headers.src;
    let mut mark = 0;
    match translate(env, headers, state == UNKNOWN) {
        // The socket has been told that it is connected: it waits.
        Err(DropReason::NoBackend | DropReason::NoLocalBackend) if steered == steer::ELSEWHERE => {
            return Err(DropReason::BackendGone);
        }
        outcome => outcome?,
    }
    if headers.chosen_of != 0 {
        let owner = Owner {
            flags: 0,
            backend: headers.backend.id,
            set: headers.chosen_of,
        };
        nat::remember(env, &headers.tuple, &mut headers.to, owner, env.now())?;
    }
    if headers.notes & Headers::TO_ITSELF != 0 {
        both_sides(env, &endpoint, headers)?;
    }
    if headers.to != headers.tuple {
        apply(packet, headers)?;
        mark = Flow::TRANSLATED;
    }
    // To itself no policy applies, and `both_sides` has remembered the flow.
    if state == UNKNOWN && (mark == 0 || headers.dst != itself) {
        conntrack::admit(env, &endpoint, headers, direction::EGRESS, mark)?;
    }
    Ok(())
}

#[inline(always)]
fn entering<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    endpoint: &Endpoint,
) -> Result<(), DropReason> {
    let state = conntrack::admit(env, endpoint, headers, direction::INGRESS, 0)?;
    if endpoint.flags & Endpoint::LIMIT_INGRESS != 0 {
        limit::check(env, endpoint.id, direction::INGRESS, packet.len())?;
    }
    if state & Flow::TRANSLATED != 0 && nat::lookup(env, headers, env.now()).is_some() {
        apply(packet, headers)?;
    }
    Ok(())
}

/// Rewrites the packet to `headers.to`.
#[inline(always)]
pub fn apply<P: Packet>(packet: P, headers: &mut Headers) -> Result<(), DropReason> {
    if headers.dst.is_v4() {
        rewrite::<V4, P>(packet, headers)?;
    } else {
        rewrite::<V6, P>(packet, headers)?;
    }
    headers.translated();
    Ok(())
}

/// Says in `headers.to` what a packet of a pod has to become, because its flow does, or (`may_be_new`)
/// because it is for a Service (`headers.asked`) that the socket hooks have not seen. What is new is left
/// for the caller to remember (`headers.chosen_of`, `Headers::TO_ITSELF`), so that what this function needs
/// of the stack is free again by then.
#[inline(never)]
fn translate<E: Env>(env: &E, headers: &mut Headers, may_be_new: bool) -> Result<(), DropReason> {
    let now = env.now();
    // A masqueraded flow is one that left when its destination was no Service yet.
    let known = nat::lookup(env, headers, now);
    if known.is_none_or(|flags| flags & Nat::MASQUERADE != 0) {
        headers.to = headers.tuple;
        let has_ports = matches!(headers.kind, Kind::Tcp | Kind::Ports);
        if !may_be_new || !has_ports || headers.fragment == Fragment::Later {
            return Ok(());
        }
        choose(env, headers)?;
    }
    if may_be_new && headers.to.dst == headers.tuple.src && headers.kind != Kind::IcmpError {
        headers.notes |= Headers::TO_ITSELF;
    }
    Ok(())
}

/// Remembers a flow of a pod with itself: both sides are the pod, each with the Service as its peer.
#[inline(never)]
fn both_sides<E: Env>(env: &E, endpoint: &Endpoint, headers: &Headers) -> Result<(), DropReason> {
    let (from, to) = (&headers.tuple, &headers.to);
    let proto = from.proto();
    let expires = env.now() + conntrack::TIMEOUT_NEW;
    let state = Flow::TRANSLATED | Flow::SELF;
    let asks = FlowKey::new(endpoint.id, from.sport, from.dst, from.dport, proto);
    let mut flow = Flow::new(direction::EGRESS, state, endpoint.epoch, expires);
    let kept = env.set_flow(&asks, &flow);
    let hears = FlowKey::new(endpoint.id, to.dport, to.src, to.sport, proto);
    flow.direction = direction::INGRESS;
    if !kept || !env.set_flow(&hears, &flow) {
        return Err(DropReason::FlowTableFull);
    }
    Ok(())
}

/// Finds the Service the packet is for, and a backend. The translation is then still to be remembered.
#[inline(always)]
fn choose<E: Env>(env: &E, headers: &mut Headers) -> Result<(), DropReason> {
    let ((addr, port), proto) = (headers.asked, headers.tuple.proto());
    let Some(frontend) = service::find(env, addr, port, proto, false) else {
        return if env.frontend(&FrontendKey::address(addr)).is_some() {
            Err(DropReason::NoServicePort)
        } else {
            Ok(())
        };
    };
    if !service::admits(env, &frontend, &headers.tuple.src) {
        headers.service = frontend.service;
        env.served(frontend.service, true);
        return Err(DropReason::SourceRange);
    }
    let set = frontend.internal;
    service::assign(env, &frontend, set, headers)?;
    let (from, to) = (&headers.tuple, &mut headers.to);
    if to.dst == from.src {
        // The pod would answer itself without its answer ever being seen here.
        to.src = from.dst;
    }
    if to.dport != from.dport && !nat::has_ports(from.proto()) {
        return Err(DropReason::ProtocolUnsupported);
    }
    if *to == *from {
        // A backend that came back to its address.
        return Ok(());
    }
    headers.chosen_of = set;
    Ok(())
}
