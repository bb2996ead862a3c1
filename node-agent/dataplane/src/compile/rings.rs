//! Rings of backend sets (`RINGS`, `RING_PLACES`): which generation is in force, which was before.
//!
//! A ring in the kernel is never changed; a set whose backends change gets a new one, and keeps the one that was
//! in force as its previous generation. Contents are compared by a digest, so user space holds no copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use xebec_ebpf_abi::{Places, PlacesKey, Ring, Rings};

use super::maglev::{self, Member};
use crate::table::Table;

/// How long a flow without handshake may be taken for one from before a change.
const SECOND_CHANCE: u64 = 60_000_000_000;

/// What a ring is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Backends with their weights.
    pub members: Vec<Member>,
    /// Places.
    pub size: u32,
}

impl Spec {
    /// The ring's parts, as the map has them.
    pub fn parts(&self) -> Vec<Places> {
        let part = |chunk: &[u32]| {
            let mut backends = [0; Places::COUNT as usize];
            backends[..chunk.len()].copy_from_slice(chunk);
            Places { backends }
        };
        maglev::places(&self.members, self.size).chunks(Places::COUNT as usize).map(part).collect()
    }
}

/// How many parts a ring of a size has.
pub fn parts(size: u32) -> u32 {
    if size > 1 { size.div_ceil(Places::COUNT) } else { 0 }
}

/// A ring as compared with the kernel's.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Of all its parts.
    pub digest: u64,
    /// The greatest backend number in it.
    pub highest: u32,
    /// How many parts there are.
    pub parts: u32,
    /// What it is made of; none for one found in the kernel.
    pub spec: Option<Arc<Spec>>,
}

impl PartialEq for Contents {
    fn eq(&self, other: &Contents) -> bool {
        (self.digest, self.parts) == (other.digest, other.parts)
    }
}

impl Contents {
    fn of(spec: Arc<Spec>) -> Contents {
        let mut contents = Contents::default();
        for (part, places) in (0..).zip(spec.parts()) {
            contents.add(part, &places);
        }
        Contents { spec: Some(spec), ..contents }
    }

