//! Packets at a pod's device.

use crate::conntrack;
use crate::env::Env;
use crate::packet::Packet;
use crate::parse::{self, ETH_ARP, ETH_IPV4, ETH_IPV6, Headers, Kind, V4, V6};
use xebec_ebpf_abi::{Addr, DropReason, Endpoint, direction, forward};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program and the stack.
    Pass,
    Drop(DropReason),
}

/// A packet left a pod through the device `ifindex`. `ethertype` in host order.
#[inline(always)]
pub fn leaves<E: Env, P: Packet>(
    env: &E,
    packet: P,
    headers: &mut Headers,
    ethertype: u16,
    ifindex: u32,
) -> Verdict {
    let outcome = match read(packet, headers, ethertype) {
        Ok(true) => leaving(env, headers, ifindex),
        Ok(false) => Ok(()),
        Err(reason) => Err(reason),
    };
    finish(env, packet, outcome, forward::FROM_POD)
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
    let outcome = match read(packet, headers, ethertype) {
        Ok(true) => entering(env, headers, ifindex),
        Ok(false) => Ok(()),
        Err(reason) => Err(reason),
    };
    finish(env, packet, outcome, forward::TO_POD)
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

#[inline(always)]
fn finish<E: Env, P: Packet>(
    env: &E,
    packet: P,
    outcome: Result<(), DropReason>,
    path: u32,
) -> Verdict {
    match outcome {
        Ok(()) => {
            env.forwarded(path, packet.len());
            Verdict::Pass
        }
        Err(reason) => {
            env.dropped(reason, packet.len());
            Verdict::Drop(reason)
        }
    }
}

#[inline(always)]
fn leaving<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> Result<(), DropReason> {
    if headers.kind == Kind::Link {
        return Ok(());
    }
    let endpoint = own(env, &headers.src, ifindex).ok_or(DropReason::SpoofedSource)?;
    conntrack::fragment(env, headers)?;
    conntrack::admit(env, &endpoint, direction::EGRESS, headers)
}

#[inline(always)]
fn entering<E: Env>(env: &E, headers: &mut Headers, ifindex: u32) -> Result<(), DropReason> {
    if headers.kind == Kind::Link {
        return Ok(());
    }
    let endpoint = own(env, &headers.dst, ifindex).ok_or(DropReason::UnknownEndpoint)?;
    conntrack::fragment(env, headers)?;
    conntrack::admit(env, &endpoint, direction::INGRESS, headers)
}

#[inline(always)]
fn own<E: Env>(env: &E, addr: &Addr, ifindex: u32) -> Option<Endpoint> {
    env.endpoint(addr).filter(|e| e.ifindex == ifindex)
}
