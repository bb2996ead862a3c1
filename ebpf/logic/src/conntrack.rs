//! Flows of a pod: makes policy stateful.
//!
//! Established flows are judged again when the endpoint's epoch has changed: a policy that no longer
//! allows a flow ends it. (The NetworkPolicy API leaves this to the implementation; ending is the
//! safe reading of it.)

use crate::env::Env;
use crate::parse::{ACK, FIN, Fragment, Headers, Kind, RST, SYN};
use crate::policy;
use xebec_ebpf_abi::{
    DropReason, Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, direction, proto,
};

const SECOND: u64 = 1_000_000_000;
/// Nothing has answered yet.
pub const TIMEOUT_NEW: u64 = 60 * SECOND;
/// TCP, both sides have spoken.
pub const TIMEOUT_TCP: u64 = 24 * 3600 * SECOND;
/// TCP after FIN from both sides, or RST.
pub const TIMEOUT_CLOSING: u64 = 30 * SECOND;
/// UDP and all else, both sides have spoken.
pub const TIMEOUT_OTHER: u64 = 180 * SECOND;
/// Expiry is pushed on in steps, so that a busy flow does not write its entry with every packet.
pub const STEP: u64 = SECOND;

/// How long a flow in `state` lives without a packet, in nanoseconds.
#[inline(always)]
pub fn timeout(proto: u8, state: u8) -> u64 {
    const BOTH_FIN: u8 = Flow::FIN_ORIGINAL | Flow::FIN_REPLY;
    if state & Flow::RESET != 0 || state & BOTH_FIN == BOTH_FIN {
        TIMEOUT_CLOSING
    } else if state & Flow::REPLIED == 0 {
        TIMEOUT_NEW
    } else if proto == proto::TCP {
        TIMEOUT_TCP
    } else {
        TIMEOUT_OTHER
    }
}

/// The state after a packet. `original`: from the side that sent the first one.
#[inline(always)]
pub fn step(state: u8, tcp_flags: u8, original: bool) -> u8 {
    let mut next = state;
    if !original {
        next |= Flow::REPLIED;
    }
    if tcp_flags & FIN != 0 {
        next |= if original {
            Flow::FIN_ORIGINAL
        } else {
            Flow::FIN_REPLY
        };
    }
    if tcp_flags & RST != 0 {
        next |= Flow::RESET;
    }
    next
}

/// Whether a packet starts a connection, whatever has used its ports before.
#[inline(always)]
pub fn opens(headers: &Headers) -> bool {
    headers.tcp_flags & (SYN | ACK | RST) == SYN
}

/// What an existing entry says about a packet.
enum Known {
    Pass,
    /// The endpoint's epoch has changed since; the flow's direction and the packet's state follow.
    Judge(u8),
    /// The entry does not count.
    Stale,
}

/// Decides whether a packet may leave (`EGRESS`) or enter (`INGRESS`) the endpoint and remembers the
/// flow. `headers` has ports, see [`fragment`].
#[inline(never)]
pub fn admit<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    way: u8,
    headers: &Headers,
) -> Result<(), DropReason> {
    let tuple = &headers.tuple;
    let denied = if way == direction::INGRESS {
        DropReason::PolicyIngress
    } else {
        DropReason::PolicyEgress
    };
    let (local_port, remote, remote_port) = if way == direction::EGRESS {
        (tuple.sport, tuple.dst, tuple.dport)
    } else {
        (tuple.dport, tuple.src, tuple.sport)
    };
    let key = FlowKey::new(endpoint.id, local_port, remote, remote_port, tuple.proto());
    let related = headers.kind == Kind::IcmpError;
    let opens = opens(headers);
    let now = env.now();

    let known = env.with_flow(&key, |flow| {
        if flow.expires <= now {
            return Known::Stale;
        }
        let original = flow.direction == way;
        if opens
            && (!original || flow.state & (Flow::RESET | Flow::FIN_ORIGINAL | Flow::FIN_REPLY) != 0)
        {
            return Known::Stale;
        }
        if related {
            return Known::Pass;
        }
        if flow.epoch != endpoint.epoch {
            return Known::Judge(flow.direction);
        }
        let state = step(flow.state, headers.tcp_flags, original);
        let expires = now + timeout(tuple.proto(), state);
        if state != flow.state || expires > flow.expires + STEP {
            flow.state = state;
            flow.expires = expires;
        }
        Known::Pass
    });

    let way_of_flow = match known {
        Some(Known::Pass) => return Ok(()),
        Some(Known::Judge(flow_direction)) => flow_direction,
        Some(Known::Stale) | None if related => return Err(denied),
        Some(Known::Stale) | None => way,
    };
    let port = if way_of_flow == direction::EGRESS {
        remote_port
    } else {
        local_port
    };
    if !policy::allows(env, endpoint, way_of_flow, &remote, tuple.proto(), port) {
        return Err(denied);
    }
    if matches!(known, Some(Known::Judge(_))) {
        env.with_flow(&key, |flow| {
            flow.epoch = endpoint.epoch;
            flow.state = step(flow.state, headers.tcp_flags, flow.direction == way);
            flow.expires = now + timeout(tuple.proto(), flow.state);
        });
        return Ok(());
    }
    let state = step(0, headers.tcp_flags, true);
    let flow = Flow::new(
        way,
        state,
        endpoint.epoch,
        now + timeout(tuple.proto(), state),
    );
    if env.set_flow(&key, &flow) {
        Ok(())
    } else {
        Err(DropReason::FlowTableFull)
    }
}

/// Gives a later fragment the ports its first one had, and remembers those of a first one.
#[inline(never)]
pub fn fragment<E: Env>(env: &E, headers: &mut Headers) -> Result<(), DropReason> {
    if headers.fragment == Fragment::Whole {
        return Ok(());
    }
    let key = FragmentKey::new(headers.src, headers.dst, headers.fragment_id, headers.proto);
    if headers.fragment == Fragment::First {
        let ports = FragmentPorts {
            sport: headers.tuple.sport,
            dport: headers.tuple.dport,
        };
        env.set_fragment(&key, &ports);
        return Ok(());
    }
    let ports = env.fragment(&key).ok_or(DropReason::FragmentUnknown)?;
    headers.tuple.sport = ports.sport;
    headers.tuple.dport = ports.dport;
    Ok(())
}
