//! What a run has met: random packets that all end the same way would show nothing.

use std::{collections::BTreeMap, fmt};

use xebec_ebpf_abi::{DropReason, forward, prog};

use super::{
    fake::{Fake, routes::Answer},
    host::{XDP_REDIRECT, XDP_TX},
};
use crate::fixture::REDIRECT;

/// What was seen.
#[derive(Default)]
pub struct Tally {
    pub packets: u64,
    pub drops: BTreeMap<u32, u64>,
    pub forwards: BTreeMap<u32, u64>,
    /// What Services were asked for.
    pub served: u64,
    /// Dropped, but sent back as something else.
    pub answered: u64,
    pub verdicts: BTreeMap<(&'static str, i32), u64>,
    /// What the driver's program passed on: by which way of `forward`'s, with which verdict.
    pub driven: BTreeMap<(u32, i32), u64>,
    /// What a driver (or not) was answered about routes.
    pub routes: BTreeMap<(bool, Answer), u64>,
}

/// The ways of the driver's program.
const DRIVEN: [u32; 3] = [forward::DRIVER_SERVICE, forward::DRIVER_REPLY, forward::DRIVER_DIRECT];

/// What the host has counted so far.
#[derive(Clone, Copy)]
pub struct Counted {
    dropped: u64,
    driven: [u64; DRIVEN.len()],
}

impl Counted {
    pub fn of(host: &Fake) -> Counted {
        let forwards = host.forwards.borrow();
        let driven = DRIVEN.map(|path| forwards.get(&path).copied().unwrap_or(0));
        Counted { dropped: host.drops.borrow().values().sum(), driven }
    }
}

impl Tally {
    /// One packet more, with what was counted before it and after.
    pub fn packet(&mut self, program: &'static str, verdict: i32, before: Counted, after: Counted) {
        self.packets += 1;
        *self.verdicts.entry((program, verdict)).or_default() += 1;
        if program != prog::XDP_UPLINK && verdict == REDIRECT && after.dropped > before.dropped {
            self.answered += 1;
        }
        for (path, (before, after)) in DRIVEN.iter().zip(before.driven.iter().zip(after.driven)) {
            if after > *before {
                *self.driven.entry((*path, verdict)).or_default() += 1;
            }
        }
    }

    pub fn add(&mut self, other: &Tally) {
        fn sum<K: Ord + Copy>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *to.entry(*key).or_default() += count;
            }
        }
        self.packets += other.packets;
        self.answered += other.answered;
        self.served += other.served;
        sum(&mut self.drops, &other.drops);
        sum(&mut self.forwards, &other.forwards);
        sum(&mut self.verdicts, &other.verdicts);
        sum(&mut self.driven, &other.driven);
        sum(&mut self.routes, &other.routes);
    }

    /// Every branch must have been taken.
    pub fn is_complete(&self) {
        // Sockets alone meet these.
        let never = [DropReason::PortReserved, DropReason::BackendGone];
        let missed: Vec<_> =
            DropReason::ALL.iter().filter(|reason| !never.contains(reason) && !self.drops.contains_key(&(**reason as u32))).collect();
        assert!(missed.is_empty(), "no packet was dropped for {missed:?}");
        let paths: Vec<_> =
            (0..forward::LABELS.len() as u32).filter(|path| *path != forward::SOCKET && !self.forwards.contains_key(path)).collect();
        assert!(paths.is_empty(), "no packet was passed on by {paths:?}");
        for path in DRIVEN {
            for verdict in [XDP_TX, XDP_REDIRECT] {
                assert!(self.driven.contains_key(&(path, verdict)), "the driver passed none on by {path} with {verdict}");
            }
        }
        for (is_driver, answer) in [true, false].into_iter().flat_map(|driver| Answer::ALL.map(|answer| (driver, answer))) {
            // tc compares itself what it is told.
            let never = !is_driver && answer == Answer::TooBig;
            assert!(never || self.routes.contains_key(&(is_driver, answer)), "no route was {answer:?}, in the driver: {is_driver}");
        }
        assert!(self.answered > 0, "no packet was turned back");
        assert!(self.served > 0, "no Service was asked for anything");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets, {} of them turned back, {} for Services counted", self.packets, self.answered, self.served)?;
        for ((program, verdict), count) in &self.verdicts {
            write!(f, "\n{program} {verdict}: {count}")?;
        }
        for ((path, verdict), count) in &self.driven {
            write!(f, "\n{} {verdict}: {count}", forward::LABELS[*path as usize])?;
        }
        for ((is_driver, answer), count) in &self.routes {
            write!(f, "\nroutes, {}, {answer:?}: {count}", if *is_driver { "driver" } else { "tc" })?;
        }
        for (reason, count) in &self.drops {
            write!(f, "\ndropped, {}: {count}", DropReason::from_number(*reason).map_or("?", DropReason::label))?;
        }
        for (path, count) in &self.forwards {
            write!(f, "\npassed on, {}: {count}", forward::LABELS.get(*path as usize).unwrap_or(&"?"))?;
        }
        Ok(())
    }
}
