//! Services at the socket: the backend is chosen when a client connects or sends, so its packets
//! carry the backend's address from the start.

use crate::env::Env;
use crate::service::{self, Chosen};
use xebec_ebpf_abi::{
    Addr, AffinityKey, DropReason, Frontend, Port, SockFrontend, SockKey, forward, proto,
};

/// The socket that asks.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    pub cookie: u64,
    pub netns: u64,
    pub proto: u8,
}

/// What the hook does with the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Rewrite(Addr, Port),
    Refuse(DropReason),
}

/// The socket connects.
#[inline(always)]
pub fn connect<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    let action = translate(env, socket, addr, port);
    if action == Action::Pass && socket.proto == proto::UDP {
        // The socket may have talked to a Service of the same backend before.
        env.remove_sock_frontend(&SockKey::new(socket.cookie, addr, port));
    }
    action
}

/// The socket sends a datagram without being connected.
#[inline(always)]
pub fn send<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    translate(env, socket, addr, port)
}

/// The socket is told whom it received from or is connected to.
#[inline(always)]
pub fn peer<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    match env.sock_frontend(&SockKey::new(socket.cookie, addr, port)) {
        Some(frontend) => Action::Rewrite(frontend.addr, frontend.port),
        None => Action::Pass,
    }
}

#[inline(always)]
fn translate<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    if socket.proto != proto::TCP && socket.proto != proto::UDP {
        return Action::Pass;
    }
    let from_node = env
        .config()
        .is_some_and(|c| c.node_netns_cookie == socket.netns);
    let Some(frontend) = service::find(env, addr, port, socket.proto, from_node) else {
        return Action::Pass;
    };
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        if !from_node {
            // Judged and translated at the pod's device, where the client's address is seen.
            return Action::Pass;
        }
        if frontend.flags & Frontend::FROM_NODE == 0 {
            return Action::Refuse(DropReason::SourceRange);
        }
    }
    match pick(env, socket, &frontend) {
        Ok(chosen) => remember(env, socket, addr, port, &frontend, &chosen),
        Err(reason) => Action::Refuse(reason),
    }
}

#[inline(always)]
fn pick<E: Env>(env: &E, socket: &Socket, frontend: &Frontend) -> Result<Chosen, DropReason> {
    let set = frontend.internal;
    // Datagrams of one socket go to one backend while the set stays; connections are spread.
    let dice = if socket.proto == proto::UDP {
        service::mix(socket.cookie ^ (u64::from(set) << 40))
    } else {
        env.random()
    };
    service::choose(
        env,
        frontend,
        set,
        AffinityKey::netns(socket.netns, set),
        dice,
    )
}

#[inline(always)]
fn remember<E: Env>(
    env: &E,
    socket: &Socket,
    addr: Addr,
    port: Port,
    frontend: &Frontend,
    chosen: &Chosen,
) -> Action {
    let (to, to_port) = (chosen.backend.addr, chosen.backend.port);
    let asked = SockFrontend::new(addr, port, frontend.service);
    // Without the entry a UDP client would be answered by a stranger; TCP needs it for
    // getpeername(2) only.
    let kept = env.set_sock_frontend(&SockKey::new(socket.cookie, to, to_port), &asked);
    if !kept && socket.proto == proto::UDP {
        return Action::Refuse(DropReason::FlowTableFull);
    }
    env.forwarded(forward::SOCKET, 0);
    Action::Rewrite(to, to_port)
}
