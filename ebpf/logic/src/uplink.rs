//! Packets at a device towards other machines.

use crate::announce;
use crate::conntrack;
use crate::direct::{self, Wrap};
use crate::env::Env;
use crate::nat::{self, Owner};
use crate::packet::Packet;
use crate::parse::{self, ETH_ARP, ETH_IPV4, ETH_IPV6, Fragment, Headers, Kind, L3, V4, V6};
use crate::pod::{self, Verdict};
use crate::route::{self, Router};
use crate::service;
use crate::xdp;
use xebec_ebpf_abi::{Addr, Backend, DropReason, Flow, FlowKey, Frontend, Nat, direction, forward};

/// The packet becomes `Headers::to` and is counted as passed on this way (one of `abi::forward`'s), or
/// stays as it is ([`UNTOUCHED`]). Not an `Option`: its `None` leaves the number undefined, and the
/// verifier refuses registers that nobody has written, even when nobody will look at them.
type Plan = Result<u32, DropReason>;
const UNTOUCHED: u32 = u32::MAX;

/// A packet came in on the device `ifindex`. `ethertype` in host order.
#[inline(always)]
pub fn arrives<E: Env, R: Router, P: Wrap>(
    env: &E,
    router: R,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    if ethertype == ETH_ARP && announce::arp(env, packet, ifindex) {
        return Verdict::Out(ifindex);
    }
    if !is_ip(ethertype) {
        return Verdict::Pass;
    }
    match read(packet, headers, ethertype) {
        Ok(()) => {}
        Err(DropReason::MappedAddress) => {
            return pod::refuse(env, packet, DropReason::MappedAddress);
        }
        // What is broken is the stack's to refuse: it may be for the node itself.
        Err(_) => return Verdict::Pass,
    }
    if headers.kind == Kind::Link {
        return if announce::ndp(env, packet, ifindex) {
            Verdict::Out(ifindex)
        } else {
            Verdict::Pass
        };
    }
    if conntrack::fragment(env, headers).is_err() {
        // Most fragments are the node's own; one for a pod is refused at the pod's device.
        return Verdict::Pass;
    }
    let done = match arriving(env, headers, ifindex) {
        Ok(()) if headers.path == forward::UPLINK_DIRECT => {
            direct::send(env, router, packet, headers, ifindex)
        }
        Ok(()) if is_too_big(env, router, packet, headers) => Err(DropReason::TooBig),
        Ok(()) => act(env, packet, headers, Ok(headers.path)),
        Err(reason) => Err(reason),
    };
    let is_direct = headers.path == forward::UPLINK_DIRECT;
    if let Err(reason) = done {
        return pod::turn_back(env, packet, headers, reason, Verdict::Out(ifindex));
    }
    if is_direct {
        return Verdict::Neighbor(headers.device);
    }
    pod::deliver(env, packet, headers)
}

/// Whether a packet that goes on to another machine does not fit its way there, and its sender is to be told here how much
/// does: nothing of it is translated yet. For what every way takes, none is looked for.
#[inline(always)]
fn is_too_big<E: Env, R: Router, P: Packet>(
    env: &E,
    router: R,
    packet: P,
    headers: &mut Headers,
) -> bool {
    let goes_on = matches!(
        headers.path,
        forward::UPLINK_SERVICE | forward::UPLINK_REPLY
    );
    if goes_on && packet.len() > L3 + route::SMALLEST {
        route::measure(env, router, packet, headers);
    }
    headers.fits != 0
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
    if !is_ip(ethertype) || read(packet, headers, ethertype).is_err() || headers.kind == Kind::Link
    {
        return Verdict::Pass;
    }
    let plan = departing(env, headers, ifindex);
    match act(env, packet, headers, plan) {
        Ok(()) => Verdict::Pass,
        Err(reason) => pod::refuse(env, packet, reason),
    }
}

#[inline(always)]
fn is_ip(ethertype: u16) -> bool {
    ethertype == ETH_IPV4 || ethertype == ETH_IPV6
}

