//! The BPF programs on made-up packets (`BPF_PROG_TEST_RUN`): bytes in, verdict and bytes out.
//! Needs root.

mod fixture;
mod load;
mod socket;
