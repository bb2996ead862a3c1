//! The BPF programs on made-up packets (`BPF_PROG_TEST_RUN`): bytes in, verdict and bytes out; and the
//! socket hooks with real sockets. Needs root.

mod announce;
mod differential;
mod direct;
mod dsr;
mod events;
mod fixture;
mod full;
mod load;
mod maglev;
mod masquerade;
mod packet;
mod pods;
mod reject;
mod route;
mod shortcut;
mod socket;
mod unusual;
mod uplink;
mod verdicts;
mod wire;
mod xdp;
