//! The BPF programs: entries that turn a context into a verdict. What they decide is in
//! `xebec-ebpf-logic`; here are the maps and the helpers.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "the only way to an atomic addition on this target"
)]

mod announce;
mod counters;
mod env;
mod events;
mod fib;
mod least;
mod nat;
mod pods;
mod rings;
mod services;
mod skb;
mod sock;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Helpers that are for GPL-compatible programs only need this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