    /// Counts a part in; the order does not matter.
    pub fn add(&mut self, part: u32, places: &Places) {
        let seed = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(part);
        let hash = places.backends.iter().fold(seed, |h, id| (h ^ u64::from(*id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
        self.digest = self.digest.wrapping_add(hash);
        self.highest = places.backends.iter().copied().max().unwrap_or(0).max(self.highest);
        self.parts += 1;
    }
}

/// The tables of rings.
#[derive(Default)]
pub struct RingTables {
    /// `RINGS` by set.
    pub sets: Table<u32, Rings>,
    /// `RING_PLACES` by ring.
    pub rings: Table<u32, Contents>,
    /// Parts that the map of rings takes at most; none: that is not known, as in tests.
    pub room: Option<u64>,
    /// Parts of the wanted rings.
    parts: u64,
    next: u32,
}

impl RingTables {
    /// After the actual side was loaded.
    pub fn adopt_loaded(&mut self) {
        self.next = self.rings.have().keys().last().copied().unwrap_or(0);
    }

    /// The greatest backend number that a ring in the kernel still leads to.
    pub fn highest_backend(&self) -> u32 {
        let single = |r: &Ring| if r.size == 1 { r.number } else { 0 };
        let of_set = self.sets.have().values().map(|r| single(&r.current).max(single(&r.previous)));
        of_set.chain(self.rings.have().values().map(|c| c.highest)).max().unwrap_or(0)
    }

    /// Wants a ring of these backends for a set, or (no backends) none. False: there is no room.
    pub fn want(&mut self, set: u32, mut members: Vec<Member>, size: u32, now: u64) -> bool {
        members.retain(|m| m.weight > 0);
        if members.is_empty() {
            self.drop_set(set);
            return true;
        }
        if let [only] = members[..] {
            self.install(set, Ring { number: only.id, size: 1 }, now);
            return true;
        }
        members.sort();
        let spec = Arc::new(Spec { members, size });
        let wanted = self.sets.want().get(&set).map(|r| r.current);
        let same = |c: &Contents| c.spec.as_ref() == Some(&spec);
        if wanted.is_some_and(|ring| ring.size > 1 && self.rings.want().get(&ring.number).is_some_and(same)) {
            return true;
        }
        // The ring it replaces stays for a while.
        if self.room.is_some_and(|room| self.parts + 2 * u64::from(parts(size)) > room) {
            self.drop_set(set);
            return false;
        }
        let contents = Contents::of(spec);
        let in_force = self.sets.have().get(&set).map(|r| r.current);
        let ring = match in_force {
            Some(ring) if ring.size == size && self.rings.have().get(&ring.number) == Some(&contents) => ring,
            _ => Ring { number: self.fresh(), size },
        };
        self.put(ring.number, Some(contents));
        self.install(set, ring, now);
        true
    }

    /// Wants no ring for a set.
    pub fn drop_set(&mut self, set: u32) {
        let old = self.sets.want().get(&set).copied();
        self.sets.unset(&set);
        self.forget(old, Rings::default());
    }

    fn install(&mut self, set: u32, current: Ring, now: u64) {
        let old = self.sets.want().get(&set).copied();
        if old.is_some_and(|r| r.current == current) {
            return;
        }
        let rings = match self.sets.have().get(&set) {
            Some(have) if have.current == current => *have,
            Some(have) => Rings { current, previous: have.current, until: now + SECOND_CHANCE },
            None => Rings { current, ..Rings::default() },
        };
        // The ring that was in force is wanted as it is.
        if let Some(kept) = self.rings.have().get(&rings.previous.number).filter(|_| rings.previous.size > 1) {
            let kept = kept.clone();
            self.put(rings.previous.number, Some(kept));
        }
        self.sets.set(set, rings);
        self.forget(old, rings);
    }

    /// Ends the rings of `old` that `now` does not name.
    fn forget(&mut self, old: Option<Rings>, now: Rings) {
        for ring in old.into_iter().flat_map(|r| [r.current, r.previous]) {
            if ring.size > 1 && ring != now.current && ring != now.previous {
                self.put(ring.number, None);
            }
        }
    }

    fn put(&mut self, ring: u32, contents: Option<Contents>) {
        let parts = |contents: Option<&Contents>| contents.map_or(0, |c| u64::from(c.parts));
        self.parts = self.parts + parts(contents.as_ref()) - parts(self.rings.want().get(&ring));
        self.rings.put(ring, contents);
    }

    /// Parts of the wanted rings.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// Parts that the map has to take while the changes are written.
    pub fn peak(&self) -> u64 {
        let leaving = self.rings.leaving().map(|(have, want)| u64::from(have.parts.saturating_sub(want.map_or(0, |w| w.parts))));
        self.parts + leaving.sum::<u64>()
    }

    fn fresh(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1).max(1);
            if !self.rings.want().contains_key(&self.next) && !self.rings.have().contains_key(&self.next) {
                return self.next;
            }
        }
    }
}

/// Counts a part of `RING_PLACES` in at its ring.
pub fn add_part(rings: &mut BTreeMap<u32, Contents>, key: PlacesKey, places: &Places) {
    rings.entry(key.ring).or_default().add(key.part, places);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xebec_ebpf_abi::{Addr, Port};

    use super::*;

    fn members(ids: &[u32]) -> Vec<Member> {
        let member = |id: &u32| Member { addr: Addr::v4([10, 0, 0, *id as u8]), port: Port::new(80), weight: 1, id: *id };
        ids.iter().map(member).collect()
    }

    /// Writes everything that differs, as the engine does.
    fn write(t: &mut RingTables) {
        let (puts, gone) = t.rings.changes();
        puts.into_iter().for_each(|(k, v)| t.rings.written(k, Some(v)));
        let (sets, gone_sets) = t.sets.changes();
        sets.into_iter().for_each(|(k, v)| t.sets.written(k, Some(v)));
        gone_sets.into_iter().for_each(|k| t.sets.written(k, None));
        gone.into_iter().for_each(|k| t.rings.written(k, None));
    }

    /// A restart of the agent: only what the kernel holds is known.
    fn restarted(t: &RingTables) -> RingTables {
        let mut fresh = RingTables::default();
        fresh.sets.load(t.sets.have().iter().map(|(k, v)| (*k, *v)).collect());
        let bare = |c: &Contents| Contents { spec: None, ..c.clone() };
        fresh.rings.load(t.rings.have().iter().map(|(k, c)| (*k, bare(c))).collect());
        fresh.adopt_loaded();
        fresh
    }

    #[test]
    fn the_previous_generation_is_what_was_in_force() {
        let mut t = RingTables::default();
        assert!(t.want(7, members(&[1, 2]), 251, 0));
        write(&mut t);
        let first = t.sets.have()[&7];
        assert_eq!((first.previous, first.until), (Ring::default(), 0));
        // Two changes before one write: the one between was never in force.
        assert!(t.want(7, members(&[1, 2, 3]), 251, 5));
        assert!(t.want(7, members(&[2, 3]), 251, 6));
        write(&mut t);
        let second = t.sets.have()[&7];
        assert_eq!((second.previous, second.until), (first.current, 6 + SECOND_CHANCE));
        assert_eq!(t.rings.have().len(), 2);
        assert!(t.want(7, members(&[3]), 251, 9));
        write(&mut t);
        let third = t.sets.have()[&7];
        assert_eq!(third.current, Ring { number: 3, size: 1 }, "one backend needs no table");
        assert_eq!(third.previous, second.current);
        assert_eq!(t.rings.have().len(), 1);
        t.drop_set(7);
        write(&mut t);
        assert!(t.rings.have().is_empty() && t.sets.have().is_empty());
    }

    #[test]
    fn a_restart_changes_nothing_and_remembers_the_previous_generation() {
        let mut t = RingTables::default();
        t.want(7, members(&[1, 2]), 251, 0);
        write(&mut t);
        t.want(7, members(&[1, 2, 9]), 251, 0);
        write(&mut t);
        let before = t.sets.have()[&7];
        let mut again = restarted(&t);
        assert_eq!(again.highest_backend(), 9);
        assert!(again.want(7, members(&[1, 2, 9]), 251, 77));
        assert_eq!(again.sets.changes(), (vec![], vec![]));
        assert_eq!(again.rings.changes(), (vec![], vec![]));
        assert_eq!(again.sets.want()[&7], before);
    }

    #[test]
    fn a_full_map_refuses_a_ring_as_a_whole() {
        let places = 131_072;
        let mut t = RingTables { room: Some(places), ..RingTables::default() };
        let room = places as u32 / parts(131_071);
        let wanted = (1..=room + 5).filter(|set| t.want(*set, members(&[*set, 200_000]), 131_071, 0)).count() as u32;
        assert!(wanted < room && wanted > room - 4, "{wanted} of {room}");
        assert_eq!(t.sets.want().len() as u32, wanted);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever changes when: what the kernel names it has, nothing else is left, and the current ring is the
        /// wanted one.
        #[test]
        fn the_kernel_has_what_it_names(steps in proptest::collection::vec(
            (1u32..4, proptest::collection::btree_set(1u32..6, 0..5), any::<bool>(), any::<bool>()), 1..20)) {
            let mut t = RingTables::default();
            let mut want: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for (now, (set, ids, is_written, restart)) in (1u64..).zip(steps) {
                let ids: Vec<u32> = ids.into_iter().collect();
                prop_assert!(t.want(set, members(&ids), 251, now));
                want.insert(set, ids);
                if is_written { write(&mut t); }
                if restart {
                    t = restarted(&t);
                    for (set, ids) in &want { t.want(*set, members(ids), 251, now); }
                }
            }
            write(&mut t);
            prop_assert_eq!(t.peak(), t.rings.have().values().map(|c| u64::from(c.parts)).sum::<u64>(), "what is there is counted");
            let mut named = Vec::new();
            for (set, ids) in &want {
                let Some(rings) = t.sets.have().get(set) else {
                    prop_assert!(ids.is_empty());
                    continue;
                };
                if let [only] = ids[..] {
                    prop_assert_eq!(rings.current, Ring { number: only, size: 1 });
                } else {
                    let spec = Arc::new(Spec { members: members(ids), size: 251 });
                    prop_assert_eq!(&t.rings.have()[&rings.current.number], &Contents::of(spec));
                }
                named.extend([rings.current, rings.previous].into_iter().filter(|r| r.size > 1).map(|r| r.number));
            }
            named.sort_unstable();
            prop_assert_eq!(named, t.rings.have().keys().copied().collect::<Vec<_>>());
        }
    }
}
