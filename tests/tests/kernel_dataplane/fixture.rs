//! A freshly loaded object with maps of its own.

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{CgroupSock, CgroupSockAddr, Program, SchedClassifier, Xdp},
};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::path::PathBuf;
use xebec_ebpf_abi::{DropCount, DropReason, map, prog};
use xebec_ebpf_logic::budget::Budget;

pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/xebec.bpf.o");

/// A BPF file system of this test's own, gone when dropped.
struct PinDir(tempfile::TempDir);

impl PinDir {
    fn mount() -> PinDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("mount a BPF file system (needs root)");
        PinDir(dir)
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Keeps the thread on one CPU while it lives: each has its own shortcuts.
struct Stay(CpuSet);

impl Stay {
    fn new() -> Stay {
        let before = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this thread");
        let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap_or(false)).expect("a CPU");
        let mut one = CpuSet::new();
        one.set(first).expect("it is one");
        sched_setaffinity(Pid::from_raw(0), &one).expect("stay on it");
        Stay(before)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

pub struct Dataplane {
    pub ebpf: Ebpf,
    pins: PinDir,
    _stay: Stay,
}

/// What a program did with a packet.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: i32,
    pub bytes: Vec<u8>,
}

pub const UNSPEC: i32 = -1;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

impl Dataplane {
    pub fn load() -> Dataplane {
        Dataplane::load_with(|_| {})
    }

    pub fn load_with(configure: impl FnOnce(&mut EbpfLoader<'_>)) -> Dataplane {
        Dataplane::load_object(OBJECT, configure)
    }

    pub fn load_object(object: &[u8], configure: impl FnOnce(&mut EbpfLoader<'_>)) -> Dataplane {
        let pins = PinDir::mount();
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins.0.path());
        configure(&mut loader);
        let mut ebpf = loader.load(object).expect("the object is loaded");
        for name in prog::SOCKET.iter().chain(prog::ROOT_SOCKET) {
            let program: &mut CgroupSockAddr = ebpf.program_mut(name).expect(name).try_into().expect("a sock_addr program");
            program.load().unwrap_or_else(|e| panic!("{name} is refused: {e:?}"));
        }
        for name in [prog::SOCK_RELEASE, prog::ROOT_SOCK_RELEASE] {
            let program: &mut CgroupSock = ebpf.program_mut(name).expect(name).try_into().expect("a sock program");
            program.load().unwrap_or_else(|e| panic!("{name} is refused: {e:?}"));
        }
        for name in prog::TC {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into().expect("a classifier");
            program.load().unwrap_or_else(|e| panic!("{name} is refused: {e:?}"));
        }
        let program: &mut Xdp = ebpf.program_mut(prog::XDP_UPLINK).expect("xdp_uplink").try_into().expect("an XDP program");
        program.load().unwrap_or_else(|e| panic!("{} is refused: {e:?}", prog::XDP_UPLINK));
        Dataplane { ebpf, pins, _stay: Stay::new() }
    }

    pub fn pin(&self, name: &str) -> PathBuf {
        self.pins.0.path().join(name)
    }

    pub fn verified_instructions(&self, name: &str) -> u32 {
        let program: &Program = self.ebpf.program(name).expect(name);
        program.info().expect("program info").verified_instruction_count().expect("a count")
    }

    /// Runs a classifier on a packet that came in on, or goes out of, the loopback device (ifindex 1).
    pub fn run(&self, name: &str, packet: &[u8]) -> Outcome {
        let mut bytes = vec![0; packet.len() + 256];
        let program: &SchedClassifier = self.ebpf.program(name).expect(name).try_into().expect("a classifier");
        let result = program
            .test_run(TestRunOptions { data_in: Some(packet), data_out: Some(&mut bytes), ..TestRunOptions::default() })
            .expect("the program is run");
        bytes.truncate(result.data_size_out as usize);
        Outcome { verdict: result.return_value as i32, bytes }
    }

    pub fn hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.ebpf.map_mut(name).expect(name)).expect("a hash map of these types")
    }

    pub fn trie<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, V> {
        LpmTrie::try_from(self.ebpf.map_mut(name).expect(name)).expect("a trie of these types")
    }

    pub fn put<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K, value: V) {
        self.hash(name).insert(key, value, 0).expect("the entry is written");
        if name == map::ENDPOINTS {
            self.end_shortcuts();
        }
    }

    /// What whoever changes `ENDPOINTS` has to do.
    pub fn end_shortcuts(&mut self) {
        let mut map: Array<_, u64> = Array::try_from(self.ebpf.map_mut(map::GENERATION).expect("GENERATION")).expect("an array");
        let generation = map.get(&0, 0).expect("the entry is read");
        map.set(0, generation + 1, 0).expect("the entry is written");
    }

    pub fn put_prefix<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, bits: u32, key: K, value: V) {
        self.trie(name).insert(&Key::new(bits, key), value, 0).expect("the entry is written");
    }

    pub fn configure(&mut self, config: xebec_ebpf_abi::Config) {
        let mut map: Array<_, xebec_ebpf_abi::Config> = Array::try_from(self.ebpf.map_mut(map::CONFIG).expect("CONFIG")).expect("an array");
        map.set(0, config, 0).expect("the entry is written");
    }

    /// ICMP errors that may be sent, on each CPU.
    pub fn set_budget(&mut self, budget: Budget) {
        // SAFETY: two numbers of 64 bits, and the programs' own type.
        let words: [u64; 2] = unsafe { std::mem::transmute(budget) };
        let map = self.ebpf.map_mut("ICMP_BUDGET").expect("the budget");
        let mut map: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map).expect("a per-CPU array");
        let cpus = aya::util::nr_cpus().expect("a number of CPUs");
        map.set(0, aya::maps::PerCpuValues::try_from(vec![words; cpus]).expect("one a CPU"), 0).expect("the budget is written");
    }

    /// How many packets were dropped for a reason, on all CPUs.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.counter(map::DROPS, reason as u32).packets
    }

    /// Packets and bytes of an entry, on all CPUs.
    pub fn counter(&self, name: &str, index: u32) -> DropCount {
        let map: PerCpuArray<_, DropCount> = PerCpuArray::try_from(self.ebpf.map(name).expect(name)).expect("a per-CPU array");
        let mut sum = DropCount::default();
        for count in map.get(&index, 0).expect("the entry is read").iter() {
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        }
        sum
    }
}
