//! How often something may be done: a credit that time refills and that each time costs some of.

/// The credit, in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    stamp: u64,
    credit: u64,
}

impl Budget {
    /// Whether it may be done once more. No more than `most` piles up.
    #[inline(always)]
    pub fn spend(&mut self, now: u64, cost: u64, most: u64) -> bool {
        let credit = self.credit.saturating_add(now.saturating_sub(self.stamp));
        let credit = if credit > most { most } else { credit };
        self.stamp = now;
        if credit < cost {
            self.credit = credit;
            return false;
        }
        self.credit = credit - cost;
        true
    }
}
