//! Packets as tc sees them: the entries at devices.

use crate::{
    env::Kernel,
    events::{self, Sight},
    fib,
};
use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_SKIP_NEIGH, TC_ACT_SHOT, TC_ACT_UNSPEC,
    },
    helpers::generated::{
        bpf_get_socket_cookie, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect,
        bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::{classifier, map},
    maps::PerCpuArray,
    programs::TcContext,
};
use core::mem::MaybeUninit;
use xebec_ebpf_abi::{Tuple, seen};
use xebec_ebpf_logic::{
    Packet,
    direct::{self, Wrap},
    packet::Plain,
    parse::Headers,
    pod::{self, Verdict},
    reject::Resize,
    route::{self, Router, Way},
    shortcut, uplink,
};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    let shortcut = shortcut::take(&Kernel, skb, skb.ethertype(), skb.ifindex());
    let judged = shortcut == shortcut::JUDGE;
    let mut action = match shortcut {
        shortcut::JUDGE => leaves(skb.0),
        shortcut::STACK => TC_ACT_UNSPEC,
        // SAFETY: a helper that takes numbers.
        peer => unsafe { bpf_redirect_peer(peer, 0) as i32 },
    };
    if action == TC_ACT_UNSPEC {
        action = match route::leave(&Kernel, skb, skb, skb.ethertype(), skb.ifindex()) {
            Way { device: 0, .. } => TC_ACT_UNSPEC,
            // It is not told the next hop, though that is known by now: then it would look no route up, and of a packet without one
            // the kernel tells nobody that its neighbour does not answer.
            // SAFETY: a helper that takes numbers; it looks for the neighbour, and asks for one that is not known.
            Way { device, mtu: 0 } => unsafe {
                bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32
            },
            way => too_big(skb.0, way.device, way.mtu, u32::from(judged)),
        };
    }
    if action == BACK {
        action = answer(skb.0);
    }
    action
}

/// No action of the kernel's: the packet is to be answered.
const BACK: i32 = 256;

// Functions of their own: what is seldom needed takes no stack from what is, and all refusals meet in one.

#[inline(never)]
fn too_big(ctx: *mut __sk_buff, device: u32, mtu: u32, judged: u32) -> i32 {
    let Some(headers) = headers() else {
        return TC_ACT_SHOT as i32;
    };
    let way = Way { device, mtu };
    if route::refuse(&Kernel, Skb(ctx), headers, way, judged != 0) {
        BACK
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(never)]
fn answer(ctx: *mut __sk_buff) -> i32 {
    let skb = Skb(ctx);
    let Some(headers) = headers() else {
        return TC_ACT_SHOT as i32;
    };
    let answered = pod::answer(&Kernel, skb, headers, skb.ifindex());
    tell(skb, headers, seen::FROM_POD, headers.refused);
    if !answered {
        return TC_ACT_SHOT as i32;
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect_peer(skb.ifindex(), 0) as i32 }
}

/// A function of its own: behind it the verifier's many ways through it are one.
#[inline(never)]
fn leaves(ctx: *mut __sk_buff) -> i32 {
    run(&TcContext::new(ctx), seen::FROM_POD, |skb, headers| {
        pod::leaves(&Kernel, skb, headers, skb.ethertype(), skb.ifindex())
    })
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&ctx, seen::TO_POD, |skb, headers| {
        pod::enters(&Kernel, skb, headers, skb.ethertype(), skb.ifindex())
    })
}

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    run(&ctx, seen::FROM_UPLINK, |skb, headers| {
        uplink::arrives(&Kernel, skb, skb, headers, skb.ethertype(), skb.ifindex())
    })
}

#[classifier]
pub fn take_direct(ctx: TcContext) -> i32 {
    run(&ctx, seen::FROM_UPLINK, |skb, headers| {
        direct::arrives(&Kernel, skb, skb, headers, skb.ethertype())
    })
}

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    run(&ctx, seen::TO_UPLINK, |skb, headers| {
        uplink::departs(&Kernel, skb, headers, skb.ethertype(), skb.ifindex())
    })
}

/// Where a packet's headers are while it is looked at: they would fill a fifth of the stack, and see
/// `parse`.
#[map]
static HEADERS: PerCpuArray<Headers> = PerCpuArray::with_max_entries(1, 0);

/// None: never, as the entry of an array is always there; the verifier wants to see it asked.
#[inline(always)]
fn headers<'a>() -> Option<&'a mut Headers> {
    let headers = HEADERS.get_ptr_mut(0)?;
    // SAFETY: programs at devices run with bottom halves off and do not nest: nobody else on this CPU
    // has the entry. It holds what `parse` has written; before that it is only written.
    Some(unsafe { &mut *headers })
}

