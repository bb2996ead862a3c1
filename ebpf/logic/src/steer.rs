//! Connected UDP sockets whose backend has gone. A UDP socket is connected once, and nothing tells it
//! that its backend has left the Service: its packets are sent to another backend where they leave the
//! pod, and the answers come back from the address the socket knows. No socket is closed, no error
//! is sent.

use crate::env::Env;
use crate::parse::Headers;
use crate::service;
use xebec_ebpf_abi::{FrontendKey, MemberKey, SockKey, proto};

/// The packet goes where the socket sends it.
pub const STAYS: u32 = 0;
/// It is for the Service in `headers.asked`, as if no backend had been chosen.
pub const ELSEWHERE: u32 = 1;
/// The Service is no more, nor is the backend.
pub const GONE: u32 = 2;

/// It is for a Service, which may be newer than the flow.
pub const SERVICE: u32 = 3;

/// Whether a UDP packet of a pod is for a backend that was given to its `socket` and has gone since. Asked with
/// every packet, so no event can be missed; by the socket, so what another one of the pod, or the same
/// one after another connect, sends to the very same backend is left alone.
#[inline(never)]
pub fn check<E: Env>(env: &E, socket: u64, headers: &mut Headers) -> u32 {
    let tuple = &headers.tuple;
    let Some(given) = env.given(&SockKey::new(socket, tuple.dst, tuple.dport)) else {
        let service = FrontendKey::new(tuple.dst, tuple.dport, proto::UDP);
        return if env.frontend(&service).is_some() {
            SERVICE
        } else {
            STAYS
        };
    };
    let Some(frontend) = service::find(env, given.addr, given.port, proto::UDP, false) else {
        // Another Service may have given out the same backend to another socket.
        let lives = env
            .backend(given.backend)
            .is_some_and(|b| b.addr == tuple.dst && b.port == tuple.dport);
        return if lives { STAYS } else { GONE };
    };
    let member = MemberKey {
        set: frontend.internal,
        backend: given.backend,
    };
    if env.is_member(&member) {
        return STAYS;
    }
    headers.asked = (given.addr, given.port);
    ELSEWHERE
}
