//! An ordered map that is kept in pieces of many entries.
//!
//! A tree of small nodes spends half as much again on its nodes as on hundreds of thousands of short entries, and leaves the
//! allocator with holes nothing else fits into. Here an entry takes its own size and little more.

/// Entries a piece has at most: few enough to be moved, many enough that pieces are few.
const PIECE: usize = 256;

/// Entries in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted<K, V> {
    /// Sorted, none empty, each before the next.
    pieces: Vec<Vec<(K, V)>>,
    len: usize,
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted { pieces: Vec::new(), len: 0 }
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// The piece a key is in, or would be.
    fn piece(&self, key: &K) -> usize {
        self.pieces.partition_point(|p| p.first().is_some_and(|(first, _)| first <= key)).saturating_sub(1)
    }

    fn find(&self, key: &K) -> Option<(usize, usize)> {
        let piece = self.piece(key);
        let at = self.pieces.get(piece)?.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        Some((piece, at))
    }

    /// The entry at a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).map(|(piece, at)| &self.pieces[piece][at].1)
    }

    /// The entry at a key, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).map(|(piece, at)| &mut self.pieces[piece][at].1)
    }

    /// Whether there is one.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_some()
    }

    /// Sets an entry; returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.piece(&key);
        let is_last = index + 1 == self.pieces.len();
        let Some(piece) = self.pieces.get_mut(index) else {
            self.pieces.push(vec![(key, value)]);
            self.len = 1;
            return None;
        };
        let at = match piece.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => return Some(std::mem::replace(&mut piece[at].1, value)),
            Err(at) => at,
        };
        self.len += 1;
        if piece.len() < PIECE {
            piece.insert(at, (key, value));
        } else if at == PIECE && is_last {
            // Keys that come in order fill every piece.
            self.pieces.push(vec![(key, value)]);
        } else {
            let mut upper = piece.split_off(PIECE / 2);
            match at.checked_sub(PIECE / 2) {
                Some(at) => upper.insert(at, (key, value)),
                None => piece.insert(at, (key, value)),
            }
            self.pieces.insert(index + 1, upper);
        }
        None
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (index, at) = self.find(key)?;
        let (_, value) = self.pieces[index].remove(at);
        self.len -= 1;
        if self.pieces[index].is_empty() {
            self.pieces.remove(index);
        } else {
            let fit = |at: &usize| self.pieces.get(*at).zip(self.pieces.get(at + 1)).is_some_and(|(a, b)| a.len() + b.len() <= PIECE / 2);
            if let Some(at) = [index, index.saturating_sub(1)].into_iter().find(fit) {
                let next = self.pieces.remove(at + 1);
                self.pieces[at].extend(next);
            }
        }
        Some(value)
    }

    /// All entries.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.pieces.iter().flatten().map(|(k, v)| (k, v))
    }

    /// Their keys.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.pieces.iter().flatten().map(|(k, _)| k)
    }

    /// Their values.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.pieces.iter().flatten().map(|(_, v)| v)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
impl<K: Ord, V> std::ops::Index<&K> for Sorted<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("an entry at this key")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_in_order_fill_every_piece() {
        let mut sorted = Sorted::default();
        for key in 0..10 * PIECE {
            sorted.insert(key, ());
        }
        assert!(sorted.pieces.iter().all(|p| p.len() == PIECE && p.capacity() == PIECE));
        for key in (0..10 * PIECE).filter(|n| n % 64 != 0) {
            sorted.remove(&key);
        }
        assert!(sorted.pieces.len() <= 2, "pieces of few entries become one: {}", sorted.pieces.len());
    }

    proptest! {
        /// Whatever is done, it answers as a map of the standard library.
        #[test]
        fn it_is_an_ordered_map(steps in proptest::collection::vec((0u16..1200, any::<bool>(), 1u16..600), 1..40)) {
            let (mut sorted, mut map) = (Sorted::default(), BTreeMap::new());
            for (first, insert, count) in steps {
                for key in (first..first + count).step_by(if first % 2 == 0 { 1 } else { 3 }) {
                    let (ours, theirs) = if insert { (sorted.insert(key, count), map.insert(key, count)) } else { (sorted.remove(&key), map.remove(&key)) };
                    prop_assert_eq!(ours, theirs);
                }
                prop_assert_eq!(sorted.len(), map.len());
                prop_assert!(sorted.iter().eq(map.iter()) && sorted.keys().eq(map.keys()) && sorted.values().rev().eq(map.values().rev()));
                prop_assert!((0..1900).all(|key| sorted.get(&key) == map.get(&key) && sorted.get_mut(&key) == map.get_mut(&key)));
                prop_assert!(sorted.pieces.iter().all(|p| !p.is_empty() && p.len() <= PIECE));
            }
        }
    }
}
