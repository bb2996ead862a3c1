//! The programs as the host runs them.

use std::{cell::RefCell, panic::AssertUnwindSafe};

use xebec_ebpf_abi::{DropReason, Tuple, prog};
use xebec_ebpf_logic::{
    conntrack,
    parse::{self, ETH_IPV4, ETH_IPV6, Fragment, Headers, V4, V6},
    pod::{self, Verdict},
    route::{self, Way},
    shortcut, uplink,
};

use super::fake::{Bytes, Fake};
use crate::fixture::{REDIRECT, SHOT, UNSPEC};

/// The device that `BPF_PROG_TEST_RUN` makes packets of.
const IFINDEX: u32 = 1;

/// The programs that are compared.
pub const PROGRAMS: &[&str] = &[prog::FROM_POD, prog::TO_POD, prog::FROM_UPLINK, prog::TO_UPLINK];

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Did {
    /// As tc has it.
    pub verdict: i32,
    pub bytes: Vec<u8>,
}

/// The host's outcome; with the reason of a drop. `Err`: it panicked.
pub fn run(host: &Fake, program: &str, frame: &[u8]) -> Result<(Did, Option<DropReason>), String> {
    let bytes = RefCell::new(frame.to_vec());
    let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    let packet = Bytes(&bytes);
    let decide = || {
        let headers = &mut Headers::EMPTY.clone();
        match program {
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
            other => unreachable!("{other} is not compared"),
        }
    };
    let verdict = std::panic::catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| match panic.downcast_ref::<String>() {
        Some(text) => format!("the host panicked: {text}"),
        None => format!("the host panicked: {:?}", panic.downcast_ref::<&str>()),
    })?;
    let (verdict, reason) = match verdict {
        Verdict::Pass => (UNSPEC, None),
        Verdict::Drop(reason) => (SHOT, Some(reason)),
        Verdict::Peer(_) | Verdict::Out(_) | Verdict::Neighbor(_) => (REDIRECT, None),
        Verdict::Back => unreachable!("it was answered"),
    };
    let bytes = bytes.into_inner();
    Ok((Did { verdict, bytes }, reason))
}

/// What names the flow of a frame, with what is known about fragments.
pub fn tuple(host: &Fake, frame: &[u8]) -> Option<Tuple> {
    let bytes = RefCell::new(frame.to_vec());
    let mut headers = Headers::EMPTY;
    match u16::from_be_bytes([frame[12], frame[13]]) {
        ETH_IPV4 => parse::parse::<V4, _>(Bytes(&bytes), &mut headers).ok()?,
        ETH_IPV6 => parse::parse::<V6, _>(Bytes(&bytes), &mut headers).ok()?,
        _ => return None,
    }
    // Of a first one this would be written down.
    if headers.fragment == Fragment::Later {
        conntrack::fragment(host, &mut headers).ok()?;
    }
    Some(headers.tuple)
}
