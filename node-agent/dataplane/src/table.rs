//! One BPF map as user space sees it: what it shall hold, what it holds, and where the two may differ.
//!
//! Compilers write the desired side; only keys they touched are compared. A write that fails leaves its key
//! marked, so the next round tries again: nothing is remembered but state.

use std::collections::{BTreeMap, BTreeSet};

/// Desired and actual contents.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    want: BTreeMap<K, V>,
    have: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { want: BTreeMap::new(), have: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<K: Ord + Copy, V: PartialEq + Clone> Table<K, V> {
    /// Takes what the kernel holds as the actual side; everything that differs is marked.
    pub fn load(&mut self, have: BTreeMap<K, V>) {
        self.have = have;
        let keys = self.want.keys().chain(self.have.keys()).copied();
        self.touched = keys.filter(|k| self.want.get(k) != self.have.get(k)).collect();
    }

    /// Wants an entry.
    pub fn set(&mut self, key: K, value: V) {
        if self.want.get(&key) != Some(&value) {
            self.want.insert(key, value);
            self.touched.insert(key);
        }
    }

    /// Wants no such entry.
    pub fn unset(&mut self, key: &K) {
        if self.want.remove(key).is_some() {
            self.touched.insert(*key);
        }
    }

    /// Sets the entry to what `value` says, where none means no entry.
    pub fn put(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.set(key, value),
            None => self.unset(&key),
        }
    }

    /// Wants exactly these entries.
    pub fn replace(&mut self, want: BTreeMap<K, V>) {
        let gone: Vec<K> = self.want.keys().filter(|k| !want.contains_key(k)).copied().collect();
        for key in gone {
            self.unset(&key);
        }
        for (key, value) in want {
            self.set(key, value);
        }
    }

    /// Entries to write, then entries to delete.
    pub fn changes(&self) -> (Vec<(K, V)>, Vec<K>) {
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for key in &self.touched {
            match (self.want.get(key), self.have.get(key)) {
                (Some(want), have) if have != Some(want) => puts.push((*key, want.clone())),
                (None, Some(_)) => deletes.push(*key),
                (Some(_), _) | (None, None) => {}
            }
        }
        (puts, deletes)
    }

    /// A write succeeded: the kernel now holds `value`, or no entry.
    pub fn written(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.have.insert(key, value),
            None => self.have.remove(&key),
        };
        if self.want.get(&key) == self.have.get(&key) {
            self.touched.remove(&key);
        }
    }

    /// Forgets marks of keys that do not differ.
    pub fn settle(&mut self) {
        let Table { want, have, touched } = self;
        touched.retain(|k| want.get(k) != have.get(k));
    }

    /// Desired entries.
    pub fn want(&self) -> &BTreeMap<K, V> {
        &self.want
    }

    /// Entries the kernel is known to hold.
    pub fn have(&self) -> &BTreeMap<K, V> {
        &self.have
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_touched_keys_are_compared_and_failed_writes_stay_marked() {
        let mut t = Table::default();
        t.load(BTreeMap::from([(1, 'a'), (2, 'b')]));
        assert_eq!(t.changes(), (vec![], vec![1, 2]));
        t.replace(BTreeMap::from([(1, 'a'), (3, 'c')]));
        assert_eq!(t.changes(), (vec![(3, 'c')], vec![2]));
        t.written(3, Some('c'));
        assert_eq!(t.changes(), (vec![], vec![2]), "the delete was not confirmed and comes again");
        t.written(2, None);
        t.settle();
        assert!(t.touched.is_empty());
    }

    proptest! {
        #[test]
        fn applying_the_changes_gives_the_desired_contents(
            have in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
            wants in proptest::collection::vec(proptest::collection::btree_map(0u8..20, 0u8..3, 0..20), 1..5),
        ) {
            let mut kernel = have.clone();
            let mut t = Table::default();
            t.load(have);
            for want in wants {
                t.replace(want.clone());
                let (puts, deletes) = t.changes();
                for (k, v) in &puts { prop_assert_ne!(kernel.get(k), Some(v), "only differences are written"); }
                for (k, v) in puts { kernel.insert(k, v); t.written(k, Some(v)); }
                for k in deletes { prop_assert!(kernel.remove(&k).is_some()); t.written(k, None); }
                prop_assert_eq!(&kernel, &want);
            }
        }
    }
}
