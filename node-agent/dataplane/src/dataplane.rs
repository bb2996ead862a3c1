//! Start, reconciliation, status: the shell around the pure parts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use xebec_ebpf_abi as abi;
use xebec_ebpf_abi::AnnouncedKey;

use crate::bpf::connections::Connections;
use crate::bpf::events::Events;
use crate::bpf::growing::Unsettled;
use crate::bpf::layout::{self, Layouts};
use crate::bpf::loader::{self, Hook, Pins, Programs};
use crate::bpf::maps;
use crate::bpf::replica::Replica;
use crate::bpf::{gc, growing, links, mount};
use crate::cni::{conflist, server};
use crate::device::announce;
use crate::device::netlink::Netlink;
use crate::device::sysctl::Sysctls;
use crate::device::xdp::Mode;
use crate::device::{pod, uplink, vxlan};
use crate::engine::Engine;
use crate::enlarge::Growth;
use crate::policy_news::{self, News};
use crate::sandbox::{Records, Sandbox};
use crate::{Config, Device, Error, HostRouting, MapFill, ProxyHealth, Status, fabric, flows, inspect, listen, metrics, selftest};

/// How soon after a round the next one may begin: a change that comes alone goes at once, a burst costs one round.
const GATHER: Duration = Duration::from_millis(5);
/// How soon a failed round is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the maps are read again and put right.
const VERIFY: Duration = Duration::from_secs(300);
/// How often it is asked whether a map of connections fills faster than it is swept.
const LOOK: Duration = Duration::from_millis(100);

/// The running dataplane of one node.
pub struct Dataplane {
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) engine: Mutex<Engine>,
    pub(crate) netlink: Netlink,
    pub(crate) records: Records,
    /// Sandboxes with a device (or a failed removal of one), by lease owner.
    pub(crate) sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    /// Addresses this node answers names at.
    pub(crate) cluster_dns: Mutex<BTreeSet<IpAddr>>,
    /// Something the maps depend on changed.
    pub(crate) changed: Notify,
    /// A node came, went or changed.
    pub(crate) nodes_changed: Notify,
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    connections: Arc<Mutex<Connections>>,
    /// The programs once more, for questions; loaded with the first.
    pub(crate) replica: Mutex<Option<(u64, Replica)>>,
    listener: Mutex<Option<UnixListener>>,
    /// What programs tell, until somebody reads it.
    events: Mutex<Option<Events>>,
    pub(crate) news: flows::News,
    layouts: Layouts,
    pins: Pins,
    /// Pod devices whose programs are of another layout until our maps are filled.
    held: Mutex<Option<Vec<(String, u32)>>>,
    /// Maps that programs of another layout may still write to, in whose place others are.
    unsettled: Mutex<Unsettled>,
    synced: watch::Sender<bool>,
    ready: watch::Sender<bool>,
    proxy_health: watch::Sender<ProxyHealth>,
}

