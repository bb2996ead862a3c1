//! One state and the packets that follow each other in it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use xebec_ebpf_abi::{Config, DropCount, DropReason, forward, map};
use xebec_ebpf_logic::reject::Budget;

use super::{
    entries::Entry,
    fake::Fake,
    host::{self, Did, PROGRAMS},
    kernel::{FEW, Kernel, Left},
    packets,
    states::States,
    world::{NODE, UPLINK, UPLINK_MTU, bits, of},
};
use crate::fixture::{REDIRECT, UNSPEC};

const SECOND: u64 = 1_000_000_000;

/// Where a packet comes from.
#[derive(Clone, Debug)]
pub enum Source {
    Made(Vec<u8>),
    /// What an earlier step's program was given, again; with a seed for what differs.
    Again(usize, u64),
    /// The answer to what an earlier step's program made.
    Answer(usize, u64),
    /// An ICMP error about that.
    Complaint(usize, u64),
}

#[derive(Clone, Debug)]
pub enum Action {
    Change(Entry),
    /// A packet for a program; whether ICMP errors may be sent.
    Packet {
        program: &'static str,
        source: Source,
        may_complain: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Step {
    /// By which others know it.
    pub id: usize,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub few_places: bool,
    pub config: Config,
    pub setup: Vec<Entry>,
    pub steps: Vec<Step>,
}

/// What was seen.
#[derive(Default)]
pub struct Tally {
    pub packets: u64,
    pub drops: BTreeMap<u32, u64>,
    pub forwards: BTreeMap<u32, u64>,
    /// What Services were asked for.
    pub served: u64,
    /// Dropped, but sent back as something else.
    pub answered: u64,
    pub verdicts: BTreeMap<(&'static str, i32), u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        fn sum<K: Ord + Copy>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *to.entry(*key).or_default() += count;
            }
        }
        self.packets += other.packets;
        self.answered += other.answered;
        self.served += other.served;
        sum(&mut self.drops, &other.drops);
        sum(&mut self.forwards, &other.forwards);
        sum(&mut self.verdicts, &other.verdicts);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets, {} of them turned back, {} for Services counted", self.packets, self.answered, self.served)?;
        for ((program, verdict), count) in &self.verdicts {
            write!(f, "\n{program} {verdict}: {count}")?;
        }
        for (reason, count) in &self.drops {
            write!(f, "\ndropped, {}: {count}", DropReason::from_number(*reason).map_or("?", DropReason::label))?;
        }
        for (path, count) in &self.forwards {
            write!(f, "\npassed on, {}: {count}", forward::LABELS.get(*path as usize).unwrap_or(&"?"))?;
        }
        Ok(())
    }
}

/// The monotonic clock as of the last tick, which programs read too.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the pointer is to a timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) }, 0);
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

impl Case {
    pub fn new(seed: u64) -> Case {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let few_places = rng.random_ratio(1, 8);
        // One port leaves nothing to chance. Where there are more, the one that the kernel has taken is found by the packet, which
        // holds for what leaves, not for what arrives; nor where there is no place for any but ports that were used before.
        let ports = if few_places { 1 } else { *[1, 1, 2, 8, 4536].choose(rng).expect("some") };
        let config =
            Config { node_netns_cookie: 1, nat_port_min: 61000, nat_port_max: 61000 + (ports - 1), flags: bits(rng, Config::PAST_STACK) };
        let mut states = States { rng, now: now(), remote_backends: ports == 1 };
        let setup = states.all();
        let count = states.rng.random_range(50..400);
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        for id in 0..count {
            let action = if states.rng.random_ratio(1, 40) { Action::Change(states.change()) } else { packet(states.rng, &steps) };
            steps.push(Step { id, action });
        }
        Case { few_places, config, setup, steps }
    }
}

fn packet(rng: &mut SmallRng, before: &[Step]) -> Action {
    let may_complain = !rng.random_ratio(1, 10);
    let program = *PROGRAMS.choose(rng).expect("some");
    let made = |rng: &mut SmallRng| Action::Packet { program, source: Source::Made(packets::any(rng, program)), may_complain };
    if rng.random_ratio(1, 2) {
        return made(rng);
    }
    // One of the last: conversations are short.
    let Some(earlier) = before.len().checked_sub(rng.random_range(1..8)).map(|at| &before[at]) else { return made(rng) };
    let Action::Packet { program: earlier_program, .. } = &earlier.action else { return made(rng) };
    let (id, seed) = (earlier.id, rng.random());
    let (program, source) = match rng.random_range(0..7) {
        0..=2 => (*earlier_program, Source::Again(id, seed)),
        // Any program may see it next: the way a packet takes, and where its answer comes by.
        3 => (program, Source::Again(id, seed)),
        4 | 5 => (program, Source::Answer(id, seed)),
        _ => (program, Source::Complaint(id, seed)),
    };
    Action::Packet { program, source, may_complain }
}