#[inline(always)]
fn run(ctx: &TcContext, seen: u8, decide: impl FnOnce(Skb, &mut Headers) -> Verdict) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    let Some(headers) = headers() else {
        return TC_ACT_SHOT as i32;
    };
    headers.notes = Headers::UNREAD;
    headers.refused = 0;
    let verdict = decide(skb, headers);
    let reason = match verdict {
        Verdict::Drop(reason) => reason as u32,
        Verdict::Pass | Verdict::Peer(_) | Verdict::Out(_) | Verdict::Neighbor(_) => {
            headers.refused
        }
        Verdict::Back => return BACK,
    };
    tell(skb, headers, seen, reason);
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT as i32,
        // SAFETY: a helper that takes numbers.
        Verdict::Peer(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: as above.
        Verdict::Out(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        // SAFETY: as above; without a neighbour the helper looks for one.
        Verdict::Neighbor(ifindex) => unsafe {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
        },
        Verdict::Back => BACK,
    }
}

/// Tells of a packet and of the reason that it is refused for, 0: it is not.
#[inline(always)]
fn tell(skb: Skb, headers: &Headers, seen: u8, reason: u32) {
    let sight = Sight {
        seen,
        ifindex: skb.ifindex(),
        bytes: skb.len(),
    };
    events::tell(sight, headers, reason, || skb.socket());
}

#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the context of the running program.
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).ifindex }
    }
}

/// Where room is made or taken: between the link header and the IP header.
const BEHIND_LINK_HEADER: u32 = 1;

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn socket(&self) -> u64 {
        // SAFETY: the context of the running program.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes exactly size_of::<T>() bytes or fails; any bytes are a T.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            if failed == 0 {
                Some(value.assume_init())
            } else {
                None
            }
        }
    }

    #[inline(always)]
    fn glimpse<T: Plain>(&self, offset: u32) -> Option<T> {
        // SAFETY: the context of the running program; what is read lies before the end, and any bytes are a T.
        unsafe {
            let at = (*self.0).data as usize + offset as usize;
            if at + size_of::<T>() > (*self.0).data_end as usize {
                return None;
            }
            Some((at as *const T).read_unaligned())
        }
    }

    #[inline(always)]
    fn store<T: Plain>(&self, offset: u32, value: &T) -> bool {
        // SAFETY: the helper reads exactly size_of::<T>() bytes and checks the offset.
        unsafe {
            bpf_skb_store_bytes(
                self.0.cast(),
                offset,
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                0,
            ) == 0
        }
    }

    #[inline(always)]
    fn l3_checksum(&self, offset: u32, diff: u32) -> bool {
        // SAFETY: the helper checks the offset.
        unsafe { bpf_l3_csum_replace(self.0.cast(), offset, 0, u64::from(diff), 0) == 0 }
    }

    #[inline(always)]
    fn l4_checksum(&self, offset: u32, diff: u32, pseudo: bool, zero_is_none: bool) -> bool {
        let mut flags = 0;
        if pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if zero_is_none {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: the helper checks the offset.
        unsafe { bpf_l4_csum_replace(self.0.cast(), offset, 0, u64::from(diff), flags) == 0 }
    }
}

impl Resize for Skb {
    #[inline(always)]
    fn set_len(&self, len: u32) -> bool {
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_change_tail(self.0.cast(), len, 0) == 0 }
    }

    #[inline(always)]
    fn make_room(&self, bytes: u32) -> bool {
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_adjust_room(self.0.cast(), bytes as i32, BEHIND_LINK_HEADER, 0) == 0 }
    }
}

impl Wrap for Skb {
    #[inline(always)]
    fn put_in(&self, v4: bool) -> bool {
        let (bytes, flag) = if v4 {
            (20, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
        } else {
            (40, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
        };
        // Each packet that a device will make of this one holds so much less, but for datagrams, which hold what they hold.
        let room = |flags: u32| {
            // SAFETY: the helper checks the length.
            unsafe {
                bpf_skb_adjust_room(self.0.cast(), bytes, BEHIND_LINK_HEADER, u64::from(flags)) == 0
            }
        };
        room(flag) || room(flag | BPF_F_ADJ_ROOM_FIXED_GSO)
    }

    #[inline(always)]
    fn take_out(&self, v4: bool) -> bool {
        let bytes = if v4 { -20 } else { -40 };
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_adjust_room(self.0.cast(), bytes, BEHIND_LINK_HEADER, flags) == 0 }
    }
}

impl Router for Skb {
    #[inline(always)]
    fn segment(self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn mark(self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).mark }
    }

    #[inline(never)]
    fn way(self, tuple: &Tuple) -> u64 {
        // Any length asks for the route's MTU; the caller compares.
        let mut fib = fib::question(tuple, 1, self.ifindex());
        // The neighbour is found, or asked for, when the packet goes to it.
        let found = fib::ask(self.0.cast(), &mut fib, BPF_FIB_LOOKUP_SKIP_NEIGH);
        if found != BPF_FIB_LKUP_RET_SUCCESS {
            return 0;
        }
        // SAFETY: on success the helper leaves the route's MTU here.
        let mtu = u32::from(unsafe { fib.__bindgen_anon_1.mtu_result });
        let device = fib.ifindex;
        Way { device, mtu }.number()
    }
}
