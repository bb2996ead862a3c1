//! Questions to the kernel's routing tables.

use aya_ebpf::{bindings::bpf_fib_lookup as Fib, helpers::generated::bpf_fib_lookup};
use core::{ffi::c_void, mem::MaybeUninit};
use xebec_ebpf_abi::Tuple;

/// Where does a packet of `len` bytes go that came in on a device?
#[inline(always)]
pub fn question(tuple: &Tuple, len: u16, ifindex: u32) -> Fib {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    // SAFETY: plain numbers, for which zeros are values.
    let mut fib: Fib = unsafe { MaybeUninit::zeroed().assume_init() };
    fib.l4_protocol = tuple.proto();
    fib.sport = tuple.sport.raw();
    fib.dport = tuple.dport.raw();
    fib.__bindgen_anon_1.tot_len = len;
    fib.ifindex = ifindex;
    if tuple.src.is_v4() {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = tuple.src.words()[3];
        fib.__bindgen_anon_4.ipv4_dst = tuple.dst.words()[3];
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = tuple.src.words();
        fib.__bindgen_anon_4.ipv6_dst = tuple.dst.words();
    }
    fib
}

/// Asks; one of `BPF_FIB_LKUP_RET_*`, or an error, which is none of those.
#[inline(always)]
pub fn ask(ctx: *mut c_void, fib: &mut Fib, flags: u32) -> u32 {
    // SAFETY: the context of the running program, and a parameter block of the size told.
    unsafe { bpf_fib_lookup(ctx, fib, size_of::<Fib>() as i32, flags) as u32 }
}
