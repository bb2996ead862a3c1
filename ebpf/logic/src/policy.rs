//! NetworkPolicy: may a pod talk to a peer?

use crate::env::Env;
use xebec_ebpf_abi::{Addr, Endpoint, PolicyKey, PolicyVerdict, Port, Remote, direction, identity};

/// What policy says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub allowed: bool,
    /// `PolicyVerdict::rule` of what decided; 0: no rule did.
    pub rule: u32,
}

/// Whether `endpoint` may start (egress) or be sent (ingress) a flow with `remote`, and which rule it is that decides. `port`
/// is the flow's destination port.
#[inline(always)]
pub fn asks<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    direction: u8,
    remote: &Addr,
    proto: u8,
    port: Port,
) -> Said {
    const UNASKED: Said = Said {
        allowed: true,
        rule: 0,
    };
    let isolated = if direction == direction::INGRESS {
        Endpoint::ISOLATE_INGRESS
    } else {
        Endpoint::ISOLATE_EGRESS
    };
    if endpoint.flags & isolated == 0 {
        return UNASKED;
    }
    let peer = env.remote(remote).unwrap_or(Remote::WORLD);
    if direction == direction::INGRESS && peer.flags & Remote::HOST != 0 {
        return UNASKED;
    }
    let key = |who| PolicyKey::new(endpoint.id, direction, who, proto, port);
    let found = match env.policy(&key(peer.identity)) {
        Some(found) => Some(found),
        None => env.policy(&key(identity::ANY)),
    };
    match found {
        Some(found) => Said {
            allowed: found.verdict == PolicyVerdict::ALLOW,
            rule: found.rule,
        },
        None => Said {
            allowed: false,
            rule: 0,
        },
    }
}
