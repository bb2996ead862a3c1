//! Packets as tc sees them: the entries at devices.

use crate::{
    env::Kernel,
    events::{self, Sight},
};
use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect,
        bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
    macros::{classifier, map},
    maps::PerCpuArray,
    programs::TcContext,
};
use core::mem::MaybeUninit;
use xebec_ebpf_abi::seen;
use xebec_ebpf_logic::{
    Packet,
    packet::Plain,
    parse::Headers,
    pod::{self, Verdict},
    reject::Resize,
    uplink,
};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, seen::FROM_POD, |skb, headers| {
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
        uplink::arrives(&Kernel, skb, headers, skb.ethertype(), skb.ifindex())
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

#[inline(always)]
fn run(ctx: &TcContext, seen: u8, decide: impl FnOnce(Skb, &mut Headers) -> Verdict) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    // The entry of an array is always there; the verifier wants to see it asked.
    let Some(headers) = HEADERS.get_ptr_mut(0) else {
        return TC_ACT_SHOT as i32;
    };
    // SAFETY: programs at devices run with bottom halves off and do not nest: nobody else on this CPU
    // has the entry. It holds what `parse` has written; before that it is only written.
    let headers = unsafe { &mut *headers };
    headers.notes = Headers::UNREAD;
    headers.refused = 0;
    let verdict = decide(skb, headers);
    let reason = match verdict {
        Verdict::Drop(reason) => reason as u32,
        Verdict::Pass | Verdict::Peer(_) | Verdict::Out(_) => headers.refused,
    };
    let sight = Sight {
        seen,
        ifindex: skb.ifindex(),
        bytes: skb.len(),
    };
    events::tell(sight, headers, reason, || skb.socket());
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT as i32,
        // SAFETY: a helper that takes numbers.
        Verdict::Peer(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: as above.
        Verdict::Out(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
    }
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
        const BEHIND_LINK_HEADER: u32 = 1;
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_adjust_room(self.0.cast(), bytes as i32, BEHIND_LINK_HEADER, 0) == 0 }
    }
}
