//! What is told of packets: drops, and flows that are new, as long as somebody wants to know, and no more of
//! them than a rate: a flood must not cost more because it is looked at.

use xebec_ebpf_abi::Listen;

use crate::budget::Budget;
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

const SECOND: u64 = 1_000_000_000;

/// Whether one more may be told, of so many in a second. A second's worth may come at once.
#[inline(always)]
pub fn may_tell(budget: &mut Budget, now: u64, rate: u32) -> bool {
    rate != 0 && budget.spend(now, SECOND / u64::from(rate), SECOND)
}
