//! The state of a node beside its maps and programs. Everything that changes it takes the lock, changes
//! inputs, and has the difference written: by itself (CNI calls) or by the reconciler (watches).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use ipnet::IpNet;
use xebec_ebpf_abi::direct::range;
use xebec_ebpf_abi::{Announced, AnnouncedKey, inserts};

use crate::bpf::gc::{self, Alive, Swept};
use crate::bpf::loader::{Hook, Programs};
use crate::bpf::maps::Maps;
use crate::compile::announce::{self, Elections};
use crate::compile::expand::{NodeFacts, addr};
use crate::compile::input::{Forwarding, Key, NodeIn, PodIn};
use crate::compile::policies::LocalEndpoint;
use crate::compile::state::{Op, State};
use crate::config::PodPrograms;
use crate::device::uplink::NodeDevices;
use crate::device::xdp::{Mode, Refusals, Xdp};
use crate::enlarge::Growth;
use crate::ipam::Ipam;
use crate::policy_news::PolicyNews;
use crate::sync::SyncClock;
use crate::{Config, Error};

/// The watches whose first full answer everything waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    Services,
    EndpointSlices,
    Pods,
    Namespaces,
    NetworkPolicies,
    ClusterNetworkPolicies,
    Nodes,
}

impl Watch {
    const ALL: [Watch; 7] = [
        Watch::Services,
        Watch::EndpointSlices,
        Watch::Pods,
        Watch::Namespaces,
        Watch::NetworkPolicies,
        Watch::ClusterNetworkPolicies,
        Watch::Nodes,
    ];

    /// A custom resource may not be defined, which is the same as having no objects.
    pub fn may_be_undefined(self) -> bool {
        self == Watch::ClusterNetworkPolicies
    }
}

/// Inputs, tables, maps, programs, leases.
pub struct Engine {
    /// Of the Node object.
    name: String,
    /// Inputs and desired contents.
    pub state: State,
    /// Handles of the maps.
    pub maps: Maps,
    /// Programs to attach.
    pub programs: Programs,
    /// How large maps may become, and what has become of them.
    pub growth: Growth,
    /// Addresses.
    pub ipam: Ipam,
    /// Last given endpoint number.
    pub last_endpoint: u32,
    /// Where XDP is used.
    pub xdp: Xdp,
    /// How pods' devices get their programs.
    pub pod_programs: PodPrograms,
    /// How packets from outside get to pods of other nodes, unless a Service says otherwise.
    pub forwarding: Forwarding,
    /// What is done at each uplink.
    pub modes: BTreeMap<u32, Mode>,
    refusals: Refusals,
    /// Devices as last read.
    pub devices: NodeDevices,
    /// The node's object as last seen.
    pub node: NodeIn,
    /// The other nodes.
    pub peers: BTreeMap<String, NodeIn>,
    /// What of the node's devices, routes and settings could not be put right.
    pub problems: Vec<String>,
    /// What authors of policies shall know.
    pub policy_news: PolicyNews,
    /// What the last sweep left.
    pub swept: Swept,
    /// `resourceVersion` of the objects decisions are explained by.
    pub versions: BTreeMap<(Watch, Key), Box<str>>,
    /// How far the maps are behind the API.
    pub sync: SyncClock,
    /// What failed at the last round, by the first failures.
    pub errors: Vec<String>,
    /// Programs of another layout run, with maps of their own: nothing is attached before ours are filled.
    pub holding: bool,
    synced: BTreeSet<Watch>,
    reconciled: bool,
    elections: Elections,
    /// Since they were last applied.
    peers_changed: bool,
    /// Since connections' shortcuts were last ended.
    endpoints_changed: bool,
    applied_ranges: Vec<IpNet>,
    applied_addresses: Vec<IpAddr>,
}

/// What became of the writes of a round.
#[derive(Default)]
struct Round {
    written: usize,
    failures: usize,
    /// The first.
    errors: Vec<String>,
    /// Sets of which a write has failed.
    failed_sets: BTreeSet<u32>,
}

