//! Packets as drivers see them: the entry at uplinks before the stack.

use crate::{
    env::Kernel,
    events::{self, Sight},
    fib,
};
use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, xdp_action, xdp_md,
    },
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len,
    },
    macros::{map, xdp},
    maps::{HashMap, LruHashMap, PerCpuArray},
    programs::XdpContext,
};
use xebec_ebpf_abi::{Tuple, XdpDevice, seen};
use xebec_ebpf_logic::{
    Packet, checksum,
    packet::Plain,
    parse::{ETH_IPV4, ETH_IPV6, Headers, L3, V4, V6},
    reject::Reply,
    route,
    xdp::{self, Decided, Driver, Hop, Verdict},
};

#[map]
static XDP_DEVICES: HashMap<u32, XdpDevice> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
/// What was decided about flows, for a second. Only a cache: a new program starts with none.
#[map]
static DECIDED: LruHashMap<Tuple, Decided> = LruHashMap::with_max_entries(131_072, 0);
/// Memory that would fill the stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Scratch {
    headers: Headers,
    decided: Decided,
}

/// No action of the kernel's: the packet's flow has to be decided about.
const UNDECIDED: u32 = u32::MAX;
/// Nor this: the packet has to be put into another one.
const WRAP: u32 = u32::MAX - 1;

#[xdp(frags)]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: drivers run programs with bottom halves off and one at a time: nobody else on this CPU has the
    // entry. Its parts are written before they are read.
    let Scratch { headers, decided } = unsafe { &mut *scratch };
    let action = arrives(ctx.ctx, headers, decided);
    if action == WRAP {
        return wrap(ctx.ctx, decided);
    }
    if action != UNDECIDED {
        return action;
    }
    let len = Frame::new(ctx.ctx).len().wrapping_sub(L3) as u16;
    let action = if xdp::decide(&Kernel, &At(ctx.ctx), headers, len, decided) {
        follows(ctx.ctx, headers, decided)
    } else {
        UNDECIDED
    };
    tell(ctx.ctx, headers, u32::from(len));
    match action {
        UNDECIDED => xdp_action::XDP_PASS,
        WRAP => wrap(ctx.ctx, decided),
        action => action,
    }
}

/// A driver leaves room in front of a frame.
#[inline(never)]
fn wrap(ctx: *mut xdp_md, decided: &Decided) -> u32 {
    let v4 = decided.dst.is_v4();
    let bytes = if v4 { V4::HEADER } else { V6::HEADER };
    // SAFETY: the context of the running program; no pointer into the frame is used any more.
    if unsafe { bpf_xdp_adjust_head(ctx, -(bytes as i32)) } != 0 {
        return xdp_action::XDP_PASS;
    }
    let frame = Frame::new(ctx);
    action(if v4 {
        xdp::wrap::<V4, _, _>(&Kernel, frame, decided)
    } else {
        xdp::wrap::<V6, _, _>(&Kernel, frame, decided)
    })
}

/// Tells of a flow that is new. Nothing is dropped here: what is refused is tc's to refuse, and to tell of.
#[inline(always)]
fn tell(ctx: *mut xdp_md, headers: &mut Headers, len: u32) {
    if headers.notes & Headers::NEW == 0 {
        return;
    }
    // The client and its endpoint; the node's address between them is no news.
    headers.tuple.dst = headers.backend.backend.addr;
    headers.tuple.dport = headers.backend.backend.port;
    let sight = Sight {
        seen: seen::XDP,
        ifindex: At(ctx).ifindex(),
        bytes: L3 + len,
    };
    events::tell(sight, headers, 0, || 0);
}

// Functions of their own: so the stack they need is free again for `decide`, and the verifier does not
// walk that once for each way through them.

#[inline(never)]
fn arrives(ctx: *mut xdp_md, headers: &mut Headers, copy: &mut Decided) -> u32 {
    let frame = Frame::new(ctx);
    action(match frame.ethertype() {
        ETH_IPV4 => xdp::arrives::<V4, _, _, _>(&Kernel, &At(ctx), frame, headers, copy),
        ETH_IPV6 => xdp::arrives::<V6, _, _, _>(&Kernel, &At(ctx), frame, headers, copy),
        _ => Verdict::Pass,
    })
}

