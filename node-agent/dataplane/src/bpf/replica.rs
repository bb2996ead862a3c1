//! The programs once more, to be run on made-up packets: they read the very maps that are in force, and write to
//! maps of their own, so that asking changes nothing.

use std::path::Path;

use aya::maps::lpm_trie::{Key as LpmKey, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions};
use xebec_ebpf_abi::{
    Affinity, AffinityKey, DropCount, DropReason, Flow, FlowKey, FragmentKey, FragmentPorts, Nat, SockFrontend, SockKey, Tuple,
};
use xebec_ebpf_abi::{map, prog};

use super::loader::{OBJECT, Pins, chain};
use crate::Error;

/// Maps that programs write: the copy has its own.
///
/// Nobody listens to it: its `LISTEN` is empty, so that it has nothing to tell.
const WRITTEN: [&str; 15] = [
    map::FLOWS,
    map::NAT,
    map::AFFINITY,
    map::SOCK_REVERSE,
    map::GIVEN,
    map::FRAGMENTS,
    map::LIMITS,
    map::SHORTCUTS,
    map::GENERATION,
    map::DROPS,
    map::FORWARDS,
    map::SERVICE_COUNTS,
    map::LISTEN,
    map::UNTOLD,
    map::INSERTS,
];
/// Of those, the tables, which need not be large here.
const TABLES: [&str; 5] = [map::FLOWS, map::NAT, map::AFFINITY, map::SOCK_REVERSE, map::FRAGMENTS];
const ROOM: u32 = 4096;
/// `TC_ACT_SHOT`, `TC_ACT_REDIRECT`; all else is passed on.
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX: usize = 40;
/// Room that a program may add to a packet.
const HEADROOM: usize = 256;

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the stack.
    Pass,
    /// Straight to another device: the other side of a veth pair, or the one it leaves by.
    Redirect,
    /// Gone, and why.
    Drop(Option<DropReason>),
}

/// The second copy.
pub struct Replica {
    ebpf: Ebpf,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
    flows: HashMap<MapData, FlowKey, Flow>,
    nat: HashMap<MapData, Tuple, Nat>,
}

