//! Counts of open connections, and the end of sockets.

use crate::{counters, env::Kernel};
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock, map},
    maps::{Array, HashMap},
    programs::SockContext,
};
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use xebec_ebpf_abi::{Addr, Port, inserts};
use xebec_ebpf_logic::socket;

/// As many as `BACKENDS` has entries.
#[map]
static CONNECTIONS: Array<u64> = Array::pinned(262_144, 0);
#[map]
static COUNTED: HashMap<u64, u32> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[inline(always)]
pub fn connections(backend: u32) -> u64 {
    // SAFETY: an array's values live as long as the map and are aligned; they are read in one access.
    CONNECTIONS
        .get_ptr(backend)
        .map_or(0, |count| unsafe { count.read_volatile() })
}

/// Adds in one step: several CPUs count for the same backend.
#[inline(always)]
fn add(backend: u32, number: u64) {
    if let Some(count) = CONNECTIONS.get_ptr_mut(backend) {
        // SAFETY: as above. The stable atomics of this target have no such operation, the kernel has.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, number) };
    }
}

#[inline(always)]
pub fn count(cookie: u64, backend: u32) {
    end(cookie);
    counters::inserted(inserts::COUNTED);
    if COUNTED
        .insert(cookie, backend, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        add(backend, 1);
    }
}

#[inline(always)]
pub fn end(cookie: u64) {
    // SAFETY: see services.rs.
    let Some(backend) = unsafe { COUNTED.get(cookie) }.copied() else {
        return;
    };
    // Only one of those who try takes it out.
    if COUNTED.remove(cookie).is_ok() {
        add(backend, 1_u64.wrapping_neg());
    }
}

const AF_INET: u32 = 2;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    release(&ctx)
}

#[cgroup_sock(sock_release)]
pub fn root_sock_release(ctx: SockContext) -> i32 {
    release(&ctx)
}

#[inline(always)]
fn release(ctx: &SockContext) -> i32 {
    let sock = ctx.sock;
    // SAFETY: the context of the running program, as the helper takes it. Its fields are read word by word, as the verifier wants,
    // and those of both families always: a choice between two places would become one of a computed place, which it does not take.
    let (cookie, family, proto, port, v4, v6) = unsafe {
        let mut v6 = [0; 4];
        for (i, word) in v6.iter_mut().enumerate() {
            *word = core::ptr::read_volatile(&raw const (*sock).dst_ip6[i]);
        }
        (
            bpf_get_socket_cookie(ctx.as_ptr()),
            core::ptr::read_volatile(&raw const (*sock).family),
            core::ptr::read_volatile(&raw const (*sock).protocol) as u8,
            Port::from_raw(core::ptr::read_volatile(&raw const (*sock).dst_port)),
            core::ptr::read_volatile(&raw const (*sock).dst_ip4),
            v6,
        )
    };
    let addr = if family == AF_INET {
        Addr::from_v4_word(v4)
    } else {
        Addr::from_words(v6)
    };
    socket::close(&Kernel, cookie, proto, addr, port);
    // Nobody asks: the socket ends anyhow.
    1
}