#[inline(never)]
fn follows(ctx: *mut xdp_md, headers: &Headers, decided: &mut Decided) -> u32 {
    let frame = Frame::new(ctx);
    action(match frame.ethertype() {
        ETH_IPV4 => xdp::follow::<V4, _, _, _>(&Kernel, &At(ctx), frame, headers, decided),
        ETH_IPV6 => xdp::follow::<V6, _, _, _>(&Kernel, &At(ctx), frame, headers, decided),
        _ => Verdict::Pass,
    })
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Turn => xdp_action::XDP_TX,
        // SAFETY: a helper that takes numbers.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        Verdict::Undecided => UNDECIDED,
        Verdict::Wrap => WRAP,
    }
}

/// Where and when a program runs.
struct At(*mut xdp_md);

/// A frame in the driver's memory. Headers are read and written in place.
#[derive(Clone, Copy)]
struct Frame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    fn new(ctx: *mut xdp_md) -> Frame {
        // SAFETY: the context of the running program.
        let (data, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
        Frame { ctx, data, end }
    }

    /// In host order; 0: there is none.
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        self.load::<u16>(12).map_or(0, u16::from_be)
    }

    /// Where a value lies, if all of it does.
    #[inline(always)]
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let at = self.data + offset as usize;
        if at + size_of::<T>() > self.end {
            return None;
        }
        Some(at as *mut T)
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context of the running program. All of a frame that lies in several pieces counts.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: within the frame. It may lie at any address: the machine's loads take that, and the verifier
        // refuses the program where they do not.
        Some(unsafe { *at })
    }

    #[inline(always)]
    fn store<T: Plain>(&self, offset: u32, value: &T) -> bool {
        let Some(at) = self.at::<T>(offset) else {
            return false;
        };
        // SAFETY: as for `load`; only this program has the frame.
        unsafe { *at = *value };
        true
    }

    #[inline(always)]
    fn l3_checksum(&self, offset: u32, diff: u32) -> bool {
        let Some(sum) = self.load::<u16>(offset) else {
            return false;
        };
        self.store(offset, &checksum::apply(sum, diff))
    }

    #[inline(always)]
    fn l4_checksum(&self, offset: u32, diff: u32, _pseudo: bool, zero_is_none: bool) -> bool {
        let Some(old) = self.load::<u16>(offset) else {
            return false;
        };
        let sum = if zero_is_none {
            checksum::apply_if_any(old, diff)
        } else {
            checksum::apply(old, diff)
        };
        self.store(offset, &sum)
    }
}

impl Driver for At {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn own(&self, ifindex: u32) -> Option<[u16; 3]> {
        let device = XDP_DEVICES.get_ptr(ifindex)?;
        // SAFETY: see services.rs; six bytes, at an even address.
        Some(unsafe { (&raw const (*device).mac).cast::<[u16; 3]>().read() })
    }

    #[inline(always)]
    fn with_decided<R>(&self, key: &Tuple, f: impl FnOnce(&Decided) -> R) -> Option<R> {
        let decided = DECIDED.get_ptr(key)?;
        // SAFETY: entries are replaced, never written in place; one that is evicted meanwhile may be another flow's
        // by now, which costs this packet its way, as a lost one.
        Some(f(unsafe { &*decided }))
    }

    #[inline(always)]
    fn set_decided(&self, key: &Tuple, value: &Decided) {
        // Without the entry the next packet is decided about again.
        let _ = DECIDED.insert(key, value, 0);
    }

    #[inline(never)]
    fn next_hop(&self, tuple: &Tuple, len: u16, decided: &mut Decided) -> Hop {
        let mut fib = fib::question(tuple, len, self.ifindex());
        let found = fib::ask(self.0.cast(), &mut fib, 0);
        // Where the packet is too big it is the device it came in on: the helper has not got to the next one.
        decided.ifindex = fib.ifindex;
        match found {
            BPF_FIB_LKUP_RET_SUCCESS => {}
            BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => return Hop::Device,
            _ => return Hop::None,
        }
        // SAFETY: on success the helper leaves the route's MTU here.
        let mtu = unsafe { fib.__bindgen_anon_1.mtu_result };
        decided.mtu = route::largest(&Kernel, fib.ifindex, u32::from(mtu)) as u16;
        let (d, s) = (fib.dmac, fib.smac);
        decided.link = [
            u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
            u32::from_ne_bytes([d[4], d[5], s[0], s[1]]),
            u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
        ];
        Hop::Known
    }
}
