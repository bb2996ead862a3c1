//! Services at the socket: the backend is chosen when a client connects or sends, so its packets
//! carry the backend's address from the start.

use crate::env::Env;
use crate::least;
use crate::service::{self, Chosen};
use xebec_ebpf_abi::{
    Addr, AffinityKey, Config, DropReason, Frontend, FrontendKey, Given, NodeAddr, Port,
    SockFrontend, SockKey, forward, proto,
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

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node's cgroup directory.
    Node,
    /// The root of the hierarchy.
    Root,
}

/// Whether the program at `place` is the one that serves sockets of the network namespace. The root's
/// serves the node's own, whatever cgroup they are in, once it is said to be attached; the node's serves
/// all others below it.
#[inline(always)]
pub fn serves<E: Env>(env: &E, place: Place, netns: u64) -> bool {
    let roots = env
        .config()
        .is_some_and(|c| c.flags & Config::AT_ROOT != 0 && c.node_netns_cookie == netns);
    match place {
        Place::Root => roots,
        Place::Node => !roots,
    }
}

/// The socket binds to an address of its own. Where NodePorts and host ports are served no process of
/// the node may listen: it would never see a packet, and the Service would lose what is on its way.
#[inline(always)]
pub fn bind<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    if port.raw() == 0 || !is_node(env, socket.netns) {
        return Action::Pass;
    }
    let is_taken = |key: &FrontendKey| {
        env.frontend(key)
            .is_some_and(|f| f.flags & Frontend::EXTERNAL != 0)
    };
    let on_all = |v4| is_taken(&FrontendKey::node_port(v4, port, socket.proto));
    let taken = if addr == Addr::ANY {
        // A socket of both families.
        on_all(true) || on_all(false)
    } else if addr == Addr::ANY_V4 || addr.is_loopback() {
        on_all(addr.is_v4())
    } else {
        let own = env
            .node_addr(&addr)
            .is_some_and(|a| a.flags & NodeAddr::NODEPORT != 0);
        own && (on_all(addr.is_v4()) || is_taken(&FrontendKey::new(addr, port, socket.proto)))
    };
    if taken {
        Action::Refuse(DropReason::PortReserved)
    } else {
        Action::Pass
    }
}

#[inline(always)]
fn is_node<E: Env>(env: &E, netns: u64) -> bool {
    env.config().is_some_and(|c| c.node_netns_cookie == netns)
}

/// The socket connects.
#[inline(always)]
pub fn connect<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    let action = translate(env, socket, addr, port, true);
    if action == Action::Pass && socket.proto == proto::UDP {
        // The socket may have talked to a Service of the same backend before.
        let before = SockKey::new(socket.cookie, addr, port);
        env.remove_sock_frontend(&before);
        env.remove_given(&before);
    }
    action
}

/// The socket sends a datagram without being connected.
#[inline(always)]
pub fn send<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port) -> Action {
    translate(env, socket, addr, port, false)
}

/// The socket is closed. It is connected to an address, or to port 0 if it is not.
#[inline(always)]
pub fn close<E: Env>(env: &E, cookie: u64, proto: u8, addr: Addr, port: Port) {
    env.end_connection(cookie);
    if port.raw() != 0 {
        let key = SockKey::new(cookie, addr, port);
        env.remove_sock_frontend(&key);
        if proto == proto::UDP {
            env.remove_given(&key);
        }
    }
    if proto != proto::UDP {
        return;
    }
    let own = SockKey::last(cookie);
    if let Some(last) = env.sock_frontend(&own) {
        env.remove_sock_frontend(&SockKey::new(cookie, last.addr, last.port));
        env.remove_sock_frontend(&own);
    }
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
fn translate<E: Env>(env: &E, socket: &Socket, addr: Addr, port: Port, connects: bool) -> Action {
    if socket.proto != proto::TCP && socket.proto != proto::UDP {
        return Action::Pass;
    }
    let from_node = is_node(env, socket.netns);
    let Some(frontend) = service::find(env, addr, port, socket.proto, from_node) else {
        return if env.frontend(&FrontendKey::address(addr)).is_some() {
            Action::Refuse(DropReason::NoServicePort)
        } else {
            Action::Pass
        };
    };
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        if !from_node {
            // Judged and translated at the pod's device, where the client's address is seen.
            return Action::Pass;
        }
        if frontend.flags & Frontend::FROM_NODE == 0 {
            env.served(frontend.service, true);
            return Action::Refuse(DropReason::SourceRange);
        }
    }
    match pick(env, socket, &frontend, connects) {
        Ok(chosen) => {
            if connects && frontend.flags & Frontend::LEAST_CONNECTIONS != 0 {
                env.count_connection(socket.cookie, chosen.id);
            }
            if connects && socket.proto == proto::UDP {
                // What `steer` needs when the backend goes. A datagram without a connection is given
                // one when it is sent.
                let backend = &chosen.backend;
                env.set_given(
                    &SockKey::new(socket.cookie, backend.addr, backend.port),
                    &Given::new(addr, port, chosen.id),
                );
            }
            remember(env, socket, (addr, port), &frontend, &chosen, connects)
        }
        Err(reason) => {
            env.served(frontend.service, true);
            Action::Refuse(reason)
        }
    }
}

#[inline(always)]
fn pick<E: Env>(
    env: &E,
    socket: &Socket,
    frontend: &Frontend,
    connects: bool,
) -> Result<Chosen, DropReason> {
    let set = frontend.internal;
    // Datagrams of one socket go to one backend while the set stays; connections are spread.
    let dice = if connects && frontend.flags & Frontend::LEAST_CONNECTIONS != 0 {
        least::dice(env, set)
    } else if socket.proto == proto::UDP {
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
    (addr, port): (Addr, Port),
    frontend: &Frontend,
    chosen: &Chosen,
    connects: bool,
) -> Action {
    let (to, to_port) = (chosen.backend.addr, chosen.backend.port);
    let asked = SockFrontend::new(addr, port, frontend.service);
    let key = SockKey::new(socket.cookie, to, to_port);
    // A socket that is not connected asks with every datagram: mostly what it has asked before.
    if env.sock_frontend(&key) == Some(asked) {
        env.forwarded(forward::SOCKET, 0);
        return Action::Rewrite(to, to_port);
    }
    // Without the entry a UDP client would be answered by a stranger; TCP needs it for
    // getpeername(2) only.
    let kept = env.set_sock_frontend(&key, &asked);
    env.served(frontend.service, !kept && socket.proto == proto::UDP);
    if !kept && socket.proto == proto::UDP {
        return Action::Refuse(DropReason::FlowTableFull);
    }
    if !connects {
        // For `close`, which is not told.
        let last = SockFrontend::new(to, to_port, frontend.service);
        env.set_sock_frontend(&SockKey::last(socket.cookie), &last);
    }
    // What goes to or comes from a pod of this node is seen at its device.
    if is_node(env, socket.netns) && env.endpoint(&to).is_none() {
        env.sent_away(socket, &asked, &to, to_port);
    }
    env.forwarded(forward::SOCKET, 0);
    Action::Rewrite(to, to_port)
}
