//! The places of a ring (Eisenbud et al., "Maglev", NSDI 2016): each backend walks the places in an order of its
//! own and takes the next free one when it is its turn. What a place holds depends on the backends' addresses,
//! ports and weights alone, so every node that knows the same backends makes the same ring, and a change of the
//! backends moves little beside what it has to.

use xebec_ebpf_abi::{Addr, Port};

/// Sizes a ring may have: primes below powers of two. At least a hundred places a backend keep the shares even.
pub const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];
/// The size unless told otherwise.
pub const DEFAULT_SIZE: u32 = 16381;
/// Weight of a backend that has none given.
pub const DEFAULT_WEIGHT: u32 = 1;
/// The greatest weight.
pub const MAX_WEIGHT: u32 = 100;

/// A backend on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// Its share, relative to the others'.
    pub weight: u32,
    /// This node's number for it: what the places hold.
    pub id: u32,
}

struct Walk {
    member: Member,
    at: u32,
    skip: u32,
    /// Turns it was owed and had, in units of the greatest weight.
    owed: u32,
}

/// The backend of every place. `size` is one of [`SIZES`]; without members there are no places.
pub fn places(members: &[Member], size: u32) -> Vec<u32> {
    let mut members = members.to_vec();
    members.sort();
    members.dedup_by_key(|m| (m.addr, m.port));
    let most = members.iter().map(|m| m.weight).max().unwrap_or(0);
    if most == 0 || size < 3 {
        return Vec::new();
    }
    let mut walks: Vec<Walk> = members.iter().filter(|m| m.weight > 0).map(|m| walk(*m, size)).collect();
    let mut places = vec![0u32; size as usize];
    let mut free = size;
    loop {
        for w in &mut walks {
            w.owed += w.member.weight;
            if w.owed < most {
                continue;
            }
            w.owed -= most;
            // The skip and the size have no common divisor: the walk meets every place, so also a free one.
            while places[w.at as usize] != 0 {
                w.step(size);
            }
            places[w.at as usize] = w.member.id;
            free -= 1;
            if free == 0 {
                return places;
            }
        }
    }
}

impl Walk {
    fn step(&mut self, size: u32) {
        self.at += self.skip;
        if self.at >= size {
            self.at -= size;
        }
    }
}

fn walk(member: Member, size: u32) -> Walk {
    let size = u64::from(size);
    let (at, skip) = (hash(&member, 0x6f66_6673_6574), hash(&member, 0x736b_6970));
    Walk { member, at: (at % size) as u32, skip: (skip % (size - 1) + 1) as u32, owed: 0 }
}

/// FNV-1a over the endpoint and a seed, finished so that near addresses lie far apart. Never to be changed: nodes
/// of two versions balance the same flows.
fn hash(member: &Member, seed: u64) -> u64 {
    let (addr, port) = (member.addr.octets(), member.port.get().to_be_bytes());
    let bytes = seed.to_be_bytes().into_iter().chain(addr).chain(port);
    let mut h = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn member(n: u32, weight: u32) -> Member {
        let [_, a, b, c] = n.to_be_bytes();
        Member { addr: Addr::v4([10, a, b, c]), port: Port::new(8080), weight, id: n + 1 }
    }

    fn shares(places: &[u32]) -> BTreeMap<u32, u32> {
        let mut shares = BTreeMap::new();
        places.iter().for_each(|p| *shares.entry(*p).or_insert(0) += 1);
        shares
    }

    fn backends(max: usize) -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::btree_set(0u32..5000, 1..max).prop_map(|s| s.into_iter().collect())
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert!(SIZES.contains(&DEFAULT_SIZE));
    }

    #[test]
    fn a_ring_of_nobody_is_empty_and_of_one_all_its_own() {
        assert!(places(&[], 251).is_empty());
        assert!(places(&[member(1, 0)], 251).is_empty(), "weight 0 takes no place");
        assert_eq!(shares(&places(&[member(1, 5)], 251)), BTreeMap::from([(2, 251)]));
    }

    #[test]
    fn the_places_never_change_between_versions() {
        let members: Vec<Member> = (0..3).map(|n| member(n, 1)).collect();
        let ring = places(&members, 251);
        assert_eq!(ring[..16], [3, 1, 2, 1, 3, 1, 2, 2, 1, 2, 1, 2, 1, 2, 1, 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Equal weights: shares differ by one place at most, which is within 2 % with fifty places each.
        #[test]
        fn equal_weights_have_equal_shares(ids in backends(60), size in select(&SIZES[3..8])) {
            let members: Vec<Member> = ids.iter().map(|n| member(*n, 1)).collect();
            let shares = shares(&places(&members, size));
            prop_assert_eq!(shares.len(), members.len());
            let fair = f64::from(size) / members.len() as f64;
            for share in shares.values() {
                prop_assert!((f64::from(*share) - fair).abs() <= 1.0);
                prop_assert!(fair < 50.0 || (f64::from(*share) / fair - 1.0).abs() < 0.02);
            }
        }

        #[test]
        fn shares_follow_weights(ids in backends(20), weights in proptest::collection::vec(1u32..=10, 20)) {
            let members: Vec<Member> = ids.iter().zip(&weights).map(|(n, w)| member(*n, *w)).collect();
            let total: u32 = members.iter().map(|m| m.weight).sum();
            let shares = shares(&places(&members, DEFAULT_SIZE));
            for m in &members {
                let fair = f64::from(DEFAULT_SIZE) * f64::from(m.weight) / f64::from(total);
                let share = f64::from(shares[&m.id]);
                prop_assert!((share - fair).abs() <= fair * 0.02 + 1.0, "{share} of {fair}");
            }
        }

        /// What a node calls its backends, where they are and in which order it learnt of them does not count.
        #[test]
        fn nodes_with_equal_backends_have_equal_rings(ids in backends(40), turn in any::<usize>(), shift in 1u32..1000) {
            let here: Vec<Member> = ids.iter().map(|n| member(*n, 1 + n % 3)).collect();
            let mut there: Vec<Member> = here.iter().map(|m| Member { id: m.id + shift, ..*m }).collect();
            let middle = turn % there.len();
            there.rotate_left(middle);
            let moved: Vec<u32> = places(&here, 4093).iter().map(|p| p + shift).collect();
            prop_assert_eq!(moved, places(&there, 4093));
        }

        /// A backend that goes gives its places away; of the others' at most a few per cent move.
        #[test]
        fn a_change_moves_little(ids in backends(60), gone in any::<usize>()) {
            prop_assume!(ids.len() > 1);
            let before: Vec<Member> = ids.iter().map(|n| member(*n, 1)).collect();
            let gone = before[gone % before.len()];
            let after: Vec<Member> = before.iter().filter(|m| **m != gone).copied().collect();
            let (old, new) = (places(&before, DEFAULT_SIZE), places(&after, DEFAULT_SIZE));
            prop_assert!(!new.contains(&gone.id));
            let moved = old.iter().zip(&new).filter(|(a, b)| **a != gone.id && a != b).count();
            prop_assert!((moved as f64) < f64::from(DEFAULT_SIZE) * 0.05, "{moved} places moved needlessly");
        }
    }
}