impl Dataplane {
    /// Loads or adopts the pinned programs, maps and links, takes over the uplinks and opens the CNI socket.
    /// It does not wait for the API server: the watches start in [`Dataplane::run`].
    pub async fn start(config: Config, client: kube::Client) -> Result<Arc<Dataplane>, Error> {
        config.check()?;
        std::fs::create_dir_all(&config.state_dir).map_err(Error::io("create", &config.state_dir))?;
        forward(&Sysctls::new(&config.state_dir))?;
        let netlink = Netlink::here().map_err(Error::netlink("open a socket"))?;
        mount::ensure(&config.pin_dir, &mount_record(&config))?;
        let (pins, layouts) = (Pins::new(&config.pin_dir, config.layout.number), Layouts::new(&config.state_dir));
        let mut unsettled = growing::recover(&pins)?;
        let others_run = layouts.prepare(&config.layout, &pins)?;
        let mut sizes = config.first_entries.clone();
        if others_run {
            sizes.extend(layouts.sizes(&config.layout, &pins));
        }
        sizes.extend(config.layout.sizes.clone());
        let (programs, mut maps, connections, events) = Programs::load(pins.clone(), &sizes)?;
        let connections = Arc::new(Mutex::new(connections));
        if others_run {
            unsettled.extend(layouts.convert(&config.layout, &pins)?);
        }
        // One of the two sets of hooks serves the node's own sockets at any time: see `abi::Config`.
        let at_root = programs.is_at_root(&links::cgroup_root(&config.cgroup));
        maps.configure(facts(at_root, config.host_routing)?)?;
        let mut engine = Engine::new(&config, programs, maps, Growth::new(&config, connections.clone()))?;
        if others_run {
            engine.start_above_other_layouts();
        }

        let records = Records::new(&config.state_dir);
        let (sandboxes, pod_devices) = adopt(&mut engine, &netlink, &records).await?;
        let uplinks = first_uplinks(&config, &engine, &netlink).await?;
        engine.xdp = config.xdp;
        engine.pod_programs = config.pod_programs;
        engine.forwarding = config.forwarding;
        engine.devices = uplink::detect(&netlink, &uplinks, &config.node_ips).await.map_err(Error::netlink("read devices"))?;
        let held = match others_run {
            true => Some(pod_devices),
            false => {
                attach(&mut engine, &config, &pod_devices)?;
                layouts.activate(&config.layout)?;
                std::mem::take(&mut unsettled).settle()?;
                None
            }
        };
        let listener = listen::bind(&config.cni_socket)?;
        let dataplane = Arc::new(Dataplane {
            client,
            engine: Mutex::new(engine),
            netlink,
            records,
            sandboxes: Mutex::new(sandboxes),
            cluster_dns: Mutex::new(crate::cluster_dns::recorded(&config.state_dir)),
            changed: Notify::new(),
            nodes_changed: Notify::new(),
            locks: Mutex::new(BTreeMap::new()),
            connections,
            replica: Mutex::new(None),
            listener: Mutex::new(Some(listener)),
            events: Mutex::new(Some(events)),
            news: flows::News::default(),
            layouts,
            pins,
            held: Mutex::new(held),
            unsettled: Mutex::new(unsettled),
            synced: watch::Sender::new(false),
            ready: watch::Sender::new(false),
            proxy_health: watch::Sender::new(ProxyHealth { synced: false, settled: true, leaving: false, services: Vec::new() }),
            config,
        });
        dataplane.adopt_cluster_dns();
        Ok(dataplane)
    }

    /// Returns once pods can be set up: all watches synced, the maps written, the node's podCIDR known.
    pub async fn ready(&self) {
        // The sender lives in self, so waiting cannot fail while self is borrowed.
        let _ = self.ready.subscribe().wait_for(|r| *r).await;
    }

    /// Returns once the maps have followed the API for the first time.
    pub(crate) async fn synced(&self) {
        let _ = self.synced.subscribe().wait_for(|s| *s).await;
    }

