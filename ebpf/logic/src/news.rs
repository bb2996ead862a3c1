//! What is told of packets: drops, and flows that are new, as long as somebody wants to know, and no more of
//! them than a rate: a flood must not cost more because it is looked at.

use xebec_ebpf_abi::Listen;

use crate::parse::Headers;

/// The kind of news a packet is, one of `Listen::*`; 0: none. `reason`: number of the reason it is dropped for.
#[inline(always)]
pub fn kind(headers: &Headers, reason: u32) -> u32 {
    if reason != 0 {
        Listen::DROPS
    } else if headers.notes & Headers::NEW != 0 {
        Listen::FLOWS
    } else {
        0
    }
}

/// What a CPU may still tell of one kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    stamp: u64,
    credit: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Allowance {
    /// Whether one more may be told. A second's worth may come at once.
    #[inline(always)]
    pub fn spend(&mut self, now: u64, rate: u32) -> bool {
        let cost = if rate == 0 {
            return false;
        } else {
            SECOND / u64::from(rate)
        };
        let credit = self.credit.saturating_add(now.saturating_sub(self.stamp));
        let credit = if credit > SECOND { SECOND } else { credit };
        self.stamp = now;
        if credit < cost {
            self.credit = credit;
            return false;
        }
        self.credit = credit - cost;
        true
    }
}
