//! One BPF map as user space sees it: what it shall hold, and where what it holds differs from that.
//!
//! Compilers write the desired side; only keys at which the two sides differ are looked at again. A write that fails leaves
//! its key among them, so the next round tries again: nothing is remembered but state. What is the same on both sides is
//! kept once, because with hundreds of thousands of entries that is most of an agent's memory.

use std::collections::BTreeMap;
use std::iter::Peekable;

use crate::sorted::Sorted;

/// Desired and actual contents.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    want: Sorted<K, V>,
    /// What the kernel holds, at the keys where that is not what it shall hold.
    differs: BTreeMap<K, Option<V>>,
    /// How many entries the kernel holds.
    held: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { want: Sorted::default(), differs: BTreeMap::new(), held: 0 }
    }
}

impl<K: Ord + Copy, V: PartialEq + Clone> Table<K, V> {
    /// Takes what the kernel holds as the actual side.
    pub fn load(&mut self, have: BTreeMap<K, V>) {
        self.held = have.len();
        let missing: Vec<K> = self.want.keys().filter(|k| !have.contains_key(k)).copied().collect();
        let other = have.into_iter().filter(|(k, v)| self.want.get(k) != Some(v));
        self.differs = other.map(|(k, v)| (k, Some(v))).collect();
        self.differs.extend(missing.into_iter().map(|k| (k, None)));
    }

    /// Wants an entry.
    pub fn set(&mut self, key: K, value: V) {
        self.put(key, Some(value));
    }

    /// Wants no such entry.
    pub fn unset(&mut self, key: &K) {
        self.put(*key, None);
    }

    /// Sets the entry to what `value` says, where none means no entry.
    pub fn put(&mut self, key: K, value: Option<V>) {
        if self.want.get(&key) == value.as_ref() {
            return;
        }
        let before = match value {
            Some(value) => self.want.insert(key, value),
            None => self.want.remove(&key),
        };
        let have = self.differs.remove(&key).unwrap_or(before);
        if have.as_ref() != self.want.get(&key) {
            self.differs.insert(key, have);
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
        for key in self.differs.keys() {
            match self.want.get(key) {
                Some(want) => puts.push((*key, want.clone())),
                None => deletes.push(*key),
            }
        }
        (puts, deletes)
    }

    /// A write succeeded: the kernel now holds `value`, or no entry.
    pub fn written(&mut self, key: K, value: Option<V>) {
        let had = self.have().contains_key(&key);
        self.held = self.held + usize::from(value.is_some()) - usize::from(had);
        if self.want.get(&key) == value.as_ref() {
            self.differs.remove(&key);
        } else {
            self.differs.insert(key, value);
        }
    }

    /// How many entries the kernel holds at most while the changes are written: puts come before deletes.
    pub fn peak(&self) -> usize {
        self.want.len() + self.leaving().filter(|(_, want)| want.is_none()).count()
    }

    /// What the kernel holds and shall not hold like that, with what it shall hold instead.
    pub fn leaving(&self) -> impl Iterator<Item = (&V, Option<&V>)> {
        self.differs.iter().filter_map(|(key, have)| Some((have.as_ref()?, self.want.get(key))))
    }

    /// Desired entries.
    pub fn want(&self) -> &Sorted<K, V> {
        &self.want
    }

    /// Entries the kernel is known to hold.
    pub fn have(&self) -> Have<'_, K, V> {
        Have { table: self }
    }
}

/// The actual side of a table, read like a map.
#[derive(Debug)]
pub struct Have<'a, K, V> {
    table: &'a Table<K, V>,
}

impl<'a, K: Ord + Copy, V> Have<'a, K, V> {
    /// The entry at a key.
    pub fn get(&self, key: &K) -> Option<&'a V> {
        match self.table.differs.get(key) {
            Some(have) => have.as_ref(),
            None => self.table.want.get(key),
        }
    }

    /// Whether there is one.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.held
    }

    /// Whether there are none.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them in the keys' order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a K, &'a V)> + Clone + use<'a, K, V> {
        let Table { want, differs, .. } = self.table;
        let same = want.iter().filter(|(k, _)| !differs.contains_key(k));
        merge(same.peekable(), differs.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))).peekable())
    }

    /// Their keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &'a K> + Clone + use<'a, K, V> {
        self.iter().map(|(k, _)| k)
    }

    /// Their values, in the keys' order.
    pub fn values(&self) -> impl Iterator<Item = &'a V> + Clone + use<'a, K, V> {
        self.iter().map(|(_, v)| v)
    }
}

#[cfg(test)]
impl<K: Ord + Copy, V> std::ops::Index<&K> for Have<'_, K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the kernel holds an entry at this key")
    }
}

/// Two sequences in order as one.
fn merge<K: Ord + Clone, V: Clone>(
    mut a: Peekable<impl Iterator<Item = (K, V)> + Clone>,
    mut b: Peekable<impl Iterator<Item = (K, V)> + Clone>,
) -> impl Iterator<Item = (K, V)> + Clone {
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some((first, _)), Some((second, _))) if first > second => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_differences_are_kept_and_failed_writes_stay() {
        let mut t = Table::default();
        t.load(BTreeMap::from([(1, 'a'), (2, 'b')]));
        assert_eq!(t.changes(), (vec![], vec![1, 2]));
        t.replace(BTreeMap::from([(1, 'a'), (3, 'c')]));
        assert_eq!(t.changes(), (vec![(3, 'c')], vec![2]));
        t.written(3, Some('c'));
        assert_eq!(t.changes(), (vec![], vec![2]), "the delete was not confirmed and comes again");
        t.written(2, None);
        assert!(t.differs.is_empty());
    }

    proptest! {
        #[test]
        fn applying_the_changes_gives_the_desired_contents(
            have in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
            wants in proptest::collection::vec((proptest::collection::btree_map(0u8..20, 0u8..3, 0..20), 0usize..6), 1..6),
        ) {
            let mut kernel = have.clone();
            let mut t = Table::default();
            t.load(have);
            for (want, failing) in wants {
                t.replace(want.clone());
                let (puts, deletes) = t.changes();
                for (k, v) in &puts { prop_assert_ne!(kernel.get(k), Some(v), "only differences are written"); }
                let writes = puts.into_iter().map(|(k, v)| (k, Some(v))).chain(deletes.into_iter().map(|k| (k, None)));
                for (k, v) in writes.skip(failing) {
                    match v { Some(v) => kernel.insert(k, v), None => kernel.remove(&k) };
                    t.written(k, v);
                }
                if failing == 0 { prop_assert_eq!(&kernel, &want); }
                // The actual side is what the kernel holds, in order, at every moment.
                prop_assert_eq!(t.have().iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(), kernel.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
                prop_assert_eq!(t.have().len(), kernel.len());
                prop_assert_eq!(t.peak(), want.keys().chain(kernel.keys()).collect::<std::collections::BTreeSet<_>>().len());
                for k in 0..20 { prop_assert_eq!(t.have().get(&k), kernel.get(&k)); }
                let mut again = t.clone();
                again.load(kernel.clone());
                prop_assert_eq!(&again.differs, &t.differs);
            }
        }
    }
}
