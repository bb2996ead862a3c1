//! The map of pods' limits. Programs keep in it how far ahead of its rate a pod is, so an entry is written only when
//! its limit changes.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use xebec_ebpf_abi::{Limit, LimitKey, map};

use super::loader::chain;
use super::maps::{gone, take};
use crate::Error;

/// The map, and the limits in it.
pub struct Limits {
    map: HashMap<MapData, LimitKey, Limit>,
    have: BTreeMap<LimitKey, Limit>,
}

/// Without what programs write.
fn said(limit: Limit) -> Limit {
    Limit { until: 0, ..limit }
}

impl Limits {
    /// Takes the map out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Limits, Error> {
        let map: HashMap<MapData, LimitKey, Limit> = take(ebpf, map::LIMITS)?;
        let mut limits = Limits { map, have: BTreeMap::new() };
        limits.read();
        Ok(limits)
    }

    /// Takes what the map holds for what there is.
    pub fn read(&mut self) {
        self.have = self.map.iter().flatten().map(|(key, limit)| (key, said(limit))).collect();
    }

    /// How many there are.
    pub fn entries(&self) -> u64 {
        self.have.len() as u64
    }

    /// Makes these the limits.
    pub fn set(&mut self, wanted: &BTreeMap<LimitKey, Limit>) -> Result<(), Error> {
        let fail = |key: &LimitKey, e: &dyn std::error::Error| Error::Map { what: format!("write {key:?} to LIMITS"), reason: chain(e) };
        let over: Vec<LimitKey> = self.have.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in over {
            gone(self.map.remove(&key)).map_err(|e| fail(&key, &e))?;
            self.have.remove(&key);
        }
        for (key, limit) in wanted {
            if self.have.get(key) != Some(limit) {
                self.map.insert(key, limit, 0).map_err(|e| fail(key, &e))?;
                self.have.insert(*key, *limit);
            }
        }
        Ok(())
    }
}