impl Engine {
    /// With what the maps hold as the actual side.
    pub fn new(config: &Config, programs: Programs, mut maps: Maps, growth: Growth) -> Result<Engine, Error> {
        let mut state = State::new(&config.node_name);
        state.services.ring_size = config.maglev_size;
        let found = maps.read()?;
        // A number that is given out again must not come with the counts of the Service that had it.
        let alive: BTreeSet<u32> = found.frontends.values().map(|f| f.service).collect();
        maps.keep_service_counts(|id| alive.contains(&id));
        let last_endpoint = found.endpoints.values().map(|e| e.id).max().unwrap_or(0);
        state.load(found);
        let mut engine = Engine {
            name: config.node_name.clone(),
            state,
            maps,
            programs,
            growth,
            ipam: Ipam::default(),
            last_endpoint,
            xdp: Xdp::default(),
            pod_programs: PodPrograms::default(),
            forwarding: Forwarding::default(),
            modes: BTreeMap::new(),
            refusals: Refusals::default(),
            devices: NodeDevices::default(),
            node: NodeIn::default(),
            peers: BTreeMap::new(),
            problems: Vec::new(),
            policy_news: PolicyNews::default(),
            swept: Swept::default(),
            versions: BTreeMap::new(),
            sync: SyncClock::default(),
            errors: Vec::new(),
            holding: false,
            synced: BTreeSet::new(),
            reconciled: false,
            elections: Elections::default(),
            peers_changed: true,
            endpoints_changed: true,
            applied_ranges: Vec::new(),
            applied_addresses: Vec::new(),
        };
        engine.tell_room();
        Ok(engine)
    }

    /// A node as watched; none when it is gone.
    pub fn set_node(&mut self, name: String, node: Option<NodeIn>) {
        match node {
            Some(node) if name == self.name => self.node = node,
            // Our own that was deleted is made again by the agent; until then the last one stands.
            None if name == self.name => {}
            Some(node) => self.peers_changed |= self.peers.insert(name, node.clone()) != Some(node),
            None => self.peers_changed |= self.peers.remove(&name).is_some(),
        }
    }

    /// What is wrong with a pod of this node is told here; other nodes tell of theirs.
    pub fn tell_of_pod(&mut self, key: &Key, pod: Option<&PodIn>) {
        self.policy_news.seen_pod(key, pod.filter(|p| p.node == self.name));
    }

    /// Names of the other nodes, for a full replacement.
    pub fn peer_keys(&self) -> Vec<Key> {
        self.peers.keys().map(|name| Key::new("", name)).collect()
    }

    /// A watch has given its first full answer.
    pub fn mark_synced(&mut self, watch: Watch) {
        self.synced.insert(watch);
    }

    /// An object of a watch was seen (with its version) or is gone.
    pub fn set_version(&mut self, watch: Watch, key: &Key, version: Option<String>) {
        // The others are many, change often and decide nothing by themselves.
        if !matches!(watch, Watch::Services | Watch::EndpointSlices | Watch::NetworkPolicies | Watch::ClusterNetworkPolicies) {
            return;
        }
        match version {
            Some(version) => self.versions.insert((watch, key.clone()), version.into()),
            None => self.versions.remove(&(watch, key.clone())),
        };
    }

    /// Watches still without an answer.
    pub fn unsynced(&self) -> Vec<Watch> {
        Watch::ALL.into_iter().filter(|w| !self.synced.contains(w)).collect()
    }

    /// Before the first endpoint: programs of another layout run, and what they judged must not count here.
    pub fn start_above_other_layouts(&mut self) {
        self.holding = true;
        self.state.policies.first_epoch(rand::random::<u32>() | 1);
    }

    /// The maps hold the desired state, or did once and failures are being retried.
    pub fn is_reconciled(&self) -> bool {
        self.reconciled
    }

    /// A number no endpoint had since the agent started.
    pub fn next_endpoint(&mut self) -> u32 {
        self.last_endpoint = self.last_endpoint.wrapping_add(1).max(1);
        self.last_endpoint
    }

    /// Addresses the node was told: given ones, else those of its object.
    pub fn told(&self, given: &[IpAddr]) -> Vec<IpAddr> {
        if given.is_empty() { self.node.addresses.iter().copied().collect() } else { given.to_vec() }
    }

    /// Node addresses: of its devices, and those it was told.
    pub fn node_addresses(&self, given: &[IpAddr]) -> BTreeSet<IpAddr> {
        self.devices.addresses.iter().copied().chain(self.told(given)).filter(|ip| !ip.is_loopback()).collect()
    }

