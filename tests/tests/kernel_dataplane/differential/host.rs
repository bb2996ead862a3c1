//! The programs as the host runs them.

use std::{cell::RefCell, panic::AssertUnwindSafe};

use xebec_ebpf_abi::{DropReason, prog};
use xebec_ebpf_logic::{
    Packet, direct,
    parse::{ETH_IPV4, ETH_IPV6, Headers, L3, V4, V6},
    pod::{self, Verdict},
    reject::Reply,
    route::{self, Way},
    shortcut, uplink,
    xdp::{self, Decided},
};

use super::{
    fake::{Bytes, Fake, routes::Device},
    world::UPLINK,
};
use crate::fixture::{REDIRECT, SHOT, UNSPEC};

/// The device that `BPF_PROG_TEST_RUN` makes packets of for tc.
const IFINDEX: u32 = 1;

/// Verdicts in the driver.
pub const XDP_PASS: i32 = 2;
pub const XDP_TX: i32 = 3;
pub const XDP_REDIRECT: i32 = 4;

/// The programs that are compared.
pub const PROGRAMS: &[&str] = &[prog::FROM_POD, prog::TO_POD, prog::FROM_UPLINK, prog::TO_UPLINK, prog::TAKE_DIRECT, prog::XDP_UPLINK];

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Did {
    /// As tc, or the driver, has it.
    pub verdict: i32,
    pub bytes: Vec<u8>,
}

/// Whether a program lets a packet go on, as it is or as it has become.
pub fn goes_on(program: &str, verdict: i32) -> bool {
    program == prog::XDP_UPLINK || verdict != SHOT
}

/// The host's outcome; with the reason of a drop. `Err`: it panicked.
pub fn run(host: &Fake, program: &str, frame: &[u8]) -> Result<(Did, Option<DropReason>), String> {
    let bytes = RefCell::new(frame.to_vec());
    let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    let packet = Bytes(&bytes);
    let decide = || {
        let headers = &mut Headers::EMPTY.clone();
        let verdict = match program {
            prog::XDP_UPLINK => return (drive(host, packet, headers, ethertype), None),
            prog::FROM_POD => {
                let shortcut = shortcut::take(host, packet, ethertype, IFINDEX);
                let verdict = match shortcut {
                    shortcut::JUDGE => pod::leaves(host, packet, headers, ethertype, IFINDEX),
                    shortcut::STACK => Verdict::Pass,
                    peer => Verdict::Peer(peer),
                };
                let verdict = match verdict {
                    Verdict::Pass => match route::leave(host, host, packet, ethertype, IFINDEX) {
                        Way { device: 0, .. } => Verdict::Pass,
                        Way { device, mtu: 0 } => Verdict::Neighbor(device),
                        way if route::refuse(host, packet, headers, way, shortcut == shortcut::JUDGE) => Verdict::Back,
                        _ => Verdict::Pass,
                    },
                    other => other,
                };
                match verdict {
                    Verdict::Back if pod::answer(host, packet, headers, IFINDEX) => Verdict::Peer(IFINDEX),
                    Verdict::Back => Verdict::Drop(DropReason::from_number(headers.refused).expect("a reason")),
                    other => other,
                }
            }
            prog::TO_POD => pod::enters(host, packet, headers, ethertype, IFINDEX),
            prog::FROM_UPLINK => uplink::arrives(host, host, packet, headers, ethertype, IFINDEX),
            prog::TO_UPLINK => uplink::departs(host, packet, headers, ethertype, IFINDEX),
            prog::TAKE_DIRECT => direct::arrives(host, host, packet, headers, ethertype),
            other => unreachable!("{other} is not compared"),
        };
        match verdict {
            Verdict::Pass => (UNSPEC, None),
            Verdict::Drop(reason) => (SHOT, Some(reason)),
            Verdict::Peer(_) | Verdict::Out(_) | Verdict::Neighbor(_) => (REDIRECT, None),
            Verdict::Back => unreachable!("it was answered"),
        }
    };
    let (verdict, reason) = std::panic::catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| match panic.downcast_ref::<String>() {
        Some(text) => format!("the host panicked: {text}"),
        None => format!("the host panicked: {:?}", panic.downcast_ref::<&str>()),
    })?;
    let bytes = bytes.into_inner();
    Ok((Did { verdict, bytes }, reason))
}

/// As `xdp_uplink` puts it together.
fn drive(host: &Fake, packet: Bytes, headers: &mut Headers, ethertype: u16) -> i32 {
    let device = &Device { fake: host, ifindex: UPLINK };
    // SAFETY: plain numbers. They are written before they are read.
    let decided: &mut Decided = &mut unsafe { std::mem::zeroed() };
    let verdict = match ethertype {
        ETH_IPV4 => xdp::arrives::<V4, _, _, _>(host, device, packet, headers, decided),
        ETH_IPV6 => xdp::arrives::<V6, _, _, _>(host, device, packet, headers, decided),
        _ => xdp::Verdict::Pass,
    };
    let len = packet.len().wrapping_sub(L3) as u16;
    let verdict = match verdict {
        xdp::Verdict::Undecided if !xdp::decide(host, device, headers, len, decided) => xdp::Verdict::Pass,
        xdp::Verdict::Undecided if ethertype == ETH_IPV4 => xdp::follow::<V4, _, _, _>(host, device, packet, headers, decided),
        xdp::Verdict::Undecided => xdp::follow::<V6, _, _, _>(host, device, packet, headers, decided),
        verdict => verdict,
    };
    let room = |bytes: u32| {
        // In front of the link header.
        packet.0.borrow_mut().splice(0..0, vec![0; bytes as usize]);
    };
    let verdict = match verdict {
        xdp::Verdict::Wrap if decided.dst.is_v4() => {
            room(V4::HEADER);
            xdp::wrap::<V4, _, _>(host, packet, decided)
        }
        xdp::Verdict::Wrap => {
            room(V6::HEADER);
            xdp::wrap::<V6, _, _>(host, packet, decided)
        }
        verdict => verdict,
    };
    match verdict {
        xdp::Verdict::Pass => XDP_PASS,
        xdp::Verdict::Turn => XDP_TX,
        xdp::Verdict::Redirect(_) => XDP_REDIRECT,
        xdp::Verdict::Undecided | xdp::Verdict::Wrap => unreachable!("it was decided, and put in"),
    }
}
