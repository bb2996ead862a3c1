//! How soon the maps follow the API when there is a lot of it, and what the agent needs for that.
//!
//! The agent is the real one, `xebec agent --dataplane-only`, in a network namespace and a cgroup of its own; the API server
//! is [`Many`]. Time ends when the entry is in the pinned map, which is when programs see it.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use nix::sched::{CloneFlags, unshare};
use xebec_ebpf_abi::{Addr, Backend, BackendSet, Config, Frontend, FrontendKey, Port, SlotKey, map, proto};
use xebec_host::cgroup::Cgroup;

use super::many::{Many, Size, cluster_ip, endpoint_ip};
use crate::bench::figures::{Goal, Line, percentile};

/// What to measure with.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    pub xebec: PathBuf,
    #[arg(long, default_value_t = 10_000)]
    pub services: usize,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 25)]
    pub endpoints: usize,
    /// Changes of one endpoint that are timed.
    #[arg(long, default_value_t = 300)]
    pub changes: usize,
}

/// How long the first list may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Prints the figures; whether every goal is met. Call it while the process has one thread: it changes its namespace.
pub fn run(args: &Args) -> Result<bool> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
    for words in
        ["link set lo up", "link add up0 type veth peer name up1", "addr add 192.0.2.1/24 dev up0", "link set up0 up", "link set up1 up"]
    {
        let status = Command::new("ip").args(words.split(' ')).status().context("cannot run ip")?;
        if !status.success() {
            bail!("`ip {words}` failed");
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let many = Many::new(Size { services: args.services, endpoints: args.endpoints });
    let address = runtime.block_on(many.serve())?;
    let agent = Agent::prepare(&args.xebec, &format!("http://{address}"))?;
    let lines = measure(args, &many, agent)?;
    lines.iter().for_each(Line::print);
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

fn measure(args: &Args, many: &Many, mut agent: Agent) -> Result<Vec<Line>> {
    let begin = Instant::now();
    agent.start()?;
    let maps = loop {
        match Maps::open(&agent.maps_dir()) {
            Ok(maps) => break maps,
            Err(error) if begin.elapsed() > PATIENCE => return Err(error),
            Err(_) => agent.pause(Duration::from_millis(5))?,
        }
    };
    let mut there = 0;
    while there < args.services {
        match maps.frontend(there)? {
            Some(_) => there += 1,
            None if begin.elapsed() > PATIENCE => bail!("after {PATIENCE:?} only {there} Services are in the maps; the log is above"),
            None => agent.pause(Duration::from_millis(2))?,
        }
    }
    let cold = begin.elapsed();
    while !many.is_watched() {
        agent.pause(Duration::from_millis(5))?;
    }
    // The start is over: what it needed only then is given back, or it is not.
    agent.pause(Duration::from_secs(3))?;
    let resident = agent.resident_mib()?;
    let size = Size { services: args.services, endpoints: args.endpoints };
    let mut seen = Vec::with_capacity(args.changes);
    for change in 0..args.changes {
        let service = change * 37 % args.services;
        let wanted = Addr::v4(endpoint_ip(size, service, 0, change + 1));
        let begin = Instant::now();
        many.change(service, change + 1);
        while !maps.serves(service, wanted)? {
            if begin.elapsed() > Duration::from_secs(20) {
                bail!("change {change} did not come to the maps");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        seen.push(begin.elapsed().as_secs_f64() * 1000.0);
        agent.pause(Duration::from_millis(15))?;
    }
    let scale = format!("{} Services, {} endpoints", args.services, args.services * args.endpoints);
    let changes = |p| percentile(&seen, p);
    Ok(vec![
        Line::single(format!("sync: cold start to last map entry, {scale}"), "s", cold.as_secs_f64(), Goal::AtMost(3.0)),
        Line::single("sync: one endpoint's change in the map, p50", "ms", changes(50.0), Goal::None),
        Line::single("sync: one endpoint's change in the map, p99", "ms", changes(99.0), Goal::AtMost(10.0)),
        Line::single(format!("sync: resident memory of the agent, {scale}"), "MiB", resident, Goal::AtMost(150.0)),
        Line::single("sync: resident memory of the agent after the changes", "MiB", agent.resident_mib()?, Goal::AtMost(150.0)),
    ])
}

/// Pinned maps, as programs see them.
struct Maps {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    sets: HashMap<MapData, u32, BackendSet>,
    slots: HashMap<MapData, SlotKey, u32>,
    backends: HashMap<MapData, u32, Backend>,
}

impl Maps {
    fn open(dir: &Path) -> Result<Maps> {
        let open = |name: &str| -> Result<Map> { Ok(Map::HashMap(MapData::from_pin(dir.join(name))?)) };
        Ok(Maps {
            frontends: open(map::FRONTENDS)?.try_into()?,
            sets: open(map::BACKEND_SETS)?.try_into()?,
            slots: open(map::BACKEND_SLOTS)?.try_into()?,
            backends: open(map::BACKENDS)?.try_into()?,
        })
    }

    fn frontend(&self, service: usize) -> Result<Option<Frontend>> {
        let key = FrontendKey::new(Addr::v4(cluster_ip(service)), Port::new(80), proto::TCP);
        found(self.frontends.get(&key, 0))
    }

    /// Whether one of the Service's backends is at the address.
    fn serves(&self, service: usize, wanted: Addr) -> Result<bool> {
        let Some(frontend) = self.frontend(service)? else { return Ok(false) };
        let Some(set) = found(self.sets.get(&frontend.internal, 0))? else { return Ok(false) };
        for slot in 0..set.count {
            if let Some(id) = found(self.slots.get(&SlotKey { set: frontend.internal, slot }, 0))?
                && let Some(backend) = found(self.backends.get(&id, 0))?
                && backend.addr == wanted
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn found<T>(result: Result<T, aya::maps::MapError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The agent and its places; dropping it takes all of it away.
struct Agent {
    xebec: PathBuf,
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    name: String,
    child: Option<Child>,
}

impl Agent {
    fn prepare(xebec: &Path, server: &str) -> Result<Agent> {
        let name = format!("/xebec-bench-sync-{}", std::process::id());
        let cgroup = Cgroup::new(&name)?;
        cgroup.create()?;
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"{server}\"}}}}]\nusers: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        );
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).context("cannot write a kubeconfig")?;
        Ok(Agent { xebec: xebec.to_owned(), dir, cgroup, name, child: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn maps_dir(&self) -> PathBuf {
        self.path("bpf").join(format!("maps-v{}", Config::LAYOUT))
    }

    fn places(&self, command: &mut Command, data_dir: &str) {
        command.args(["--dataplane-only", "--cgroup-parent", &self.name]).arg("--data-dir").arg(self.path(data_dir));
        command.arg("--run-dir").arg(self.path("run")).arg("--pin-dir").arg(self.path("bpf")).arg("--cni-conf-dir").arg(self.path("net.d"));
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.xebec);
        command.args(["agent", "--node-name", "bench", "--node-ip", "192.0.2.1", "--bind", "127.0.0.1:10256"]);
        self.places(&mut command, "data/agent");
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).env("RUST_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null());
        let procs = self.cgroup.procs_files();
        // SAFETY: only writes to files between fork and exec; the paths were made before.
        unsafe { command.pre_exec(move || procs.iter().try_for_each(|file| std::fs::write(file, "0"))) };
        self.child = Some(command.spawn().with_context(|| format!("cannot start {}", self.xebec.display()))?);
        Ok(())
    }

    /// Waits; an agent that ended meanwhile is an error.
    fn pause(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(status))) => bail!("the agent ended with {status}"),
            Some(Err(error)) => Err(error).context("the agent cannot be waited for"),
            None => bail!("the agent was not started"),
        }
    }

    fn resident_mib(&self) -> Result<f64> {
        let pid = self.child.as_ref().context("the agent runs")?.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the agent's memory")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a kernel that tells resident memory")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("a number")?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut down = Command::new(&self.xebec);
        down.arg("down");
        self.places(&mut down, "data");
        match down.arg("--cni-bin-dir").arg(self.path("bin")).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("not everything could be removed: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("{} cannot be run: {error}", self.xebec.display()),
        }
        if let Err(error) = self.cgroup.remove() {
            eprintln!("{error}");
        }
    }
}