    /// Puts together what depends on the node: its object, its devices, the configuration.
    pub fn apply_node(&mut self, name: &str, given: &[IpAddr], pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) {
        let ranges: Vec<IpNet> = if pod_cidrs.is_empty() { self.node.pod_cidrs.clone() } else { pod_cidrs.to_vec() };
        // A Node object that lost its ranges (or is gone) leaves pods where they are.
        if !ranges.is_empty() {
            self.ipam.set_ranges(&ranges);
        }
        // Nodes are many and change seldom: what follows from them is not put together for every endpoint that comes or goes.
        let ranges = self.ipam.ranges();
        let told = self.told(given);
        if std::mem::take(&mut self.peers_changed) || self.applied_ranges != ranges || self.applied_addresses != told {
            let peers = self.peers.values();
            let remote: BTreeSet<IpAddr> = peers.clone().flat_map(|peer| &peer.addresses).copied().collect();
            // Whatever belongs to the cluster sees pods' own addresses.
            let pods = ranges.iter().chain(peers.flat_map(|peer| &peer.pod_cidrs)).map(|range| (range.trunc(), range::PODS));
            let nodes = remote.iter().chain(&told).map(|ip| (IpNet::from(*ip), range::NODE));
            let mut inside: BTreeMap<IpNet, u32> = cluster_cidrs.iter().map(|range| (range.trunc(), range::INSIDE)).collect();
            for (net, whose) in pods.chain(nodes) {
                *inside.entry(net).or_default() |= range::INSIDE | whose;
            }
            self.state.policies.set_remote_nodes(remote);
            self.state.set_no_masquerade(&inside);
            self.applied_ranges = ranges;
            self.applied_addresses = told;
        }
        self.state.set_uplinks(self.devices.uplinks.iter().map(|(i, u)| (*i, u.entry)).collect());
        self.apply_announced();
        let addresses = self.node_addresses(given);
        self.state.set_node(NodeFacts { name: name.to_owned(), zone: self.node.zone.clone(), addresses, forwarding: self.forwarding });
    }

    fn apply_announced(&mut self) {
        let announcements = self.state.services.announcements();
        let won = match announcements.is_empty() {
            true => Vec::new(),
            false => {
                let mut nodes: BTreeMap<String, bool> = self.peers.iter().map(|(name, peer)| (name.clone(), peer.balances)).collect();
                nodes.insert(self.name.clone(), self.node.balances);
                let of_peers = self.peers.values().flat_map(|peer| &peer.addresses);
                let of_nodes = of_peers.chain(&self.devices.addresses).copied().collect();
                announce::without(self.elections.won_by(&self.name, nodes, announcements), &of_nodes)
            }
        };
        let devices = || self.devices.uplinks.iter().filter_map(|(index, uplink)| Some((*index, uplink.mac?)));
        let on = |ip: IpAddr| devices().map(move |(ifindex, mac)| (AnnouncedKey { addr: addr(ip), ifindex }, Announced::new(mac)));
        let entries = won.into_iter().flat_map(on).collect();
        self.state.set_announced(entries);
    }

    /// Writes the difference between desired and actual contents. Before the first full sync it does nothing:
    /// what is missing from the desired side may only be unknown. Returns whether everything was written.
    pub fn reconcile(&mut self) -> bool {
        if !self.unsynced().is_empty() {
            return false;
        }
        self.state.services.now = gc::now();
        let mut round = Round::default();
        self.make_room();
        // Before the flags that say so: a limit that nobody asks for costs nothing.
        if let Err(error) = self.maps.limits.set(&self.state.policies.limits()) {
            round.failures += 1;
            round.errors.push(error.to_string());
        }
        // What other nodes send is taken before this one sends so itself. Only a start ends it: flows of a Service that was
        // reached directly go on.
        let (due, first) = (self.state.services.takes_direct(), !self.reconciled);
        if (due || first)
            && let Err(error) = self.maps.take_direct(due)
        {
            round.failures += 1;
            round.errors.push(error.to_string());
        }
        loop {
            let ops = self.state.plan();
            self.make_room();
            self.write(&ops, &mut round);
            if !self.state.is_behind() {
                break;
            }
        }
        // Also when another write has failed: what is written counts.
        if self.endpoints_changed {
            match self.maps.end_shortcuts() {
                Ok(()) => self.endpoints_changed = false,
                Err(error) => {
                    round.failures += 1;
                    round.errors.push(error.to_string());
                }
            }
        }
        self.state.settle();
        let Round { written, failures, mut errors, .. } = round;
        if failures > errors.len() {
            errors.push(format!("and {} more writes", failures - errors.len()));
        }
        if written + failures > 0 {
            tracing::debug!(written, failures, "maps reconciled");
        }
        self.sync.round(Instant::now(), written, failures);
        if errors != self.errors {
            for error in &errors {
                tracing::error!(%error, "a map write failed and will be tried again");
            }
        }
        self.errors = errors;
        self.reconciled |= self.errors.is_empty();
        self.errors.is_empty()
    }

