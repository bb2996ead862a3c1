//! One state and the packets that follow each other in it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use xebec_ebpf_abi::{Addr, Config, DropCount, DropReason, forward, map, prog, proto};
use xebec_ebpf_logic::{budget::Budget, reject::may_answer, xdp::Decided};

use super::{
    entries::Entry,
    fake::Fake,
    host::{self, Did, PROGRAMS, goes_on},
    kernel::{FEW, Kernel, Left},
    packets::{self, Target},
    states::States,
    tally::{Counted, Tally},
    world::{self, NODE, bits, of},
};

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
    /// That itself: it goes on to the next program.
    Passed(usize),
    /// What an earlier step's program was given, inside a packet of another node's.
    Inside(usize, u64),
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
        let ports = *[1, 2, 8, 4536, 4536].choose(rng).expect("some");
        let config = Config {
            node_netns_cookie: 1,
            nat_port_min: 61000,
            nat_port_max: 61000 + (ports - 1),
            flags: bits(rng, Config::PAST_STACK | Config::DIRECT),
        };
        let mut states = States { rng, now: now() };
        let setup = states.all();
        let targets: Vec<_> = setup.iter().filter_map(target).collect();
        let count = states.rng.random_range(50..400);
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        for id in 0..count {
            let action =
                if states.rng.random_ratio(1, 40) { Action::Change(states.change()) } else { packet(states.rng, &steps, &targets) };
            steps.push(Step { id, action });
        }
        Case { few_places, config, setup, steps }
    }
}

/// Where an entry lets a Service be asked for, with packets of protocols that most are of.
fn target(entry: &Entry) -> Option<Target> {
    let Entry::Frontend(key, _) = entry else { return None };
    let any = key.addr == Addr::ANY || key.addr == Addr::ANY_V4;
    let at = if any { of(NODE, key.addr.is_v4()) } else { key.addr.to_ip() };
    matches!(key.proto, proto::TCP | proto::UDP).then_some((at, key.port.get(), key.proto))
}

fn packet(rng: &mut SmallRng, before: &[Step], targets: &[Target]) -> Action {
    let may_complain = !rng.random_ratio(1, 10);
    let program = *PROGRAMS.choose(rng).expect("some");
    let made = |rng: &mut SmallRng| Action::Packet { program, source: Source::Made(packets::any(rng, program, targets)), may_complain };
    if rng.random_ratio(1, 2) {
        return made(rng);
    }
    // One of the last: conversations are short.
    let Some(earlier) = before.len().checked_sub(rng.random_range(1..8)).map(|at| &before[at]) else { return made(rng) };
    let Action::Packet { program: earlier_program, .. } = &earlier.action else { return made(rng) };
    let (id, seed) = (earlier.id, rng.random());
    let (program, source) = match rng.random_range(0..11) {
        0..=2 => (*earlier_program, Source::Again(id, seed)),
        // Any program may see it next: the way a packet takes, and where its answer comes by.
        3 => (program, Source::Again(id, seed)),
        // What the driver has turned round is answered to it.
        4..=6 if *earlier_program == prog::XDP_UPLINK => (prog::XDP_UPLINK, Source::Answer(id, seed)),
        4..=7 => (program, Source::Answer(id, seed)),
        8 => (program, Source::Passed(id)),
        9 => (prog::TAKE_DIRECT, Source::Inside(id, seed)),
        // What routers say of what was sent inside another packet.
        _ if matches!(*earlier_program, prog::XDP_UPLINK | prog::FROM_UPLINK) && rng.random() => {
            (prog::TAKE_DIRECT, Source::Complaint(id, seed))
        }
        _ => (program, Source::Complaint(id, seed)),
    };
    Action::Packet { program, source, may_complain }
}

/// Budgets of ICMP errors: as many as anybody wants, and none.
fn budgets() -> [Budget; 2] {
    let mut spent = Budget::default();
    while may_answer(&mut spent, u64::MAX) {}
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
    host.loaded_dice.set(Some(kernel.dice));
    if case.few_places {
        host.flow_places.set(FEW as usize);
        host.nat_places.set(FEW as usize);
    }
    host.routes.replace(world::routes());
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
        let Some(mut frame) = frame(source, &seen) else { continue };
        packets::fill(&mut frame, program);
        let budget = budgets[usize::from(may_complain)];
        if !same(in_force, budget) {
            kernel.dataplane.set_budget(budget);
        }
        host.budget.set(budget);
        host.time.set(now());
        let outcome = kernel.run(program, &frame);
        let kernel_did = Did { verdict: outcome.verdict, bytes: outcome.bytes };
        let counted = Counted::of(&host);
        let place = || format!("step {}, {program} with {}", step.id, hex(&frame));
        let (host_did, reason) = host::run(&host, program, &frame).map_err(|e| format!("{}: {e}", place()))?;
        in_force = host.budget.get();
        if host_did != kernel_did {
            let said = |did: &Did| format!("verdict {} with {}", did.verdict, hex(&did.bytes));
            return Err(format!("{}\n  host ({reason:?}): {}\n  kernel: {}", place(), said(&host_did), said(&kernel_did)));
        }
        tally.packet(program, kernel_did.verdict, counted, Counted::of(&host));
        let passed = if goes_on(program, kernel_did.verdict) { kernel_did.bytes } else { frame.clone() };
        seen.insert(step.id, (frame, passed));
    }
    let after = counters(kernel);
    same_counters("drops", (&before.0, &after.0), (&host.drops.borrow(), &host.dropped_bytes.borrow()), &mut tally.drops)?;
    same_counters("forwards", (&before.1, &after.1), (&host.forwards.borrow(), &host.forwarded_bytes.borrow()), &mut tally.forwards)?;
    let left = kernel.left();
    same_entries(&host, &left)?;
    tally.routes = host.answers.take();
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
        Source::Passed(id) => seen.get(id)?.1.clone(),
        Source::Inside(id, seed) => packets::inside(&mut rng(seed), &seen.get(id)?.0),
    })
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
    same_map("FRAGMENTS", &host.fragments.borrow(), &left.fragments, |ports| (0, format!("{ports:?}")))?;
    same_map("DECIDED", &host.decided.borrow(), &left.decided, |decided| (decided.until, format!("{:?}", Decided { until: 0, ..*decided })))
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
