//! `bpf(2)` where the loader has no call: an empty program, and test runs of any program the same way.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

/// `BPF_PROG_TYPE_*`.
pub const SCHED_CLS: u32 = 3;
pub const XDP: u32 = 6;

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes size_of::<T>() bytes at a live, exclusive reference; what its pointers lead to is kept
    // alive by the callers below.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code as i32) }
}

/// A program that passes everything: `r0 = 2 (or -1); exit`.
pub fn empty(kind: u32) -> io::Result<OwnedFd> {
    let verdict: i64 = if kind == XDP { 2 } else { 0xffff_ffff };
    load(kind, &[0xb7 | (verdict as u64) << 32, 0x95])
}

/// A program of these instructions, as the kernel has them in memory.
pub fn load(kind: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 4],
    }
    let license = c"GPL";
    let mut attributes = Attributes {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 4],
    };
    let fd = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches an XDP program to a device's driver until the descriptor is closed.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 4;
    attach(program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

/// Attaches a tc program to what comes in on a device, by TCX, until the descriptor is closed.
pub fn attach_tcx_ingress(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_TCX_INGRESS: u32 = 46;
    attach(program, ifindex, BPF_TCX_INGRESS, 0)
}

fn attach(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        // TCX reads where in the order of programs this one goes; zeros: last.
        relative: u32,
        pad: u32,
        expected_revision: u64,
    }
    const LINK_CREATE: libc::c_long = 28;
    let mut attributes =
        Attributes { program: program.as_raw_fd() as u32, target: ifindex, attach_type, flags, relative: 0, pad: 0, expected_revision: 0 };
    let fd = bpf(LINK_CREATE, &mut attributes)?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Arguments of a test run.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    len_in: u32,
    len_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len_in: u32,
    context_len_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// Runs an XDP program on so many frames, with each of which the kernel then does what the program says. A frame that comes back
/// to the pool is as it was left.
pub fn live(program: BorrowedFd<'_>, packet: &[u8], frames: u32) -> io::Result<()> {
    const LIVE_FRAMES: u32 = 2;
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        len_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat: frames,
        flags: LIVE_FRAMES,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes).map(drop)
}

/// Runs a program on a packet: its verdict and the average nanoseconds of a run. `ifindex`: the device an XDP program is told.
pub fn run(program: BorrowedFd<'_>, packet: &[u8], ifindex: Option<u32>, repeat: u32) -> io::Result<(u32, u32)> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, packet.len() as u32, 0, ifindex.unwrap_or(0), 0, 0];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        len_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    if ifindex.is_some() {
        attributes.context_in = context.as_ptr() as u64;
        attributes.context_len_in = size_of_val(&context) as u32;
    }
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok((attributes.verdict, attributes.duration))
}