    fn write(&mut self, ops: &[Op], round: &mut Round) {
        let mut rest = ops;
        while let Some(op) = rest.first() {
            // A set's count must not grow over a slot that could not be written.
            let failed = |op: &Op| op.set().is_some_and(|set| round.failed_sets.contains(&set));
            if failed(op) {
                rest = &rest[1..];
                continue;
            }
            let batch = if round.failed_sets.is_empty() { rest } else { rest.split(failed).next().unwrap_or_default() };
            let done = match self.maps.apply_together(batch) {
                0 => match self.maps.apply(op) {
                    Ok(()) => 1,
                    Err(error) => {
                        round.failed_sets.extend(op.set());
                        round.failures += 1;
                        if round.errors.len() < 5 {
                            round.errors.push(error.to_string());
                        }
                        rest = &rest[1..];
                        continue;
                    }
                },
                done => done,
            };
            rest[..done].iter().for_each(|op| self.state.written(op));
            self.endpoints_changed |= rest[..done].iter().any(|op| matches!(op, Op::Endpoint(..)));
            round.written += done;
            rest = &rest[done..];
        }
    }

    /// Reads the maps again: what someone else changed is put right with the next round.
    pub fn verify(&mut self) -> Result<(), Error> {
        let found = self.maps.read()?;
        self.state.load(found);
        Ok(())
    }

    /// Whether a pod's device has its programs; while those of another layout run, what there is has to do.
    pub fn runs_at_pod(&self, device: (&str, u32)) -> bool {
        self.holding || self.programs.is_pod_attached(device)
    }

    /// Puts the programs at a pod's device.
    pub fn attach_pod(&mut self, device: (&str, u32)) -> Result<(), Error> {
        self.programs.attach_pod(device, self.pod_programs)
    }

    /// Sets an endpoint up: programs on its device, policy and identity in force.
    pub fn put_endpoint(&mut self, device: &str, endpoint: LocalEndpoint) -> Result<(), Error> {
        let (id, ifindex) = (endpoint.id, endpoint.ifindex);
        self.attach_pod((device, ifindex))?;
        self.set_host_ports(&endpoint, true);
        self.state.policies.set_endpoint(endpoint);
        self.reconcile();
        if self.state.policies.is_in_force(id) {
            return Ok(());
        }
        let reason = self.errors.first().cloned().unwrap_or_else(|| "the API has not been read yet".into());
        Err(Error::Map { what: format!("put endpoint {id} in force"), reason })
    }

    /// An endpoint found at start.
    pub fn adopt_endpoint(&mut self, endpoint: LocalEndpoint) {
        self.last_endpoint = self.last_endpoint.max(endpoint.id);
        self.set_host_ports(&endpoint, true);
        self.state.policies.set_endpoint(endpoint);
    }

    /// Ends an endpoint.
    pub fn remove_endpoint(&mut self, endpoint: &LocalEndpoint) {
        self.set_host_ports(endpoint, false);
        self.state.policies.remove_endpoint(endpoint.id);
        self.reconcile();
    }

    fn set_host_ports(&mut self, endpoint: &LocalEndpoint, present: bool) {
        let ports = if present { endpoint.last_seen.host_ports.clone() } else { Vec::new() };
        self.state.services.set_host_ports(endpoint.id, ports, endpoint.ips.clone());
    }

    /// Whether every uplink has its programs: somebody may have taken them off, which the kernel tells nobody.
    pub fn uplinks_attached(&self) -> bool {
        self.devices.uplinks.iter().all(|(index, uplink)| {
            let device = (uplink.name.as_str(), *index);
            let driver = self.modes.get(index) != Some(&Mode::Native) || self.programs.is_xdp_attached(device);
            driver && self.programs.is_attached(device, Hook::UPLINK)
        })
    }

    /// Whether it is time to ask a driver again that refused the XDP program.
    pub fn is_driver_due(&self) -> bool {
        self.refusals.is_due(Instant::now())
    }

    /// Whether the driver of an uplink runs the XDP program.
    pub fn has_driver(&self, name: &str) -> bool {
        let native = |index: &u32| self.modes.get(index) == Some(&Mode::Native);
        self.devices.uplinks.iter().any(|(index, uplink)| uplink.name == name && native(index))
    }

