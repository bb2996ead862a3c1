//! The programs as the kernel runs them, and what they leave in their maps.

use std::collections::HashMap;

use aya::{
    TestRun, TestRunOptions,
    maps::PerCpuHashMap,
    programs::{Xdp, XdpMode},
};
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::xdp::Decided;

use super::world::UPLINK;
use crate::fixture::{Dataplane, OBJECT, Outcome};

/// Places of the maps that programs fill.
const MANY: u32 = 4096;
/// And where they shall run out of them.
pub const FEW: u32 = 24;

pub struct Kernel {
    pub dataplane: Dataplane,
    /// What its programs are given for a random number, each time: what they draw by chance, the host could not draw too.
    pub dice: u32,
}

/// The map of what the driver's program has decided, which is its own.
const DECIDED: &str = "DECIDED";
/// As bytes, for want of a better type.
type RawDecided = [u8; size_of::<Decided>()];

/// All that programs write but counters of drops and ways.
pub struct Left {
    pub flows: HashMap<FlowKey, Flow>,
    pub nat: HashMap<Tuple, Nat>,
    pub affinities: HashMap<AffinityKey, Affinity>,
    pub fragments: HashMap<FragmentKey, FragmentPorts>,
    pub served: HashMap<u32, ServiceCount>,
    pub decided: HashMap<Tuple, Decided>,
}

impl Kernel {
    /// With so many places for flows and for translations.
    pub fn load(places: Option<u32>, dice: u32) -> Kernel {
        let dataplane = Dataplane::load_object(&with_dice(OBJECT, dice), |loader| {
            for name in [map::FLOWS, map::NAT] {
                loader.map_max_entries(name, places.unwrap_or(MANY));
            }
            for name in [map::AFFINITY, map::FRAGMENTS, map::SERVICE_COUNTS, DECIDED] {
                loader.map_max_entries(name, MANY);
            }
        });
        Kernel { dataplane, dice }
    }

    /// Makes the uplink of the namespace one whose driver takes programs: only then packets can be made that came in on it.
    pub fn attach(&mut self) {
        let program = self.dataplane.ebpf.program_mut(prog::XDP_UPLINK).expect("there");
        let program: &mut Xdp = program.try_into().expect("an XDP program");
        program.attach_to_if_index(UPLINK, XdpMode::Driver).expect("it is attached to the uplink");
    }

    /// Runs a program on a packet, in the driver on one that came in on the uplink.
    pub fn run(&self, program: &str, packet: &[u8]) -> Outcome {
        if program != prog::XDP_UPLINK {
            return self.dataplane.run(program, packet);
        }
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, packet.len() as u32, 0, UPLINK, 0, 0].map(u32::to_ne_bytes).concat();
        let mut bytes = vec![0; packet.len() + 256];
        let program: &Xdp = self.dataplane.ebpf.program(program).expect("there").try_into().expect("an XDP program");
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut bytes), ctx_in: Some(&context), ..TestRunOptions::default() };
        let result = program.test_run(options).expect("the program is run");
        bytes.truncate(result.data_size_out as usize);
        Outcome { verdict: result.return_value as i32, bytes }
    }

    /// Packets and bytes of each entry of a map of counters.
    pub fn counters(&self, name: &str, count: u32) -> Vec<DropCount> {
        (0..count).map(|index| self.dataplane.counter(name, index)).collect()
    }

    pub fn left(&mut self) -> Left {
        fn all<K: aya::Pod + Eq + std::hash::Hash, V: aya::Pod>(kernel: &mut Dataplane, name: &str) -> HashMap<K, V> {
            kernel.hash::<K, V>(name).iter().map(|entry| entry.expect("nobody else writes")).collect()
        }
        let kernel = &mut self.dataplane;
        Left {
            flows: all(kernel, map::FLOWS),
            nat: all(kernel, map::NAT),
            affinities: all(kernel, map::AFFINITY),
            fragments: all(kernel, map::FRAGMENTS),
            served: served(kernel),
            // SAFETY: the programs' own type, of plain numbers without padding.
            decided: all::<Tuple, RawDecided>(kernel, DECIDED)
                .into_iter()
                .map(|(key, raw)| (key, unsafe { std::mem::transmute::<RawDecided, Decided>(raw) }))
                .collect(),
        }
    }

    /// Empties what programs fill.
    pub fn clear(&mut self) {
        fn clear<K: aya::Pod, V: aya::Pod>(kernel: &mut Dataplane, name: &str) {
            let mut map = kernel.hash::<K, V>(name);
            let keys: Vec<K> = map.keys().map(|key| key.expect("nobody else writes")).collect();
            for key in keys {
                map.remove(&key).expect("it was there");
            }
        }
        let kernel = &mut self.dataplane;
        clear::<FlowKey, Flow>(kernel, map::FLOWS);
        clear::<Tuple, Nat>(kernel, map::NAT);
        clear::<Tuple, RawDecided>(kernel, DECIDED);
        kernel.end_shortcuts();
        clear::<AffinityKey, Affinity>(kernel, map::AFFINITY);
        clear::<FragmentKey, FragmentPorts>(kernel, map::FRAGMENTS);
        let services: Vec<u32> = served(kernel).into_keys().collect();
        let map = kernel.ebpf.map_mut(map::SERVICE_COUNTS).expect("the counts");
        let mut map: PerCpuHashMap<_, u32, ServiceCount> = PerCpuHashMap::try_from(map).expect("a per-CPU hash map");
        for service in services {
            map.remove(&service).expect("it was there");
        }
    }
}

/// The programs with `r0 = dice` wherever they would call `bpf_get_prandom_u32`.
fn with_dice(object: &[u8], dice: u32) -> Vec<u8> {
    const CALL: [u8; 8] = [0x85, 0, 0, 0, 7, 0, 0, 0];
    let [a, b, c, d] = dice.to_le_bytes();
    let mut object = object.to_vec();
    let mut calls = 0;
    // Instructions lie at multiples of their size, and nothing else in the file begins with an opcode.
    for instruction in object.chunks_exact_mut(CALL.len()).filter(|bytes| *bytes == CALL) {
        instruction.copy_from_slice(&[0xb4, 0, 0, 0, a, b, c, d]);
        calls += 1;
    }
    assert!(calls > 0, "the programs ask for no random number");
    object
}

/// Counts of Services, summed over the CPUs.
fn served(kernel: &Dataplane) -> HashMap<u32, ServiceCount> {
    let map = kernel.ebpf.map(map::SERVICE_COUNTS).expect("the counts");
    let map: PerCpuHashMap<_, u32, ServiceCount> = PerCpuHashMap::try_from(map).expect("a per-CPU hash map");
    let sum = |entry: Result<(u32, aya::maps::PerCpuValues<ServiceCount>), _>| {
        let (service, counts): (u32, _) = entry.expect("nobody else writes");
        let flows = counts.iter().map(|count| count.flows).sum();
        let refused = counts.iter().map(|count| count.refused).sum();
        (service, ServiceCount { flows, refused })
    };
    map.iter().map(sum).collect()
}
