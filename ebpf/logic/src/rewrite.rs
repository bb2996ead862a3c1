//! Gives a packet another tuple, and its checksums what they need.

use crate::checksum;
use crate::packet::Packet;
use crate::parse::{Family, Fragment, Headers, Kind, L3};
use xebec_ebpf_abi::{Addr, DropReason, Port, Tuple, proto};

/// Makes `headers.tuple` of the packet `headers.to`. In an ICMP error the packet inside changes along (its
/// addresses, its ports and its IP checksum, but not its transport checksum, which may be cut off and
/// which nobody verifies), and the error's own source only if the flow's other side sent it.
#[inline(never)]
pub fn rewrite<F: Family, P: Packet>(packet: P, headers: &Headers) -> Result<(), DropReason> {
    let to = &headers.to;
    let outer = (headers.src, headers.dst);
    let from = &headers.tuple;
    let new_src = if headers.src == from.src {
        to.src
    } else {
        headers.src
    };
    let new = (new_src, to.dst);
    let ports_change = from.sport != to.sport || from.dport != to.dport;
    let has_transport = headers.fragment != Fragment::Later;

    if ports_change && headers.proto == proto::SCTP {
        // Its CRC covers the ports, and there is no helper that computes it.
        return Err(DropReason::ProtocolUnsupported);
    }
    if headers.kind == Kind::IcmpError {
        inside::<F, P>(packet, headers, to)?;
    }
    let addresses = F::diff(outer, new);
    if let Some(offset) = F::CHECKSUM {
        ok(packet.l3_checksum(L3 + offset, addresses))?;
    }
    if has_transport {
        let checksum = match headers.proto {
            proto::TCP => 16,
            proto::UDP => 6,
            proto::ICMP | proto::ICMPV6 => 2,
            _ => 0,
        };
        let is_udp = headers.proto == proto::UDP;
        // ICMP over IPv4 alone sums no addresses.
        if checksum != 0 && headers.proto != proto::ICMP {
            ok(packet.l4_checksum(headers.l4 + checksum, addresses, true, is_udp))?;
        }
        if ports_change {
            match headers.kind {
                Kind::Tcp | Kind::Ports => {
                    ok(packet.l4_checksum(headers.l4 + checksum, ports(from, to), false, is_udp))?;
                    ok(packet.store(headers.l4, &[to.sport.raw(), to.dport.raw()]))?;
                }
                Kind::EchoRequest | Kind::EchoReply => {
                    let (old, new) = echo_ids(headers.kind, from, to);
                    let diff = checksum::diff16(old.raw(), new.raw());
                    ok(packet.l4_checksum(headers.l4 + checksum, diff, false, false))?;
                    ok(packet.store(headers.l4 + 4, &new.raw()))?;
                }
                Kind::IcmpError | Kind::Link | Kind::Other => {}
            }
        }
    }
    store_addresses::<F, P>(packet, L3, new)
}

/// Rewrites the packet that an ICMP error is about, and the error's checksum over it.
#[inline(always)]
fn inside<F: Family, P: Packet>(
    packet: P,
    headers: &Headers,
    to: &Tuple,
) -> Result<(), DropReason> {
    let (from, to) = (headers.tuple.reversed(), to.reversed());
    let addresses = F::diff((from.src, from.dst), (to.src, to.dst));
    let sum = headers.l4 + 2;
    match F::CHECKSUM {
        // The change of the addresses and of the checksum over them cancel out in the outer sum.
        Some(offset) => ok(packet.l3_checksum(headers.inner_l3 + offset, addresses))?,
        None => ok(packet.l4_checksum(sum, addresses, false, false))?,
    }
    match headers.inner_kind {
        Kind::Tcp | Kind::Ports => {
            ok(packet.l4_checksum(sum, ports(&from, &to), false, false))?;
            ok(packet.store(headers.inner_l4, &[to.sport.raw(), to.dport.raw()]))?;
        }
        Kind::EchoRequest | Kind::EchoReply => {
            let (old, new) = echo_ids(headers.inner_kind, &from, &to);
            ok(packet.l4_checksum(sum, checksum::diff16(old.raw(), new.raw()), false, false))?;
            ok(packet.store(headers.inner_l4 + 4, &new.raw()))?;
        }
        Kind::IcmpError | Kind::Link | Kind::Other => {}
    }
    store_addresses::<F, P>(packet, headers.inner_l3, (to.src, to.dst))
}

#[inline(always)]
fn store_addresses<F: Family, P: Packet>(
    packet: P,
    l3: u32,
    (src, dst): (Addr, Addr),
) -> Result<(), DropReason> {
    ok(packet.store(l3 + F::ADDRS, &[F::raw(src), F::raw(dst)]))
}

#[inline(always)]
fn ports(from: &Tuple, to: &Tuple) -> u32 {
    checksum::add(
        checksum::diff16(from.sport.raw(), to.sport.raw()),
        checksum::diff16(from.dport.raw(), to.dport.raw()),
    )
}

/// The echo identifier before and after.
#[inline(always)]
fn echo_ids(kind: Kind, from: &Tuple, to: &Tuple) -> (Port, Port) {
    if kind == Kind::EchoRequest {
        (from.sport, to.sport)
    } else {
        (from.dport, to.dport)
    }
}

#[inline(always)]
fn ok(done: bool) -> Result<(), DropReason> {
    if done {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}