    /// Watches and reconciles until `cancel`. Leaves everything in the kernel in place when it returns.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) -> Result<(), Error> {
        let mut tasks = tokio::task::JoinSet::new();
        crate::watch::start(&self, &cancel, &mut tasks);
        if let Some(listener) = self.listener.lock().take() {
            tasks.spawn(server::serve(self.clone(), listener, cancel.clone()));
        }
        let questions = listen::bind(&inspect::path(&self.config.cni_socket))?;
        tasks.spawn(inspect::serve(self.clone(), questions, cancel.clone()));
        if let Some(events) = self.events.lock().take() {
            tasks.spawn(flows::read(self.clone(), events, cancel.clone()));
        }
        tasks.spawn(crate::keeper::keep(self.clone(), cancel.clone()));
        let mut sweep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut verify = tokio::time::interval_at(tokio::time::Instant::now() + VERIFY, VERIFY);
        let mut settled = true;
        let mut rested = tokio::time::Instant::now();
        let mut told = self.config.node_ips.clone();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.changed.notified() => {
                    tokio::time::sleep_until(rested).await;
                    let now = self.engine.lock().told(&self.config.node_ips);
                    if now != told {
                        told = now;
                        self.nodes_changed.notify_one();
                    }
                }
                () = tokio::time::sleep(RETRY), if !settled => {}
                () = &mut sweep => {
                    tasks.spawn(self.clone().sweep());
                    let interval = self.engine.lock().sweep_interval();
                    sweep.as_mut().reset(tokio::time::Instant::now() + interval);
                    continue;
                }
                _ = look.tick() => {
                    // While they are swept, or grow, somebody else has them.
                    if self.connections.try_lock().is_some_and(|connections| connections.is_filling()) {
                        sweep.as_mut().reset(tokio::time::Instant::now());
                    }
                    continue;
                }
                Some(_) = tasks.join_next() => continue,
                _ = verify.tick() => {
                    if let Err(error) = self.engine.lock().verify() {
                        tracing::error!(%error, "the maps cannot be read");
                    }
                    give_back_memory();
                }
            }
            settled = self.round();
            rested = tokio::time::Instant::now() + GATHER;
            self.tell_health(settled);
            let news = self.policy_news();
            if !news.is_empty() {
                tasks.spawn(policy_news::tell(self.client.clone(), self.config.node_name.clone(), news));
            }
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// One reconciliation. Returns whether nothing is left to retry.
    fn round(&self) -> bool {
        let c = &self.config;
        let mut engine = self.engine.lock();
        engine.apply_node(&c.node_name, &c.node_ips, &c.pod_cidrs, &c.cluster_cidrs);
        if !engine.unsynced().is_empty() {
            return true;
        }
        let answered: BTreeSet<AnnouncedKey> = engine.state.announced().keys().copied().collect();
        let done = engine.reconcile();
        announce(&engine, &answered);
        if !engine.is_reconciled() {
            return done;
        }
        if let Err(error) = self.take_over(&mut engine) {
            tracing::error!(%error, "the programs of another version cannot be replaced yet");
            return false;
        }
        let first = !*self.synced.borrow();
        if first {
            self.synced.send_replace(true);
            self.collect();
            give_back_memory();
            tracing::info!(node = %c.node_name, "the maps follow the API");
        }
        if !*self.ready.borrow() && !engine.ipam.ranges().is_empty() {
            if engine.ipam.ranges().iter().any(|r| r.addr().is_ipv6())
                && let Err(error) = forward_v6(&Sysctls::new(&c.state_dir))
            {
                tracing::error!(%error, "IPv6 cannot be forwarded");
                return false;
            }
            if let Some(dir) = &c.cni_conf_dir
                && let Err(error) = conflist::write(dir, &c.cni_socket)
            {
                tracing::error!(%error, "the CNI configuration cannot be installed");
                return false;
            }
            self.ready.send_replace(true);
            tracing::info!(node = %c.node_name, ranges = ?engine.ipam.ranges(), "pods can be set up");
        }
        done
    }

    /// For whom load balancers ask.
    pub fn proxy_health(&self) -> watch::Receiver<ProxyHealth> {
        self.proxy_health.subscribe()
    }

    /// What is to be told about policies now. Nothing before the first full sync: it may only be unknown.
    fn policy_news(&self) -> Vec<News> {
        let mut engine = self.engine.lock();
        if !engine.is_reconciled() {
            return Vec::new();
        }
        let refused = engine.state.policies.refused();
        let services = engine.state.services.complaints();
        let over = engine.growth.over();
        engine.policy_news.take(refused, services, over)
    }

    fn tell_health(&self, settled: bool) {
        let synced = *self.synced.borrow();
        let engine = self.engine.lock();
        let services = engine.state.services.health_checks();
        let now = ProxyHealth { synced, settled, leaving: engine.node.leaving, services };
        drop(engine);
        self.proxy_health.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    /// Our maps hold what they shall: the links change from the programs of another layout to ours, each in one step.
    fn take_over(&self, engine: &mut Engine) -> Result<(), Error> {
        let mut held = self.held.lock();
        let Some(pods) = held.as_mut() else { return Ok(()) };
        {
            let sandboxes = self.sandboxes.lock();
            pods.retain(|(device, _)| sandboxes.values().any(|s| s.host_name == *device));
        }
        attach(engine, &self.config, pods).inspect_err(|_| engine.holding = true)?;
        self.layouts.activate(&self.config.layout)?;
        std::mem::take(&mut *self.unsettled.lock()).settle()?;
        tracing::info!(layout = self.config.layout.number, "programs of another layout are replaced");
        *held = None;
        Ok(())
    }

    /// After the first full sync: nothing runs on the maps of another layout any more.
    fn collect(&self) {
        for old in self.pins.other_maps() {
            if let Err(error) = layout::collect(&old) {
                tracing::warn!(path = %old.display(), %error, "maps of an older version cannot be removed");
            }
        }
    }

    /// Deletes connections that count no more. Many map reads: off the runtime's threads, outside the engine's lock.
    async fn sweep(self: Arc<Self>) {
        let Some(alive) = self.engine.lock().alive() else {
            return;
        };
        let dataplane = self.clone();
        let sweep = move || {
            let swept = gc::sweep(&mut dataplane.connections.lock(), gc::now(), &alive);
            let mut engine = dataplane.engine.lock();
            engine.set_swept(swept);
            engine.make_room_for_connections();
        };
        if let Err(error) = tokio::task::spawn_blocking(sweep).await {
            tracing::error!(%error, "the connection maps could not be swept");
        }
    }

    /// MTU of pods' devices: one for all, that of the narrowest way a packet may take.
    pub(crate) fn mtu(&self) -> u32 {
        let devices = || {
            let engine = self.engine.lock();
            let uplinks = engine.devices.mtu().unwrap_or(1500);
            let tunnel = fabric::tunnel(&self.config.routing, &engine.devices, &self.config.node_ips, uplinks);
            tunnel.map_or(uplinks, |tunnel| tunnel.mtu)
        };
        self.config.mtu.unwrap_or_else(devices)
    }

    /// Calls about one sandbox follow each other: a runtime that gave up on ADD sends DEL while it still runs.
    pub(crate) async fn sandbox_lock(&self, owner: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(owner).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(owner.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// What the dataplane holds and waits for.
    pub fn status(&self) -> Status {
        let ready = *self.ready.borrow();
        let engine = self.engine.lock();
        let mut waiting_for: Vec<String> = engine.unsynced().iter().map(|w| format!("the first list of {w:?}")).collect();
        if waiting_for.is_empty() && !engine.is_reconciled() {
            waiting_for.push("the maps to be written".into());
        }
        if engine.ipam.ranges().is_empty() {
            waiting_for.push("a podCIDR in the Node object".into());
        }
        let fill = engine.fill();
        Status {
            ready,
            waiting_for,
            devices: engine.devices.uplinks.iter().map(|(index, uplink)| device(&engine, *index, uplink)).collect(),
            node_addresses: engine.node_addresses(&self.config.node_ips).into_iter().collect(),
            forwarding: engine.state.services.forwarding(),
            pod_cidrs: engine.ipam.ranges(),
            leases: engine.ipam.leases(),
            capacity: engine.ipam.capacity(),
            endpoints: engine.state.policies.endpoints(),
            pods_by_links: engine.programs.linked_pods().len(),
            maps: fill
                .into_iter()
                .map(|(name, entries)| MapFill {
                    name: name.into(),
                    entries,
                    max_entries: engine.maps.max_entries(name),
                    limit: engine.growth.most(&engine.maps, name),
                    bytes: maps::bytes(&self.pins.maps().join(name)),
                    growths: engine.growth.done.get(name).copied().unwrap_or(0),
                })
                .collect(),
            drops: metrics::by_reason(&engine.maps.drops()),
            forwards: metrics::by_path(&engine.maps.forwards()),
            services: metrics::by_service(&engine),
            programs: engine.programs.sizes(),
            sync: engine.sync.status(Instant::now()),
            errors: {
                let refused = engine.state.policies.refused();
                let policies = refused.iter().map(policy_news::refusal);
                let services = engine.state.services.complaints().into_iter().map(|((key, _), why)| format!("Service {key}: {why}"));
                let growth = engine.growth.failed.iter().map(|(_, why)| why.clone());
                let growth = growth.chain(engine.growth.over().into_iter().map(policy_news::over));
                engine.errors.iter().chain(&engine.problems).cloned().chain(policies).chain(services).chain(growth).collect()
            },
        }
    }

    /// Registers everything of `deploy/grafana-dashboard.json`; values are read at each scrape.
    pub fn register_metrics(self: &Arc<Self>, registry: &mut prometheus_client::registry::Registry) {
        metrics::register(registry, metrics::Collector::new(self), &self.engine.lock().sync);
    }
}

fn device(engine: &Engine, index: u32, uplink: &uplink::UplinkDevice) -> Device {
    let attached = engine.programs.is_attached((&uplink.name, index), Hook::UPLINK);
    let mode = match (attached, uplink.tunnel) {
        (false, _) => "none",
        (true, true) => "tc, tunnel",
        (true, false) => "tc",
    };
    let xdp = match engine.modes.get(&index) {
        Some(Mode::Native) if engine.programs.is_xdp_attached((&uplink.name, index)) => "native".to_owned(),
        Some(Mode::Native) => "none (somebody has taken the program off; it will be put back)".to_owned(),
        Some(Mode::Tc(reason)) => format!("none ({reason})"),
        None => "none (not tried yet)".to_owned(),
    };
    Device { name: uplink.name.clone(), index, mtu: uplink.mtu, mode: mode.to_owned(), xdp }
}

/// Tells the segment of addresses that have come to this node.
fn announce(engine: &Engine, before: &BTreeSet<AnnouncedKey>) {
    for (key, now) in engine.state.announced().iter().filter(|(key, _)| !before.contains(key)) {
        let address = key.addr.to_ip();
        match announce::tell(key.ifindex, now.mac, address) {
            Ok(()) => tracing::info!(%address, ifindex = key.ifindex, "answering for a load-balancer address"),
            Err(error) => {
                tracing::warn!(%address, %error, "neighbours are not told of a load-balancer address; they find out when they ask again");
            }
        }
    }
}

/// Where a bpffs we mounted is noted.
pub(crate) fn mount_record(config: &Config) -> std::path::PathBuf {
    config.state_dir.join("bpffs.json")
}

/// Uplinks to begin with. An agent that is told no address learns it from the Node object; until then the devices that
/// carry the programs keep them.
async fn first_uplinks(config: &Config, engine: &Engine, netlink: &Netlink) -> Result<Vec<String>, Error> {
    if !config.uplinks.is_empty() || !config.node_ips.is_empty() {
        return Ok(config.uplinks.clone());
    }
    let attached = engine.programs.attached_devices(Hook::UPLINK);
    let links = netlink.links().await.map_err(Error::netlink("read devices"))?;
    Ok(links.into_iter().map(|l| l.name).filter(|name| *name != vxlan::NAME && attached.contains(&name.replace('.', "_"))).collect())
}

/// The first lists and the writes they led to, and all that maps hold, take more than anything else, in small pieces that the
/// allocator keeps.
fn give_back_memory() {
    // SAFETY: the allocator's own call; it takes the allocator's locks like any other.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the node forward between pods and uplinks.
fn forward(sysctls: &Sysctls) -> Result<(), Error> {
    sysctls.set("net/ipv4/ip_forward", "1")
}

/// The same for IPv6, once the node has a range of it. A host that forwards ignores router advertisements unless
/// told otherwise (`accept_ra` 2), and would lose its own addresses and default route.
fn forward_v6(sysctls: &Sysctls) -> Result<(), Error> {
    let conf = Path::new("/proc/sys/net/ipv6/conf");
    // Without IPv6 in the kernel there is nothing to forward.
    for entry in std::fs::read_dir(conf).into_iter().flatten().flatten() {
        let device = entry.file_name().to_string_lossy().into_owned();
        let accepts = std::fs::read_to_string(entry.path().join("accept_ra")).unwrap_or_default();
        if !matches!(device.as_str(), "all" | "lo") && !device.starts_with(pod::PREFIX) && accepts.trim() == "1" {
            sysctls.set(&format!("net/ipv6/conf/{device}/accept_ra"), "2")?;
        }
    }
    if conf.join("all/forwarding").exists() {
        sysctls.set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// What programs must know before they are attached.
fn facts(at_root: bool, host_routing: HostRouting) -> Result<abi::Config, Error> {
    let cookie = loader::netns_cookie().map_err(Error::netlink("read the cookie of the network namespace (kernel 5.14 or later)"))?;
    let (min, max) = nat_ports();
    let past_stack = match host_routing {
        HostRouting::Bpf => abi::Config::PAST_STACK,
        HostRouting::Kernel => 0,
    };
    let flags = past_stack | if at_root { abi::Config::AT_ROOT } else { 0 };
    Ok(abi::Config { node_netns_cookie: cookie, nat_port_min: min, nat_port_max: max, flags })
}

/// Ports for translated sources: above the range the node's own sockets take theirs from, else below it and
/// above the NodePorts.
fn nat_ports() -> (u16, u16) {
    const NODE_PORTS_END: u16 = 32767;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ports: Vec<u16> = text.split_whitespace().filter_map(|p| p.parse().ok()).collect();
    let default = (abi::Config::NAT_PORT_MIN, abi::Config::NAT_PORT_MAX);
    match ports[..] {
        [first, last] if last >= default.0 => match (first, last) {
            (_, last) if last < u16::MAX - 1000 => (last + 1, u16::MAX),
            (first, _) if first > NODE_PORTS_END + 1000 => (NODE_PORTS_END + 1, first - 1),
            _ => {
                tracing::warn!(
                    range = text.trim(),
                    "net.ipv4.ip_local_port_range leaves no ports for translated connections; some may collide"
                );
                default
            }
        },
        _ => default,
    }
}

/// Attaches everything and sees that sockets are seen.
fn attach(engine: &mut Engine, config: &Config, pod_devices: &[(String, u32)]) -> Result<(), Error> {
    engine.attach_all(&config.cgroup, pod_devices)?;
    let root = links::cgroup_root(&config.cgroup);
    if root != config.cgroup {
        let attached = engine.programs.attach_root_sockets(&root);
        if let Err(error) = &attached {
            tracing::warn!(%error, cgroup = %config.cgroup.display(), "Services are reached only by processes of the node below this cgroup");
        }
        engine.maps.configure(facts(attached.is_ok(), config.host_routing)?)?;
    }
    if config.verify_hooks {
        selftest::run(&mut engine.maps, &config.cgroup)?;
    }
    Ok(())
}

/// Finds the sandboxes again whose devices are alive; ends leases of those that are not, and removes devices
/// nobody has a record of (an ADD that was cut off before it began to count).
///
/// Also returns the devices.
async fn adopt(
    engine: &mut Engine,
    netlink: &Netlink,
    records: &Records,
) -> Result<(BTreeMap<String, Sandbox>, Vec<(String, u32)>), Error> {
    let (found, broken) = records.all()?;
    for path in broken {
        // Cut short when the machine went down, most likely: the sandbox is gone too.
        tracing::error!(path = %path.display(), "a sandbox record cannot be read and is removed, and so is its device");
        crate::file::remove(&path)?;
    }
    let links = netlink.links().await.map_err(Error::netlink("read devices"))?;
    let index = |name: &str| links.iter().find(|l| l.name == name).map(|l| l.index);
    let (mut alive, mut devices) = (BTreeMap::new(), Vec::new());
    for sandbox in found {
        let owner = sandbox.owner();
        let Some(index) = index(&sandbox.host_name) else {
            records.remove(&owner)?;
            continue;
        };
        devices.push((sandbox.host_name.clone(), index));
        engine.ipam.adopt(&owner, &sandbox.ips);
        engine.adopt_endpoint(sandbox.local(index));
        alive.insert(owner, sandbox);
    }
    let names: BTreeSet<&str> = alive.values().map(|s| s.host_name.as_str()).collect();
    for link in links.iter().filter(|l| l.name.starts_with(pod::PREFIX) && !names.contains(l.name.as_str())) {
        tracing::warn!(device = %link.name, "removing a pod device without a record");
        netlink.delete(link.index).await.map_err(Error::netlink(format!("delete device {}", link.name)))?;
    }
    for device in engine.programs.linked_pods().into_iter().filter(|d| !names.contains(d.as_str())) {
        engine.programs.detach_pod(&device)?;
    }
    tracing::info!(sandboxes = alive.len(), "adopted");
    Ok((alive, devices))
}