#[inline(always)]
fn read<P: Packet>(packet: P, headers: &mut Headers, ethertype: u16) -> Result<(), DropReason> {
    if ethertype == ETH_IPV4 {
        parse::parse::<V4, P>(packet, headers)
    } else {
        parse::parse::<V6, P>(packet, headers)
    }
}

/// Does what was planned.
#[inline(always)]
fn act<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    plan: Plan,
) -> Result<(), DropReason> {
    let path = plan?;
    if path == UNTOUCHED {
        return Ok(());
    }
    pod::apply(packet, headers)?;
    env.forwarded(path, packet.len());
    Ok(())
}

#[inline(always)]
fn known<E: Env>(env: &E, headers: &mut Headers, now: u64) -> Option<u32> {
    let flags = nat::lookup(env, headers, now)?;
    if flags & Nat::BOTH != 0 {
        xdp::unfold(env, headers, now);
    }
    Some(if flags & Nat::DIRECT != 0 {
        forward::UPLINK_DIRECT
    } else if flags & Nat::MASQUERADE != 0 {
        forward::MASQUERADE
    } else if flags & Nat::REPLY != 0 {
        forward::UPLINK_REPLY
    } else {
        forward::UPLINK_SERVICE
    })
}

/// Leaves the plan in `headers.path`: so what the verifier knows of each way to it is forgotten where they meet.
#[inline(never)]
fn arriving<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> Result<(), DropReason> {
    headers.path = UNTOUCHED;
    let now = env.now();
    if let Some(path) = known(env, headers, now) {
        // The answer to a pod that asked a Service: its flows know the backend, and its device makes the
        // Service's answer of it.
        let is_pods = path == forward::UPLINK_REPLY
            && headers.to.dst == headers.tuple.dst
            && headers.to.dport == headers.tuple.dport;
        if !is_pods {
            headers.path = path;
        }
        return Ok(());
    }
    if !matches!(headers.kind, Kind::Tcp | Kind::Ports) || headers.fragment == Fragment::Later {
        return Ok(());
    }
    let tuple = &headers.tuple;
    let Some(frontend) = service::find(env, tuple.dst, tuple.dport, tuple.proto(), false) else {
        return Ok(());
    };
    if frontend.flags & Frontend::EXTERNAL == 0 {
        return Ok(());
    }
    deliver(env, &frontend, headers, ifindex, now)?;
    headers.path = if headers.notes & Headers::DIRECT != 0 {
        forward::UPLINK_DIRECT
    } else {
        forward::UPLINK_SERVICE
    };
    Ok(())
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
    if !service::admits(env, frontend, &headers.tuple.src) {
        headers.service = frontend.service;
        env.served(frontend.service, true);
        return Err(DropReason::SourceRange);
    }
    let set = frontend.external;
    let assigned = service::assign_outside(env, frontend, set, headers);
    env.served(frontend.service, assigned.is_err());
    assigned?;
    if direct::may(env, headers, ifindex) {
        return direct::keep(env, headers, set, now);
    }
    headers.notes &= !Headers::DIRECT;
    let (from, to, chosen) = (&headers.tuple, &mut headers.to, &headers.backend);
    if to.dport != from.dport && !nat::has_ports(from.proto()) {
        return Err(DropReason::ProtocolUnsupported);
    }
    let owner = Owner {
        flags: 0,
        backend: chosen.id,
        set,
    };
    nat::remember(env, from, to, owner, now)?;
    if to.dst != chosen.backend.addr {
        // Another CPU has chosen for the same flow, and remembers what it needs.
        return Ok(());
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
        // When the backend goes, it is the first entry that leads elsewhere.
        let owner = Owner { set: 0, ..owner };
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
        // Only what comes from outside goes elsewhere as it is.
        return Ok(if path == forward::UPLINK_DIRECT {
            UNTOUCHED
        } else {
            path
        });
    }
    let tuple = &headers.tuple;
    let Some(endpoint) = env.endpoint(&tuple.src) else {
        return Ok(UNTOUCHED);
    };
    if env.range(&tuple.dst) != 0 {
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
        set: 0,
    };
    headers.to = headers.tuple;
    headers.to.src = addr;
    nat::source(env, &headers.tuple, &mut headers.to, owner, now)?;
    Ok(forward::MASQUERADE)
}
