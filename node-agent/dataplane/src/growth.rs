//! How large maps must become: decided from numbers alone, before anything is written.
//!
//! A map grows by doubling and to the number that is known to come, so that it is done once and not step by step.

use std::collections::{BTreeMap, BTreeSet};

/// What is known of a map that may be too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Entries it has places for.
    pub places: u64,
    /// Entries it must take now.
    pub needed: u64,
    /// Entries it will be asked to take soon.
    pub expected: u64,
    /// Entries it may have places for at most.
    pub most: u64,
}

impl Fill {
    /// Of a map that programs write: it is to grow when more than three quarters of it are in use and live, so that there is
    /// room while it grows.
    pub fn crowded(live: u64, places: u64, most: u64) -> Fill {
        let crowded = live.saturating_mul(4) > places.saturating_mul(3);
        Fill { places, needed: if crowded { places + 1 } else { live }, expected: live, most }
    }

    /// The size it shall get, if it is too small and may be larger.
    pub fn size(self) -> Option<u32> {
        if self.needed <= self.places || self.places >= self.most {
            return None;
        }
        let wanted = self.needed.max(self.expected);
        let mut size = self.places.max(1);
        while size < wanted && size < self.most {
            size *= 2;
        }
        u32::try_from(size.min(self.most)).ok()
    }

    /// Whether it cannot take what it must, however large it may be.
    pub fn is_over(self) -> bool {
        self.needed > self.places.max(self.most)
    }
}

/// Whether a map that programs write may need to grow, long before it is counted again: with all that was written since there were
/// `live` entries more than three quarters of it may be in use. A little comes and goes always.
pub fn is_filling(live: u64, since: u64, places: u64) -> bool {
    since >= (places / 16).max(1) && live.saturating_add(since).saturating_mul(4) > places.saturating_mul(3)
}

/// What is to be done about maps that are too small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Maps that grow, and their new sizes.
    pub grow: BTreeMap<&'static str, u32>,
    /// Maps that are too small even when they are as large as they may be.
    pub over: BTreeSet<&'static str>,
}

/// Decides for all maps.
pub fn plan(fills: impl IntoIterator<Item = (&'static str, Fill)>) -> Plan {
    let mut plan = Plan::default();
    for (name, fill) in fills {
        plan.grow.extend(fill.size().map(|size| (name, size)));
        if fill.is_over() {
            plan.over.insert(name);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_map_doubles_until_what_is_needed_and_expected_fits() {
        let size = |places, needed, expected, most| Fill { places, needed, expected, most }.size();
        assert_eq!(size(64, 64, 1000, 4096), None, "what fits stays, whatever may come");
        assert_eq!(size(64, 65, 65, 4096), Some(128));
        assert_eq!(size(64, 65, 1000, 4096), Some(1024), "once, not five times");
        assert_eq!(size(64, 5000, 5000, 4096), Some(4096), "as far as it may");
        assert_eq!(size(4096, 5000, 5000, 4096), None);
        assert_eq!(size(4096, 5000, 5000, 64), None, "a limit below what there is makes nothing smaller");
        assert_eq!((Fill::crowded(75, 100, 1000).size(), Fill::crowded(76, 100, 1000).size()), (None, Some(200)));
        let over = plan([("A", Fill { places: 8, needed: 9, expected: 9, most: 8 }), ("B", Fill::crowded(1, 8, 8))]);
        assert_eq!(over, Plan { grow: BTreeMap::new(), over: BTreeSet::from(["A"]) });
    }

    #[test]
    fn a_map_is_looked_at_before_it_is_full_and_not_for_every_entry() {
        assert!(!is_filling(0, 75, 100) && is_filling(0, 76, 100) && is_filling(70, 6, 100));
        assert!(!is_filling(90, 5, 100), "a little comes and goes");
        assert!(is_filling(100, 7, 100), "what found no room counts too");
        assert!(!is_filling(0, 0, 0) && !is_filling(3, 0, 4) && is_filling(3, 1, 4));
    }

    proptest! {
        #[test]
        fn sizes_are_enough_and_no_more_than_twice_that(places in 0u64..1 << 24, needed in 0u64..1 << 26, expected in 0u64..1 << 26, most in 1u64..1 << 24) {
            let fill = Fill { places, needed, expected, most };
            match fill.size() {
                None => prop_assert!(needed <= places || places >= most, "nothing is done only if nothing need or can be"),
                Some(size) => {
                    let size = u64::from(size);
                    prop_assert!(size > places && size <= most, "it grows, and not beyond what it may");
                    prop_assert!(size >= needed.max(expected).min(most), "it is enough at once");
                    prop_assert!(size < 2 * needed.max(expected).max(1), "it is not wasted");
                    let after = Fill { places: size, ..fill };
                    prop_assert_eq!(after.size(), None, "once is enough");
                    prop_assert_eq!(after.is_over(), fill.is_over());
                }
            }
            prop_assert_eq!(fill.is_over(), needed > places && needed > most);
        }

        #[test]
        fn a_crowded_map_has_room_again(live in 0u64..1 << 24, places in 1u64..1 << 24, most in 1u64..1 << 24) {
            let fill = Fill::crowded(live.min(places), places, most);
            if let Some(size) = fill.size() {
                prop_assert!(size == (2 * places).min(most) as u32);
            } else {
                prop_assert!(live.min(places) * 4 <= places * 3 || places >= most);
            }
        }
    }
}
