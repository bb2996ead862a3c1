//! NetworkPolicy: may a pod talk to a peer?

use crate::env::Env;
use xebec_ebpf_abi::{Addr, Endpoint, PolicyKey, PolicyVerdict, Port, Remote, direction, identity};

/// Whether `endpoint` may start (egress) or be sent (ingress) a flow with `remote`. `port` is the
/// flow's destination port.
#[inline(always)]
pub fn allows<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    direction: u8,
    remote: &Addr,
    proto: u8,
    port: Port,
) -> bool {
    let isolated = if direction == direction::INGRESS {
        Endpoint::ISOLATE_INGRESS
    } else {
        Endpoint::ISOLATE_EGRESS
    };
    if endpoint.flags & isolated == 0 {
        return true;
    }
    let peer = env.remote(remote).unwrap_or(Remote::WORLD);
    if direction == direction::INGRESS && peer.flags & Remote::HOST != 0 {
        return true;
    }
    let key = |who| PolicyKey::new(endpoint.id, direction, who, proto, port);
    let found = match env.policy(&key(peer.identity)) {
        Some(found) => Some(found),
        None => env.policy(&key(identity::ANY)),
    };
    found.is_some_and(|v| v.verdict == PolicyVerdict::ALLOW)
}