    /// Attaches the XDP program to the drivers that run it; says of each uplink what came of it. Another program there, or a
    /// driver without XDP, is no failure: tc does all of it.
    fn attach_drivers(&mut self) -> Result<(), Error> {
        let (mut modes, mut macs, mut refused_now) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for (index, uplink) in &self.devices.uplinks {
            let refused = self.xdp.refuses(&uplink.name, uplink.mac.is_some(), uplink.tunnel);
            let mode = match (refused, uplink.mac) {
                (None, Some(mac)) => match self.programs.attach_xdp((&uplink.name, *index)) {
                    Ok(()) => {
                        macs.insert(*index, mac);
                        Mode::Native
                    }
                    Err(error) => {
                        self.refusals.refused(*index, Instant::now());
                        refused_now.insert(*index);
                        Mode::Tc(error.to_string())
                    }
                },
                (refused, _) => Mode::Tc(refused.unwrap_or_default()),
            };
            if self.modes.get(index) != Some(&mode) {
                tracing::info!(device = %uplink.name, ?mode, "an uplink's packets are taken");
            }
            modes.insert(*index, mode);
        }
        self.modes = modes;
        self.refusals.retain(|index| refused_now.contains(&index));
        self.maps.set_xdp_devices(&macs)?;
        let native = self.devices.uplinks.iter().filter(|(index, _)| macs.contains_key(index));
        self.programs.retain_xdp(&native.map(|(_, uplink)| uplink.name.clone()).collect())
    }

    /// Attaches everything: socket hooks, uplinks, the devices of pods. Links that run programs already change to these.
    pub fn attach_all(&mut self, cgroup: &Path, pods: &[(String, u32)]) -> Result<(), Error> {
        self.holding = false;
        for (device, index) in pods {
            self.attach_pod((device, *index))?;
        }
        self.programs.attach_sockets(cgroup)?;
        self.attach_uplinks().into_iter().next().map_or(Ok(()), Err)
    }

    /// Attaches the uplink programs where they are due and removes them where they are not.
    pub fn attach_uplinks(&mut self) -> Vec<Error> {
        if self.holding {
            return Vec::new();
        }
        // tc's entries for the halves of what drivers pass come from tc: it is there first.
        let mut errors = self.attach_classifiers();
        errors.extend(self.attach_drivers().err());
        errors
    }

    fn attach_classifiers(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        for (index, uplink) in &self.devices.uplinks {
            if let Err(e) = self.programs.attach_device((&uplink.name, *index), Hook::UPLINK) {
                errors.push(e);
            }
        }
        let names: BTreeSet<String> = self.devices.uplinks.values().map(|u| u.name.replace('.', "_")).collect();
        for gone in self.programs.attached_devices(Hook::UPLINK).into_iter().filter(|n| !names.contains(n)) {
            if let Err(e) = self.programs.detach_device(&gone, Hook::UPLINK) {
                errors.push(e);
            }
        }
        errors
    }

    /// What connections may belong to; none before the full sync, when it may only be unknown.
    pub fn alive(&self) -> Option<Alive> {
        let alive = || Alive { endpoints: self.state.policies.endpoint_ids(), affinities: self.state.services.affinities() };
        self.unsynced().is_empty().then(alive)
    }

    /// After a sweep. Counts of Services that are gone go too.
    pub fn set_swept(&mut self, mut swept: Swept) {
        let Engine { maps, state, .. } = self;
        let counts = maps.keep_service_counts(|id| state.services.is_number(id));
        swept.live.insert(xebec_ebpf_abi::map::SERVICE_COUNTS, counts);
        self.swept = swept;
    }

    /// When connections are to be swept again.
    pub fn sweep_interval(&self) -> std::time::Duration {
        if !self.is_reconciled() {
            // What there is is not known yet.
            return std::time::Duration::from_secs(1);
        }
        let fill = |name: &str| (self.swept.live.get(name).copied().unwrap_or(0), self.maps.max_entries(name));
        gc::interval(inserts::MAPS.map(fill))
    }

    /// Entries of each map that can fill; of those that programs write, as the last sweep has found them.
    pub fn fill(&self) -> BTreeMap<&'static str, u64> {
        use xebec_ebpf_abi::map;
        let mut fill = self.state.fill();
        // Before the first sweep nothing has been counted.
        fill.extend(inserts::MAPS.into_iter().chain([map::FRAGMENTS, map::SERVICE_COUNTS]).map(|name| (name, 0)));
        fill.extend(&self.swept.live);
        fill.insert(map::LIMITS, self.maps.limits.entries());
        fill.insert(map::XDP_DEVICES, self.modes.values().filter(|mode| **mode == Mode::Native).count() as u64);
        fill
    }
}
