//! Packet logic without I/O: what is in a packet, which backend it gets, whether a policy lets it
//! pass, how its addresses change. `no_std`, generic over [`Env`] (maps, clock) and [`Packet`], so the
//! very same source runs in the kernel and in host tests.
//!
//! Small functions are `#[inline(always)]`: what a path does not use costs it nothing. A few are
//! `#[inline(never)]`, and in the kernel too functions of their own: each has its own part of the 512
//! bytes of stack, and where one returns, the verifier's paths through it become one again.
#![no_std]

pub mod announce;
pub mod budget;
pub mod checksum;
pub mod conntrack;
pub mod direct;
mod env;
pub mod least;
pub mod limit;
pub mod maglev;
pub mod nat;
pub mod news;
pub mod packet;
pub mod parse;
pub mod pod;
pub mod policy;
pub mod reject;
pub mod relay;
pub mod rewrite;
pub mod route;
pub mod service;
pub mod shortcut;
pub mod socket;
pub mod steer;
pub mod uplink;
pub mod xdp;

pub use env::{Env, Stored};
pub use packet::Packet;
