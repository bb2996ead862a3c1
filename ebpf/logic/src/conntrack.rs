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
pub const STEP: u64 = SECOND / 50;
/// How long what was decided of a flow is followed without asking again, by shortcuts and drivers.
pub const DECIDED: u64 = SECOND;

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

/// The same where only packets of the side that sent the first one are seen: who acknowledges has been answered, and who
/// has finished will send little more, for which the flow is kept alive by that itself.
#[inline(always)]
pub fn step_unanswered(state: u8, tcp_flags: u8) -> u8 {
    let mut next = state;
    if tcp_flags & ACK != 0 {
        next |= Flow::REPLIED;
    }
    if tcp_flags & FIN != 0 {
        next |= Flow::FIN_ORIGINAL | Flow::FIN_REPLY;
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

/// [`admit`] may answer [`UNKNOWN`] instead of judging a flow that has no entry.
pub const KNOWN_ONLY: u8 = 1;
/// No entry, with [`KNOWN_ONLY`]; else [`admit`] answers with a flow's state.
pub const UNKNOWN: u8 = 0x80;

/// What an existing entry says about a packet.
enum Known {
    /// The flow's state.
    Pass(u8),
    /// The endpoint's epoch has changed since; the flow's direction follows.
    Judge(u8),
    /// The entry does not count.
    Stale,
}

/// What [`judge`] answers instead of a state. A plain number: of a `Result` with a byte in it the
/// compiler leaves the rest of the register to chance, which the verifier refuses.
const DENIED: u32 = 0x100;
const FULL: u32 = 0x200;

/// Decides whether a packet may leave (`EGRESS`) or enter (`INGRESS`) the endpoint and remembers the
/// flow. `headers` has ports, see [`fragment`]. `mode`: [`KNOWN_ONLY`], or bits of `Flow::*` that the
/// flow gets. `Ok` with the flow's state. Notes in `headers` which rule decided and whether the flow is new.
#[inline(always)]
pub fn admit<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    headers: &mut Headers,
    way: u8,
    mode: u8,
) -> Result<u8, DropReason> {
    match judge(env, endpoint, headers, way, mode) {
        DENIED if way == direction::INGRESS => Err(DropReason::PolicyIngress),
        DENIED => Err(DropReason::PolicyEgress),
        FULL => Err(DropReason::FlowTableFull),
        state => Ok(state as u8),
    }
}

#[inline(never)]
fn judge<E: Env>(env: &E, endpoint: &Endpoint, headers: &mut Headers, way: u8, mode: u8) -> u32 {
    let tuple = &headers.tuple;
    let (local_port, remote, remote_port) = if way == direction::EGRESS {
        (tuple.sport, tuple.dst, tuple.dport)
    } else {
        (tuple.dport, tuple.src, tuple.sport)
    };
    let key = FlowKey::new(endpoint.id, local_port, remote, remote_port, tuple.proto());
    let related = headers.kind == Kind::IcmpError;
    let opens = opens(headers);
    let mark = mode & !KNOWN_ONLY;
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
            return Known::Pass(flow.state);
        }
        if flow.epoch != endpoint.epoch && flow.state & Flow::SELF == 0 {
            return Known::Judge(flow.direction);
        }
        let state = step(flow.state, headers.tcp_flags, original) | mark;
        let expires = now + timeout(tuple.proto(), state);
        if state != flow.state || expires > flow.expires + STEP {
            flow.state = state;
            flow.expires = expires;
            headers.notes |= Headers::PUSHED;
        }
        Known::Pass(state)
    });

    let way_of_flow = match known {
        Some(Known::Pass(state)) => return u32::from(state),
        Some(Known::Judge(flow_direction)) => flow_direction,
        Some(Known::Stale) | None if mode & KNOWN_ONLY != 0 => return u32::from(UNKNOWN),
        Some(Known::Stale) | None if related => return DENIED,
        Some(Known::Stale) | None => way,
    };
    let port = if way_of_flow == direction::EGRESS {
        remote_port
    } else {
        local_port
    };
    let said = policy::asks(env, endpoint, way_of_flow, &remote, tuple.proto(), port);
    if way == direction::INGRESS {
        headers.rules[direction::INGRESS as usize] = said.rule;
    } else {
        headers.rules[direction::EGRESS as usize] = said.rule;
    }
    if !said.allowed {
        return DENIED;
    }
    if matches!(known, Some(Known::Judge(_))) {
        let state = env.with_flow(&key, |flow| {
            flow.epoch = endpoint.epoch;
            flow.state = step(flow.state, headers.tcp_flags, flow.direction == way) | mark;
            flow.expires = now + timeout(headers.tuple.proto(), flow.state);
            flow.state
        });
        return u32::from(state.unwrap_or(0));
    }
    headers.notes |= Headers::NEW;
    let state = step(0, headers.tcp_flags, true) | mark;
    let flow = Flow::new(
        way,
        state,
        endpoint.epoch,
        now + timeout(headers.tuple.proto(), state),
    );
    // Without a policy and without translation nothing depends on the entry.
    let needed =
        mark != 0 || endpoint.flags & (Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS) != 0;
    if env.set_flow(&key, &flow) || !needed {
        u32::from(state)
    } else {
        FULL
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