/// Budgets of ICMP errors: as many as anybody wants, and none.
fn budgets() -> [Budget; 2] {
    let mut spent = Budget::default();
    while spent.spend(u64::MAX) {}
    [spent, Budget::default()]
}

fn same(a: Budget, b: Budget) -> bool {
    // SAFETY: two numbers of 64 bits.
    let words = |budget| unsafe { std::mem::transmute::<Budget, [u64; 2]>(budget) };
    words(a) == words(b)
}

/// Plays a case in both, from empty maps to empty maps. `Err` says where they differ.
pub fn play(kernel: &mut Kernel, case: &Case) -> Result<Tally, String> {
    // What lives by seconds differs when the machine stands still in between: then it does not count.
    const QUICK: Duration = Duration::from_millis(800);
    for _ in 0..100 {
        let start = Instant::now();
        let result = once(kernel, case);
        for entry in case.setup.iter().chain(case.steps.iter().filter_map(|step| match &step.action {
            Action::Change(entry) => Some(entry),
            Action::Packet { .. } => None,
        })) {
            entry.forget(&mut kernel.dataplane);
        }
        kernel.clear();
        if result.is_ok() || start.elapsed() < QUICK {
            return result;
        }
    }
    Err("no run of the case was quick enough to tell anything".to_owned())
}

fn once(kernel: &mut Kernel, case: &Case) -> Result<Tally, String> {
    let host = Fake::default();
    host.config.set(Some(case.config));
    if case.few_places {
        host.flow_places.set(FEW as usize);
        host.nat_places.set(FEW as usize);
    }
    // What `world::space` tells the kernel.
    host.way.set((UPLINK, UPLINK_MTU));
    host.ways.borrow_mut().extend([true, false].map(|v4| (of(NODE, v4).into(), (0, 0))));
    kernel.dataplane.configure(case.config);
    for entry in &case.setup {
        entry.put(&mut kernel.dataplane, &host);
    }
    let counters = |kernel: &Kernel| (kernel.counters(map::DROPS, DropReason::COUNT), kernel.counters(map::FORWARDS, forward::COUNT));
    let before = counters(kernel);
    let budgets = budgets();
    kernel.dataplane.set_budget(budgets[1]);
    let mut in_force = budgets[1];
    let mut tally = Tally::default();
    let mut seen: HashMap<usize, (Vec<u8>, Vec<u8>)> = HashMap::new();
    for step in &case.steps {
        let (program, source, may_complain) = match &step.action {
            Action::Change(entry) => {
                entry.put(&mut kernel.dataplane, &host);
                continue;
            }
            Action::Packet { program, source, may_complain } => (*program, source, *may_complain),
        };
        let Some(frame) = frame(source, &seen) else { continue };
        let budget = budgets[usize::from(may_complain)];
        if !same(in_force, budget) {
            kernel.dataplane.set_budget(budget);
        }
        host.budget.set(budget);
        host.time.set(now());
        let outcome = kernel.dataplane.run(program, &frame);
        let kernel_did = Did { verdict: outcome.verdict, bytes: outcome.bytes };
        let taken = host::tuple(&host, &frame).and_then(|tuple| kernel.translation(&tuple));
        host.loaded_dice.set(Some(taken.map_or(0, |nat| dice(case.config, nat.to.sport.get()))));
        let place = || format!("step {}, {program} with {}", step.id, hex(&frame));
        let (host_did, reason) = host::run(&host, program, &frame).map_err(|e| format!("{}: {e}", place()))?;
        in_force = host.budget.get();
        if host_did != kernel_did {
            let said = |did: &Did| format!("verdict {} with {}", did.verdict, hex(&did.bytes));
            return Err(format!("{}\n  host ({reason:?}): {}\n  kernel: {}", place(), said(&host_did), said(&kernel_did)));
        }
        tally.packets += 1;
        *tally.verdicts.entry((program, kernel_did.verdict)).or_default() += 1;
        if kernel_did.verdict == REDIRECT && kernel_did.bytes.len() != frame.len() {
            tally.answered += 1;
        }
        let passed = if matches!(kernel_did.verdict, UNSPEC | REDIRECT) { kernel_did.bytes } else { frame.clone() };
        seen.insert(step.id, (frame, passed));
    }
    let after = counters(kernel);
    same_counters("drops", (&before.0, &after.0), (&host.drops.borrow(), &host.dropped_bytes.borrow()), &mut tally.drops)?;
    same_counters("forwards", (&before.1, &after.1), (&host.forwards.borrow(), &host.forwarded_bytes.borrow()), &mut tally.forwards)?;
    let left = kernel.left();
    same_entries(&host, &left)?;
    tally.served += left.served.values().map(|count| count.flows + count.refused).sum::<u64>();
    Ok(tally)
}

