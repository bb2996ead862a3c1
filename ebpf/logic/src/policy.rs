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
    let named = env.policy(&PolicyKey::new(
        endpoint.id,
        direction,
        peer.identity,
        proto,
        port,
    ));
    let named = named.map_or(0, |v| v.verdict);
    if named == PolicyVerdict::DENY {
        return false;
    }
    let any = env.policy(&PolicyKey::new(
        endpoint.id,
        direction,
        identity::ANY,
        proto,
        port,
    ));
    let any = any.map_or(0, |v| v.verdict);
    any != PolicyVerdict::DENY && (named == PolicyVerdict::ALLOW || any == PolicyVerdict::ALLOW)
}