impl Replica {
    /// Loads the programs on the pinned maps.
    pub fn load(pins: &Pins) -> Result<Replica, Error> {
        let own = pins.scratch();
        std::fs::create_dir_all(&own).map_err(Error::io("create", &own))?;
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins.maps());
        for name in WRITTEN {
            loader.map_pin_path(name, own.join(name));
        }
        for name in TABLES {
            loader.map_max_entries(name, ROOM);
        }
        let loaded = loader.load(OBJECT);
        // Nobody is to find them: they live by the programs that use them.
        let removed = remove(&own);
        let mut ebpf = loaded.map_err(|e| Error::Load { what: "the BPF object for a question".into(), reason: chain(&e) })?;
        removed.map_err(Error::io("remove", &own))?;
        for name in prog::TC {
            let program: Option<&mut SchedClassifier> = ebpf.program_mut(name).and_then(|p| p.try_into().ok());
            let fail = |reason| Error::Load { what: format!("program {name} for a question"), reason };
            let program = program.ok_or_else(|| fail("the object has none of that name".into()))?;
            program.load().map_err(|e| fail(chain(&e)))?;
        }
        Ok(Replica {
            ebpf,
            affinity: pinned(&pins.maps().join(map::AFFINITY))?,
            flows: pinned(&pins.maps().join(map::FLOWS))?,
            nat: pinned(&pins.maps().join(map::NAT))?,
        })
    }

    /// Forgets what earlier questions left.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.end_shortcuts()?;
        self.empty::<FlowKey, Flow>(map::FLOWS)?;
        self.empty::<Tuple, Nat>(map::NAT)?;
        self.empty::<AffinityKey, Affinity>(map::AFFINITY)?;
        self.empty::<SockKey, SockFrontend>(map::SOCK_REVERSE)?;
        self.empty::<FragmentKey, FragmentPorts>(map::FRAGMENTS)
    }

    fn end_shortcuts(&mut self) -> Result<(), Error> {
        let fail = |reason: String| Error::Map { what: "write GENERATION for a question".into(), reason };
        let map = self.ebpf.map_mut(map::GENERATION).ok_or_else(|| fail("the object has none".into()))?;
        let mut map: Array<_, u64> = map.try_into().map_err(|e: aya::maps::MapError| fail(chain(&e)))?;
        let generation = map.get(&0, 0).map_err(|e| fail(chain(&e)))?;
        map.set(0, generation.wrapping_add(1), 0).map_err(|e| fail(chain(&e)))
    }

    fn empty<K: Pod, V: Pod>(&mut self, name: &str) -> Result<(), Error> {
        let mut own = self.own::<K, V>(name)?;
        let keys: Vec<K> = own.keys().flatten().collect();
        // An entry that is gone by itself is as good.
        keys.iter().for_each(|key| drop(own.remove(key)));
        Ok(())
    }

    fn own<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>, Error> {
        let fail = |reason: String| Error::Map { what: format!("open {name}"), reason };
        let map = self.ebpf.map_mut(name).ok_or_else(|| fail("the object has none".into()))?;
        HashMap::try_from(map).map_err(|e| fail(chain(&e)))
    }

    fn take_over<K: Pod, V: Pod>(&mut self, name: &str, key: &K, value: Option<V>) -> Result<Option<V>, Error> {
        if let Some(value) = value {
            let written = self.own::<K, V>(name)?.insert(key, value, 0);
            written.map_err(|e| Error::Map { what: format!("write a copy of {name}"), reason: chain(&e) })?;
        }
        Ok(value)
    }

    /// Lets the copy know a live flow, if there is one.
    pub fn know_flow(&mut self, key: &FlowKey) -> Result<Option<Flow>, Error> {
        let live = self.flows.get(key, 0).ok();
        self.take_over(map::FLOWS, key, live)
    }

    /// Lets the copy know a live translation and that of its answers.
    pub fn know_nat(&mut self, tuple: &Tuple) -> Result<Option<Nat>, Error> {
        let live = self.nat.get(tuple, 0).ok();
        if let Some(live) = &live {
            let answers = live.to.reversed();
            let back = self.nat.get(&answers, 0).ok();
            self.take_over(map::NAT, &answers, back)?;
        }
        self.take_over(map::NAT, tuple, live)
    }

    /// Lets the copy know the backend a client has, if it has one.
    pub fn know_affinity(&mut self, key: &AffinityKey) -> Result<(), Error> {
        let live = self.affinity.get(key, 0).ok();
        self.take_over(map::AFFINITY, key, live).map(drop)
    }

    /// The backend a client has.
    pub fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.get(key, 0).ok()
    }

    /// The translation of a tuple in the copy.
    pub fn nat(&self, tuple: &Tuple) -> Option<Nat> {
        self.get(map::NAT, tuple)
    }

    /// An entry of a map.
    pub fn get<K: Pod, V: Pod>(&self, name: &str, key: &K) -> Option<V> {
        let map: HashMap<&MapData, K, V> = HashMap::try_from(self.ebpf.map(name)?).ok()?;
        map.get(key, 0).ok()
    }

    /// An entry of an array.
    pub fn at<V: Pod>(&self, name: &str, index: u32) -> Option<V> {
        let map: Array<&MapData, V> = Array::try_from(self.ebpf.map(name)?).ok()?;
        map.get(&index, 0).ok()
    }

    /// The entry of the longest prefix.
    pub fn longest<K: Pod, V: Pod>(&self, name: &str, bits: u32, key: K) -> Option<V> {
        let map: LpmTrie<&MapData, K, V> = LpmTrie::try_from(self.ebpf.map(name)?).ok()?;
        map.get(&LpmKey::new(bits, key), 0).ok()
    }

    /// What programs know of the node.
    pub fn config(&self) -> Option<xebec_ebpf_abi::Config> {
        let map: Array<&MapData, xebec_ebpf_abi::Config> = Array::try_from(self.ebpf.map(map::CONFIG)?).ok()?;
        map.get(&0, 0).ok()
    }

    fn drops(&self) -> Vec<u64> {
        let map = self.ebpf.map(map::DROPS).and_then(|m| PerCpuArray::<&MapData, DropCount>::try_from(m).ok());
        let sum = |values: aya::maps::PerCpuValues<DropCount>| values.iter().map(|c| c.packets).sum();
        map.map(|m| m.iter().map(|v| v.map_or(0, sum)).collect()).unwrap_or_default()
    }

    /// Runs a classifier on a packet at a device of the caller's network namespace. Returns what became of it.
    pub fn run(&self, name: &str, ifindex: u32, packet: &[u8]) -> Result<(Verdict, Vec<u8>), Error> {
        let fail = |reason| Error::Map { what: format!("run {name} on a packet"), reason };
        let program: Option<&SchedClassifier> = self.ebpf.program(name).and_then(|p| p.try_into().ok());
        let program = program.ok_or_else(|| fail("the object has none of that name".into()))?;
        let mut context = [0u8; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&ifindex.to_ne_bytes());
        let mut out = vec![0; packet.len() + HEADROOM];
        let before = self.drops();
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ctx_in: Some(&context), ..TestRunOptions::default() };
        let result = program.test_run(options).map_err(|e| fail(chain(&e)))?;
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value as i32 {
            SHOT => {
                let counted = before.iter().zip(self.drops()).position(|(before, after)| after > *before);
                Verdict::Drop(counted.and_then(|n| DropReason::from_number(n as u32)))
            }
            REDIRECT => Verdict::Redirect,
            _ => Verdict::Pass,
        };
        Ok((verdict, out))
    }
}

fn pinned<K: Pod, V: Pod>(path: &Path) -> Result<HashMap<MapData, K, V>, Error> {
    let fail = |reason| Error::Map { what: format!("open {}", path.display()), reason };
    let data = MapData::from_pin(path).map_err(|e| fail(chain(&e)))?;
    HashMap::try_from(Map::LruHashMap(data)).map_err(|e| fail(chain(&e)))
}

fn remove(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    std::fs::remove_dir(dir)
}
