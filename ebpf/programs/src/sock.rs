//! Entries at sockets.

use crate::{counters, env::Kernel, events};
use aya_ebpf::{
    EbpfContext, Global,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use xebec_ebpf_abi::{Addr, DropReason, Port};
use xebec_ebpf_logic::{
    parse::{Family, V4, V6},
    socket::{self, Action, Place, Socket},
};

/// See the abi crate: 0 on kernels without `bpf_set_retval`.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u32> = Global::new(1);

const PERMIT: i32 = 1;
const REFUSE: i32 = 0;
/// What connect(2) says when nobody listens: clients of Services without endpoints know it, and so do
/// the kernel's own clients, which retry EPERM for ever.
const ECONNREFUSED: i32 = 111;
/// What bind(2) says of a port that is in use: programs know it, name the port, or try another one.
const EADDRINUSE: i32 = 98;

/// The address in a context, which the two families keep in different fields.
trait Hook: Family {
    /// # Safety
    /// `ctx` is the running program's context, for this family.
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Addr;
    /// # Safety
    /// As above.
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Addr);
}

impl Hook for V4 {
    #[inline(always)]
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's.
        Addr::from_v4_word(unsafe { core::ptr::read_volatile(&raw const (*ctx).user_ip4) })
    }

    #[inline(always)]
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Addr) {
        // SAFETY: the caller's.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx).user_ip4, addr.words()[3]) }
    }
}

impl Hook for V6 {
    #[inline(always)]
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Addr {
        let mut words = [0; 4];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: the caller's. The verifier wants context accesses word by word.
            *word = unsafe { core::ptr::read_volatile(&raw const (*ctx).user_ip6[i]) };
        }
        Addr::from_words(words)
    }

    #[inline(always)]
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Addr) {
        for (i, word) in addr.words().iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { core::ptr::write_volatile(&raw mut (*ctx).user_ip6[i], *word) }
        }
    }
}

#[inline(always)]
fn run<H: Hook>(
    ctx: &SockAddrContext,
    place: Place,
    decide: impl FnOnce(&Kernel, &Socket, Addr, Port) -> Action,
) -> i32 {
    let raw = ctx.sock_addr;
    // SAFETY: the context of the running program; helpers take it as it is.
    let (socket, addr, port) = unsafe {
        let socket = Socket {
            cookie: bpf_get_socket_cookie(ctx.as_ptr()),
            netns: bpf_get_netns_cookie(ctx.as_ptr()),
            proto: core::ptr::read_volatile(&raw const (*raw).protocol) as u8,
        };
        let port = core::ptr::read_volatile(&raw const (*raw).user_port) as u16;
        (socket, H::read(raw), Port::from_raw(port))
    };
    if !socket::serves(&Kernel, place, socket.netns) {
        return PERMIT;
    }
    match decide(&Kernel, &socket, addr, port) {
        Action::Pass => PERMIT,
        Action::Rewrite(addr, port) => {
            // SAFETY: as above.
            unsafe {
                H::write(raw, addr);
                core::ptr::write_volatile(&raw mut (*raw).user_port, u32::from(port.raw()));
            }
            PERMIT
        }
        Action::Refuse(reason) => {
            counters::dropped(reason, 0);
            events::refused(&addr, port, socket.proto, socket.netns, reason);
            if SET_RETVAL.load() != 0 {
                let errno = match reason {
                    DropReason::PortReserved => EADDRINUSE,
                    _ => ECONNREFUSED,
                };
                // SAFETY: a helper that takes a number.
                unsafe { bpf_set_retval(-errno) };
            }
            REFUSE
        }
    }
}

/// The programs of both places: one for each hook, in each.
macro_rules! hooks {
    ($($hook:ident: $family:ty, $node:ident, $root:ident => $run:ident $(($decide:path))?;)*) => {$(
        #[cgroup_sock_addr($hook)]
        pub fn $node(ctx: SockAddrContext) -> i32 {
            $run::<$family>(&ctx, Place::Node $(, |kernel, socket, addr, port| $decide(kernel, socket, addr, port))?)
        }

        #[cgroup_sock_addr($hook)]
        pub fn $root(ctx: SockAddrContext) -> i32 {
            $run::<$family>(&ctx, Place::Root $(, |kernel, socket, addr, port| $decide(kernel, socket, addr, port))?)
        }
    )*};
}

hooks! {
    connect4: V4, connect4, root_connect4 => run(socket::connect);
    connect6: V6, connect6, root_connect6 => run(socket::connect);
    sendmsg4: V4, sendmsg4, root_sendmsg4 => run(socket::send);
    sendmsg6: V6, sendmsg6, root_sendmsg6 => run(socket::send);
    bind4: V4, bind4, root_bind4 => run(socket::bind);
    bind6: V6, bind6, root_bind6 => run(socket::bind);
    recvmsg4: V4, recvmsg4, root_recvmsg4 => answer;
    recvmsg6: V6, recvmsg6, root_recvmsg6 => answer;
    getpeername4: V4, getpeername4, root_getpeername4 => answer;
    getpeername6: V6, getpeername6, root_getpeername6 => answer;
}

/// These hooks may only permit.
#[inline(always)]
fn answer<H: Hook>(ctx: &SockAddrContext, place: Place) -> i32 {
    let raw = ctx.sock_addr;
    // SAFETY: the context of the running program; helpers take it as it is.
    unsafe {
        let socket = Socket {
            cookie: bpf_get_socket_cookie(ctx.as_ptr()),
            netns: bpf_get_netns_cookie(ctx.as_ptr()),
            proto: core::ptr::read_volatile(&raw const (*raw).protocol) as u8,
        };
        if !socket::serves(&Kernel, place, socket.netns) {
            return PERMIT;
        }
        let port = Port::from_raw(core::ptr::read_volatile(&raw const (*raw).user_port) as u16);
        if let Action::Rewrite(addr, port) = socket::peer(&Kernel, &socket, H::read(raw), port) {
            H::write(raw, addr);
            core::ptr::write_volatile(&raw mut (*raw).user_port, u32::from(port.raw()));
        }
    }
    PERMIT
}