/// `None`: it is of a step that was left out.
fn frame(source: &Source, seen: &HashMap<usize, (Vec<u8>, Vec<u8>)>) -> Option<Vec<u8>> {
    let rng = |seed: &u64| SmallRng::seed_from_u64(*seed);
    Some(match source {
        Source::Made(frame) => frame.clone(),
        Source::Again(id, seed) => packets::again(&mut rng(seed), &seen.get(id)?.0),
        Source::Answer(id, seed) => packets::answer(&mut rng(seed), &seen.get(id)?.1),
        Source::Complaint(id, seed) => packets::complaint(&mut rng(seed), &seen.get(id)?.1),
    })
}

/// What makes the host begin its search for a port at the one that the kernel has found.
fn dice(config: Config, port: u16) -> u32 {
    let size = u64::from(config.nat_port_max - config.nat_port_min) + 1;
    match port.checked_sub(config.nat_port_min) {
        Some(place) if u64::from(place) < size => (u64::from(place) << 32).div_ceil(size) as u32,
        _ => 0,
    }
}

fn same_counters(
    what: &str,
    (before, after): (&[DropCount], &[DropCount]),
    (packets, bytes): (&HashMap<u32, u64>, &HashMap<u32, u64>),
    tally: &mut BTreeMap<u32, u64>,
) -> Result<(), String> {
    for (index, (before, after)) in (0..).zip(before.iter().zip(after)) {
        let kernel = (after.packets - before.packets, after.bytes - before.bytes);
        let host = (packets.get(&index).copied().unwrap_or(0), bytes.get(&index).copied().unwrap_or(0));
        if kernel != host {
            return Err(format!("{what}, entry {index}: (packets, bytes) {host:?} on the host, {kernel:?} in the kernel"));
        }
        if kernel.0 > 0 {
            *tally.entry(index).or_default() += kernel.0;
        }
    }
    Ok(())
}

fn same_entries(host: &Fake, left: &Left) -> Result<(), String> {
    same_map("FLOWS", &host.flows.borrow(), &left.flows, |flow| (flow.expires, format!("{:?}", (flow.epoch, flow.direction, flow.state))))?;
    same_map("NAT", &host.nat.borrow(), &left.nat, |nat| {
        (nat.expires, format!("{:?}", (nat.to, nat.flags, nat.state, nat.backend, nat.set)))
    })?;
    same_map("AFFINITY", &host.affinities.borrow(), &left.affinities, |affinity| (affinity.last_used, affinity.backend.to_string()))?;
    same_map("SERVICE_COUNTS", &host.served.borrow(), &left.served, |count| (0, format!("{count:?}")))?;
    same_map("FRAGMENTS", &host.fragments.borrow(), &left.fragments, |ports| (0, format!("{ports:?}")))
}

/// `read`: a time, which may differ a little, and all else.
fn same_map<K: Eq + std::hash::Hash + fmt::Debug, V>(
    name: &str,
    host: &HashMap<K, V>,
    kernel: &HashMap<K, V>,
    read: impl Fn(&V) -> (u64, String),
) -> Result<(), String> {
    for (key, value) in host {
        let (time, rest) = read(value);
        match kernel.get(key).map(&read) {
            Some((other_time, other_rest)) if rest == other_rest && time.abs_diff(other_time) < 2 * SECOND => {}
            other => return Err(format!("{name} {key:?}: {:?} on the host, {other:?} in the kernel", (time, rest))),
        }
    }
    match kernel.keys().find(|key| !host.contains_key(key)) {
        Some(key) => Err(format!("{name} {key:?}: in the kernel alone")),
        None => Ok(()),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}{}", self.config, if self.few_places { ", few places" } else { "" })?;
        for entry in &self.setup {
            writeln!(f, "  {entry:?}")?;
        }
        for Step { id, action } in &self.steps {
            match action {
                Action::Change(entry) => writeln!(f, "  step {id}: {entry:?}")?,
                Action::Packet { program, source: Source::Made(frame), may_complain } => {
                    writeln!(f, "  step {id}: {program} {} ({may_complain})", hex(frame))?;
                }
                Action::Packet { program, source, may_complain } => writeln!(f, "  step {id}: {program} {source:?} ({may_complain})")?,
            }
        }
        Ok(())
    }
}
