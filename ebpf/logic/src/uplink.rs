//! Packets at a device towards other machines.

use crate::conntrack;
use crate::env::Env;
use crate::nat::{self, Owner};
use crate::packet::Packet;
use crate::parse::{self, ETH_IPV4, ETH_IPV6, Fragment, Headers, Kind, V4, V6};
use crate::pod::Verdict;
use crate::rewrite::rewrite;
use crate::service;
use xebec_ebpf_abi::{
    Addr, AffinityKey, Backend, DropReason, Flow, FlowKey, Frontend, Nat, SourceRangeKey,
    direction, forward,
};

/// The packet becomes `Headers::to` and is counted as passed on this way (one of `abi::forward`'s), or
/// stays as it is ([`UNTOUCHED`]). Not an `Option`: its `None` leaves the number undefined, and the
/// verifier refuses registers that nobody has written, even when nobody will look at them.
type Plan = Result<u32, DropReason>;
const UNTOUCHED: u32 = u32::MAX;

/// A packet came in on the device `ifindex`. `ethertype` in host order.
#[inline(always)]
pub fn arrives<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    run(env, packet, headers, ethertype, |headers| {
        arriving(env, headers, ifindex)
    })
}

/// A packet goes out of the device `ifindex`. `ethertype` in host order.
#[inline(always)]
pub fn departs<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    run(env, packet, headers, ethertype, |headers| {
        departing(env, headers, ifindex)
    })
}

#[inline(always)]
fn run<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    plan: impl FnOnce(&mut Headers) -> Plan,
) -> Verdict {
    let parsed = match ethertype {
        ETH_IPV4 => parse::parse::<V4, P>(packet, headers),
        ETH_IPV6 => parse::parse::<V6, P>(packet, headers),
        _ => return Verdict::Pass,
    };
    match parsed {
        Ok(()) => {}
        Err(DropReason::MappedAddress) => return drop(env, packet, DropReason::MappedAddress),
        // What is broken is the stack's to refuse: it may be for the node itself.
        Err(_) => return Verdict::Pass,
    }
    if headers.kind == Kind::Link {
        return Verdict::Pass;
    }
    let path = match plan(headers) {
        Ok(UNTOUCHED) => return Verdict::Pass,
        Ok(path) => path,
        Err(reason) => return drop(env, packet, reason),
    };
    let done = if ethertype == ETH_IPV4 {
        rewrite::<V4, P>(packet, headers)
    } else {
        rewrite::<V6, P>(packet, headers)
    };
    match done {
        Ok(()) => {
            env.forwarded(path, packet.len());
            Verdict::Pass
        }
        Err(reason) => drop(env, packet, reason),
    }
}

#[inline(always)]
fn drop<E: Env, P: Packet>(env: &E, packet: P, reason: DropReason) -> Verdict {
    env.dropped(reason, packet.len());
    Verdict::Drop(reason)
}

#[inline(always)]
fn known<E: Env>(env: &E, headers: &mut Headers, now: u64) -> Option<u32> {
    let flags = nat::lookup(env, headers, now)?;
    Some(if flags & Nat::MASQUERADE != 0 {
        forward::MASQUERADE
    } else if flags & Nat::REPLY != 0 {
        forward::UPLINK_REPLY
    } else {
        forward::UPLINK_SERVICE
    })
}

#[inline(always)]
fn arriving<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> Plan {
    if conntrack::fragment(env, headers).is_err() {
        // Most fragments are the node's own; one that is not finds no datagram to belong to there.
        return Ok(UNTOUCHED);
    }
    let now = env.now();
    if let Some(path) = known(env, headers, now) {
        return Ok(path);
    }
    if !matches!(headers.kind, Kind::Tcp | Kind::Ports) || headers.fragment == Fragment::Later {
        return Ok(UNTOUCHED);
    }
    let tuple = &headers.tuple;
    let Some(frontend) = service::find(env, tuple.dst, tuple.dport, tuple.proto(), false) else {
        return Ok(UNTOUCHED);
    };
    if frontend.flags & Frontend::EXTERNAL == 0 {
        return Ok(UNTOUCHED);
    }
    deliver(env, &frontend, headers, ifindex, now)?;
    Ok(forward::UPLINK_SERVICE)
}

/// Chooses a backend for a new flow from outside and remembers all translations it will need.
#[inline(never)]
fn deliver<E: Env>(
    env: &E,
    frontend: &Frontend,
    headers: &mut Headers,
    ifindex: u32,
    now: u64,
) -> Result<(), DropReason> {
    let (from, to) = (&headers.tuple, &mut headers.to);
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        let key = SourceRangeKey {
            service: frontend.service,
            addr: from.src,
        };
        if !env.is_source_allowed(&key) {
            return Err(DropReason::SourceRange);
        }
    }
    let set = frontend.external;
    let client = AffinityKey::address(from.src, set);
    let chosen = service::choose(env, frontend, set, client, service::spread(from))?;
    *to = *from;
    to.dst = chosen.backend.addr;
    to.dport = chosen.backend.port;
    if to.dport != from.dport && !nat::has_ports(from.proto()) {
        return Err(DropReason::ProtocolUnsupported);
    }
    let owner = Owner {
        flags: 0,
        backend: chosen.id,
    };
    if !nat::remember(env, from, to, owner, now) {
        return Err(DropReason::NatPortExhausted);
    }
    if chosen.backend.flags & Backend::LOCAL == 0 {
        // The backend's node would answer the client directly: it must see this node as its client.
        let uplink = env.uplink(ifindex).ok_or(DropReason::NotConfigured)?;
        let mut leaving = *to;
        leaving.src = if from.src.is_v4() {
            uplink.v4
        } else {
            uplink.v6
        };
        nat::source(env, to, &mut leaving, owner, now)?;
    }
    Ok(())
}

#[inline(always)]
fn departing<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> Plan {
    let fragment = conntrack::fragment(env, headers);
    let now = env.now();
    if fragment.is_ok()
        && let Some(path) = known(env, headers, now)
    {
        return Ok(path);
    }
    let tuple = &headers.tuple;
    let Some(endpoint) = env.endpoint(&tuple.src) else {
        return Ok(UNTOUCHED);
    };
    if env.keeps_pod_source(&tuple.dst) {
        return Ok(UNTOUCHED);
    }
    let addr = match env.uplink(ifindex) {
        Some(uplink) if tuple.src.is_v4() => uplink.v4,
        Some(uplink) => uplink.v6,
        None => return Ok(UNTOUCHED),
    };
    if addr == Addr::ANY {
        return Ok(UNTOUCHED);
    }
    fragment?;
    // Answers to who came to the pod by its own address must come from that address.
    let key = FlowKey::new(
        endpoint.id,
        tuple.sport,
        tuple.dst,
        tuple.dport,
        tuple.proto(),
    );
    let is_answer = env.with_flow(&key, |flow: &mut Flow| {
        flow.direction == direction::INGRESS && flow.expires > now
    });
    if is_answer == Some(true) {
        return Ok(UNTOUCHED);
    }
    match headers.kind {
        Kind::IcmpError => return Err(DropReason::IcmpUnrelated),
        Kind::Ports if !nat::has_ports(tuple.proto()) => {
            return Err(DropReason::ProtocolUnsupported);
        }
        Kind::Tcp
        | Kind::Ports
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::Link
        | Kind::Other => {}
    }
    let owner = Owner {
        flags: Nat::MASQUERADE,
        backend: 0,
    };
    headers.to = headers.tuple;
    headers.to.src = addr;
    nat::source(env, &headers.tuple, &mut headers.to, owner, now)?;
    Ok(forward::MASQUERADE)
}
