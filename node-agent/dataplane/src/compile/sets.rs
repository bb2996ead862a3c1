//! A backend set in three maps (`BACKEND_SETS`, `BACKEND_SLOTS`, `SET_MEMBERS`) and the order in which a change
//! of it is written so that no reader sees a slot without a backend.

use std::collections::BTreeSet;

use xebec_ebpf_abi::{BackendSet, MemberKey, SlotKey};

/// What the three maps hold, or shall hold, for one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Entry of `BACKEND_SETS`.
    pub header: Option<BackendSet>,
    /// Slot to backend.
    pub slots: Pairs,
    /// Backend to slot; empty unless the set is asked for membership.
    pub members: Pairs,
}

/// A small map from number to number, without a tree's cost: there are many sets, most of few backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(Vec<(u32, u32)>);

impl Pairs {
    fn find(&self, key: u32) -> Result<usize, usize> {
        match self.0.last() {
            // Slots come in order.
            Some((last, _)) if *last < key => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&key, |(k, _)| *k),
        }
    }

    /// What is at a key.
    pub fn get(&self, key: &u32) -> Option<&u32> {
        self.find(*key).ok().map(|at| &self.0[at].1)
    }

    /// Whether something is.
    pub fn contains_key(&self, key: &u32) -> bool {
        self.find(*key).is_ok()
    }

    /// Sets a pair.
    pub fn insert(&mut self, key: u32, value: u32) {
        match self.find(key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    fn remove(&mut self, key: u32) {
        if let Ok(at) = self.find(key) {
            self.0.remove(at);
        }
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&u32, &u32)> + Clone {
        self.0.iter().map(|(k, v)| (k, v))
    }

    /// Their keys.
    pub fn keys(&self) -> impl Iterator<Item = &u32> + Clone {
        self.0.iter().map(|(k, _)| k)
    }

    /// Their values.
    pub fn values(&self) -> impl Iterator<Item = &u32> + Clone {
        self.0.iter().map(|(_, v)| v)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(u32, u32)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(pairs: I) -> Pairs {
        let mut pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        pairs.sort_unstable();
        pairs.dedup_by_key(|(key, _)| *key);
        pairs.shrink_to_fit();
        Pairs(pairs)
    }
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetStep {
    /// `BACKEND_SETS`.
    Header(u32, Option<BackendSet>),
    /// `BACKEND_SLOTS`.
    Slot(SlotKey, Option<u32>),
    /// `SET_MEMBERS`.
    Member(MemberKey, Option<u32>),
}

impl SetStep {
    /// The set it belongs to.
    pub fn set(&self) -> u32 {
        match self {
            SetStep::Header(set, _) => *set,
            SetStep::Slot(key, _) => key.set,
            SetStep::Member(key, _) => key.set,
        }
    }

    /// Writes of one phase may be done for many sets before any of the next: each set still has its own order.
    pub fn phase(&self) -> u8 {
        match self {
            SetStep::Member(_, Some(_)) => 0,
            SetStep::Slot(_, Some(_)) => 1,
            SetStep::Header(..) => 2,
            SetStep::Slot(_, None) => 3,
            SetStep::Member(_, None) => 4,
        }
    }

    /// Does to a value what the write does to the maps.
    pub fn apply(&self, to: &mut Set) {
        match *self {
            SetStep::Header(_, header) => to.header = header,
            SetStep::Slot(key, Some(backend)) => {
                to.slots.insert(key.slot, backend);
            }
            SetStep::Slot(key, None) => {
                to.slots.remove(key.slot);
            }
            SetStep::Member(key, Some(slot)) => {
                to.members.insert(key.backend, slot);
            }
            SetStep::Member(key, None) => {
                to.members.remove(key.backend);
            }
        }
    }
}

impl Set {
    /// A set of these backends. Those that `old` has too keep their slots, as far as the count allows: a
    /// change moves as few as it can.
    pub fn build(old: &Pairs, backends: &BTreeSet<u32>, flags: u32, with_members: bool) -> Set {
        let count = backends.len() as u32;
        let mut slots: Vec<Option<u32>> = vec![None; backends.len()];
        let mut placed = BTreeSet::new();
        for (slot, backend) in old.iter().take_while(|(slot, _)| **slot < count) {
            if backends.contains(backend) && placed.insert(*backend) {
                slots[*slot as usize] = Some(*backend);
            }
        }
        let mut rest = backends.iter().filter(|b| !placed.contains(b)).copied();
        let slots: Pairs = (0..count).zip(slots).filter_map(|(slot, kept)| Some((slot, kept.or_else(|| rest.next())?))).collect();
        let members = if with_members { slots.iter().map(|(s, b)| (*b, *s)).collect() } else { Pairs::default() };
        Set { header: Some(BackendSet { count, flags }), slots, members }
    }

    /// Writes that lead from `have` to `want`, in an order safe for readers at every step.
    pub fn steps(id: u32, have: &Set, want: &Set) -> Vec<SetStep> {
        let mut steps = Vec::new();
        let slot = |slot: &u32| SlotKey { set: id, slot: *slot };
        let member = |backend: &u32| MemberKey { set: id, backend: *backend };
        for (b, s) in want.members.iter().filter(|(b, s)| have.members.get(b) != Some(s)) {
            steps.push(SetStep::Member(member(b), Some(*s)));
        }
        for (s, b) in want.slots.iter().filter(|(s, b)| have.slots.get(s) != Some(b)) {
            steps.push(SetStep::Slot(slot(s), Some(*b)));
        }
        if have.header != want.header {
            steps.push(SetStep::Header(id, want.header));
        }
        steps.extend(have.slots.keys().filter(|s| !want.slots.contains_key(s)).map(|s| SetStep::Slot(slot(s), None)));
        let gone = have.members.keys().filter(|b| !want.members.contains_key(b));
        steps.extend(gone.map(|b| SetStep::Member(member(b), None)));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends() -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(1u32..12, 0..8)
    }

    proptest! {
        /// At every step each slot below the count holds a backend of the old or the new set, and the end is
        /// the wanted contents; backends that stay keep their slot unless it is beyond the new count.
        #[test]
        fn every_step_is_safe_for_readers(sets in proptest::collection::vec((backends(), any::<bool>()), 1..6)) {
            let mut have = Set::default();
            for (backends, members) in sets {
                let want = Set::build(&have.slots, &backends, 0, members);
                prop_assert_eq!(want.slots.values().copied().collect::<BTreeSet<_>>(), backends.clone());
                prop_assert_eq!(want.slots.keys().copied().collect::<Vec<_>>(), (0..backends.len() as u32).collect::<Vec<_>>());
                for (slot, backend) in have.slots.iter().filter(|(slot, _)| **slot < backends.len() as u32) {
                    if backends.contains(backend) { prop_assert_eq!(want.slots.get(slot), Some(backend)); }
                }
                let old: BTreeSet<u32> = have.slots.values().copied().collect();
                let steps = Set::steps(7, &have.clone(), &want);
                prop_assert!(steps.is_sorted_by_key(SetStep::phase), "done by phases, a set has the same order");
                for step in steps {
                    prop_assert_eq!(step.set(), 7);
                    step.apply(&mut have);
                    for slot in 0..have.header.map_or(0, |h| h.count) {
                        let backend = have.slots.get(&slot);
                        prop_assert!(backend.is_some_and(|b| old.contains(b) || backends.contains(b)));
                    }
                }
                prop_assert_eq!(&have, &want);
            }
            for step in Set::steps(7, &have.clone(), &Set::default()) { step.apply(&mut have); }
            prop_assert_eq!(have, Set::default());
        }
    }
}
