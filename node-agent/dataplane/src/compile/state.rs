//! All inputs and all tables of a node, and the writes that lead from what the maps hold to what they shall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xebec_ebpf_abi::{
    Addr, Announced, AnnouncedKey, Backend, BackendSet, Endpoint, Frontend, FrontendKey, MemberKey, NodeAddr, PolicyKey, PolicyVerdict,
    Remote, Rings, SlotKey, SourceRangeKey, Uplink,
};

use super::expand::{NodeFacts, addr};
use super::policies::Policies;
use super::rings;
use super::services::{Services, room};
use super::sets::{Set, SetStep};
use crate::table::{Have, Table};

/// One write to one map. LPM keys come as prefix length and key. None deletes.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the map of the same name")]
pub enum Op {
    Frontend(FrontendKey, Option<Frontend>),
    Set(u32, Option<BackendSet>),
    Slot(SlotKey, Option<u32>),
    Member(MemberKey, Option<u32>),
    Backend(u32, Option<Backend>),
    Rings(u32, Option<Rings>),
    /// All places of a ring.
    Ring(u32, Option<rings::Contents>),
    SourceRange((u32, SourceRangeKey), Option<u32>),
    NodeAddr(Addr, Option<NodeAddr>),
    Endpoint(Addr, Option<Endpoint>),
    Ipcache((u32, Addr), Option<Remote>),
    Policy((u32, PolicyKey), Option<PolicyVerdict>),
    Uplink(u32, Option<Uplink>),
    Announced(AnnouncedKey, Option<Announced>),
    NoMasquerade((u32, Addr), Option<u32>),
}

impl Op {
    /// The backend set it writes a part of.
    pub fn set(&self) -> Option<u32> {
        match self {
            Op::Set(id, _) => Some(*id),
            Op::Slot(key, _) => Some(key.set),
            Op::Member(key, _) => Some(key.set),
            _ => None,
        }
    }
}

/// Contents of all maps user space writes, as read from the kernel.
#[derive(Default)]
#[expect(missing_docs, reason = "each field is the map of the same name")]
pub struct Contents {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    pub sets: BTreeMap<u32, Set>,
    pub backends: BTreeMap<u32, Backend>,
    pub rings: BTreeMap<u32, Rings>,
    pub ring_places: BTreeMap<u32, rings::Contents>,
    pub source_ranges: BTreeMap<(u32, SourceRangeKey), u32>,
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    pub endpoints: BTreeMap<Addr, Endpoint>,
    pub ipcache: BTreeMap<(u32, Addr), Remote>,
    pub policy: BTreeMap<(u32, PolicyKey), PolicyVerdict>,
    pub uplinks: BTreeMap<u32, Uplink>,
    pub announced: BTreeMap<AnnouncedKey, Announced>,
    pub no_masquerade: BTreeMap<(u32, Addr), u32>,
}

/// Inputs, compilers and tables.
#[derive(Default)]
pub struct State {
    /// Services, EndpointSlices, host ports.
    pub services: Services,
    /// Pods, namespaces, policies, local endpoints.
    pub policies: Policies,
    node_addrs: Table<Addr, NodeAddr>,
    uplinks: Table<u32, Uplink>,
    announced: Table<AnnouncedKey, Announced>,
    no_masquerade: Table<(u32, Addr), u32>,
    /// Sets of which writes have succeeded since the last [`State::settle`], as the kernel has them now.
    touched: BTreeMap<u32, Set>,
}

impl State {
    /// For a node.
    pub fn new(node_name: &str) -> State {
        State { policies: Policies::new(node_name), ..State::default() }
    }

    /// Takes what the maps hold as the actual side.
    pub fn load(&mut self, found: Contents) {
        self.touched.clear();
        let s = &mut self.services.tables;
        s.frontends.load(found.frontends);
        s.sets.load(found.sets);
        s.backends.load(found.backends);
        s.source_ranges.load(found.source_ranges);
        s.rings.sets.load(found.rings);
        s.rings.rings.load(found.ring_places);
        s.rings.adopt_loaded();
        self.services.adopt_loaded();
        let p = &mut self.policies.tables;
        p.endpoints.load(found.endpoints);
        p.ipcache.load(found.ipcache);
        p.policy.load(found.policy);
        self.policies.adopt_loaded();
        self.node_addrs.load(found.node_addrs);
        self.uplinks.load(found.uplinks);
        self.announced.load(found.announced);
        self.no_masquerade.load(found.no_masquerade);
    }

    /// Name, zone and addresses of the node.
    pub fn set_node(&mut self, node: NodeFacts) {
        let served = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        let flags = |ip: &IpAddr| if served(ip) { NodeAddr::NODEPORT } else { 0 };
        self.node_addrs.replace(node.addresses.iter().map(|ip| (addr(*ip), NodeAddr { flags: flags(ip) })).collect());
        self.policies.set_node_addresses(node.addresses.clone());
        self.services.set_node(node);
    }

    /// Devices towards other machines, and what packets leaving there get.
    pub fn set_uplinks(&mut self, uplinks: BTreeMap<u32, Uplink>) {
        self.uplinks.replace(uplinks);
    }

    /// Load-balancer addresses this node answers for.
    pub fn set_announced(&mut self, announced: BTreeMap<AnnouncedKey, Announced>) {
        self.announced.replace(announced);
    }

    /// Those that the maps answer for.
    pub fn announced(&self) -> Have<'_, AnnouncedKey, Announced> {
        self.announced.have()
    }

    /// Destinations that see pods' own addresses.
    ///
    /// With each range, bits of [`range`](xebec_ebpf_abi::direct::range): whose addresses it holds.
    pub fn set_no_masquerade(&mut self, nets: &BTreeMap<IpNet, u32>) {
        let key = |net: &IpNet| (addr(net.network()).prefix_len(net.prefix_len()), addr(net.network()));
        self.no_masquerade.replace(nets.iter().map(|(n, whose)| (key(n), *whose)).collect());
    }

    /// How many entries the kernel is known to hold in each map.
    pub fn fill(&self) -> BTreeMap<&'static str, u64> {
        use xebec_ebpf_abi::map;
        let (s, p) = (&self.services.tables, &self.policies.tables);
        let sets = s.sets.have().values();
        BTreeMap::from([
            (map::FRONTENDS, s.frontends.have().len() as u64),
            (map::BACKEND_SETS, s.sets.have().len() as u64),
            (map::BACKEND_SLOTS, sets.clone().map(|s| s.slots.len() as u64).sum()),
            (map::SET_MEMBERS, sets.map(|s| s.members.len() as u64).sum()),
            (map::BACKENDS, s.backends.have().len() as u64),
            (map::RINGS, s.rings.sets.have().len() as u64),
            (map::RING_PLACES, s.rings.rings.have().values().map(|c| u64::from(c.parts)).sum()),
            (map::SOURCE_RANGES, s.source_ranges.have().len() as u64),
            (map::NODE_ADDRS, self.node_addrs.have().len() as u64),
            (map::ENDPOINTS, p.endpoints.have().len() as u64),
            (map::IPCACHE, p.ipcache.have().len() as u64),
            (map::POLICY, p.policy.have().len() as u64),
            (map::UPLINKS, self.uplinks.have().len() as u64),
            (map::ANNOUNCED, self.announced.have().len() as u64),
            (map::NO_MASQUERADE, self.no_masquerade.have().len() as u64),
        ])
    }

    /// Entries that each map has to take while what is planned is written: what it shall hold and, until that is deleted, what it
    /// holds. Cost follows what is to be written.
    pub fn needs(&self) -> BTreeMap<&'static str, u64> {
        use xebec_ebpf_abi::map;
        let (s, p) = (&self.services.tables, &self.policies.tables);
        let (mut slots, mut members) = (self.services.slots(), self.services.members());
        for (have, want) in s.sets.leaving() {
            slots += have.slots.len().saturating_sub(want.map_or(0, |w| w.slots.len()));
            members += have.members.keys().filter(|key| !want.is_some_and(|w| w.members.contains_key(key))).count();
        }
        let highest = s.backends.want().keys().next_back().map_or(0, |id| u64::from(*id) + 1);
        let needs = [
            (map::FRONTENDS, s.frontends.peak()),
            (map::BACKEND_SETS, s.sets.peak()),
            (map::BACKEND_SLOTS, slots),
            (map::SET_MEMBERS, members),
            (map::BACKENDS, s.backends.peak()),
            (map::RINGS, s.rings.sets.peak()),
            (map::SOURCE_RANGES, s.source_ranges.peak()),
            (map::NODE_ADDRS, self.node_addrs.peak()),
            (map::ENDPOINTS, p.endpoints.peak()),
            (map::IPCACHE, p.ipcache.peak()),
            (map::POLICY, p.policy.peak()),
            (map::UPLINKS, self.uplinks.peak()),
            (map::ANNOUNCED, self.announced.peak()),
            (map::NO_MASQUERADE, self.no_masquerade.peak()),
        ];
        let mut needs: BTreeMap<&str, u64> = needs.into_iter().map(|(name, entries)| (name, entries as u64)).collect();
        needs.insert(map::RING_PLACES, s.rings.peak());
        // An array, by the numbers of backends.
        needs.insert(map::CONNECTIONS, highest);
        needs.insert(map::LIMITS, self.policies.limits().len() as u64);
        // And counts of Services that have gone since the last sweep.
        let counted = self.services.numbers_of_services() as u64;
        needs.insert(map::SERVICE_COUNTS, counted + counted / 4);
        needs
    }

    /// Entries of the maps of Services when all that is known of is compiled, as far as can be told before.
    pub fn expected(&self) -> BTreeMap<&'static str, u64> {
        let mut expected: BTreeMap<&str, u64> =
            room::MAPS.into_iter().zip(self.services.expected()).map(|(name, entries)| (name, entries as u64)).collect();
        expected.insert(xebec_ebpf_abi::map::CONNECTIONS, self.services.numbers_of_backends());
        expected
    }

    /// Whether [`State::plan`] has left Services for the next call.
    pub fn is_behind(&self) -> bool {
        self.services.is_behind()
    }

    /// The writes that are due, in an order safe for readers (see the ABI's crate documentation). Of many Services it takes
    /// some at a time, so that what is not yet written never piles up; nothing of Services is deleted before the last of
    /// them: what one of them wants may be there already.
    pub fn plan(&mut self) -> Vec<Op> {
        self.settle();
        self.services.compile();
        self.policies.compile();
        let mut ops = Vec::new();
        let (uplinks, gone_uplinks) = self.uplinks.changes();
        let (no_masquerade, gone_no_masquerade) = self.no_masquerade.changes();
        ops.extend(no_masquerade.into_iter().map(|(k, v)| Op::NoMasquerade(k, Some(v))));
        ops.extend(uplinks.into_iter().map(|(k, v)| Op::Uplink(k, Some(v))));
        ops.extend(gone_uplinks.into_iter().map(|k| Op::Uplink(k, None)));
        ops.extend(gone_no_masquerade.into_iter().map(|k| Op::NoMasquerade(k, None)));
        self.plan_policies(&mut ops);
        let (addrs, gone_addrs) = self.node_addrs.changes();
        ops.extend(addrs.into_iter().map(|(k, v)| Op::NodeAddr(k, Some(v))));
        ops.extend(gone_addrs.into_iter().map(|k| Op::NodeAddr(k, None)));
        self.plan_services(&mut ops);
        // Who is asked for a Service's address must be able to serve it.
        let (announced, gone_announced) = self.announced.changes();
        ops.extend(announced.into_iter().map(|(k, v)| Op::Announced(k, Some(v))));
        ops.extend(gone_announced.into_iter().map(|k| Op::Announced(k, None)));
        ops
    }

    /// Verdicts before the identities that lead to them and before the flags that ask for them; what is no
    /// longer allowed goes after, and only then are established flows judged again.
    fn plan_policies(&mut self, ops: &mut Vec<Op>) {
        let tables = &self.policies.tables;
        let (verdicts, gone_verdicts) = tables.policy.changes();
        let (identities, gone_identities) = tables.ipcache.changes();
        let (endpoints, gone_endpoints) = tables.endpoints.changes();
        let mut again: BTreeSet<u32> = BTreeSet::new();
        again.extend(verdicts.iter().map(|((_, k), _)| k.endpoint()));
        again.extend(gone_verdicts.iter().map(|(_, k)| k.endpoint()));
        for (key, now) in &endpoints {
            if tables.endpoints.have().get(key).is_some_and(|e| e.id == now.id && e.flags != now.flags) {
                again.insert(now.id);
            }
        }
        let renamed = identities.iter().any(|(k, _)| tables.ipcache.have().contains_key(k)) || !gone_identities.is_empty();
        // Narrow ones first: a wide deny must not be there before what it leaves allowed.
        ops.extend(verdicts.into_iter().rev().map(|(k, v)| Op::Policy(k, Some(v))));
        ops.extend(identities.into_iter().map(|(k, v)| Op::Ipcache(k, Some(v))));
        ops.extend(gone_identities.into_iter().map(|k| Op::Ipcache(k, None)));
        ops.extend(endpoints.into_iter().map(|(k, v)| Op::Endpoint(k, Some(v))));
        ops.extend(gone_endpoints.into_iter().map(|k| Op::Endpoint(k, None)));
        ops.extend(gone_verdicts.into_iter().map(|k| Op::Policy(k, None)));
        // A change of one endpoint must not cost a look at all of them.
        let judged: BTreeSet<u32> = match renamed {
            true => self.policies.endpoint_ids().into_iter().filter(|id| self.policies.is_known(*id)).collect(),
            false => again.into_iter().filter(|id| self.policies.is_known(*id)).collect(),
        };
        self.policies.bump(&judged);
        // Only epochs differ from what was planned above.
        let entries = judged.iter().flat_map(|id| self.policies.entries_of(*id));
        ops.extend(entries.map(|(k, e)| Op::Endpoint(k, Some(e))));
    }

    fn plan_services(&mut self, ops: &mut Vec<Op>) {
        let tables = &self.services.tables;
        let (backends, gone_backends) = tables.backends.changes();
        let (sets, gone_sets) = tables.sets.changes();
        let (ranges, gone_ranges) = tables.source_ranges.changes();
        let (frontends, gone_frontends) = tables.frontends.changes();
        let (rings, gone_rings) = tables.rings.rings.changes();
        let (of_sets, gone_of_sets) = tables.rings.sets.changes();
        let empty = Set::default();
        let held = |id: u32| tables.sets.have().get(&id).unwrap_or(&empty);
        let by_phase = |mut steps: Vec<SetStep>| {
            steps.sort_by_key(SetStep::phase);
            steps.into_iter().map(|step| match step {
                SetStep::Header(k, v) => Op::Set(k, v),
                SetStep::Slot(k, v) => Op::Slot(k, v),
                SetStep::Member(k, v) => Op::Member(k, v),
            })
        };
        ops.extend(backends.into_iter().map(|(k, v)| Op::Backend(k, Some(v))));
        ops.extend(by_phase(sets.iter().flat_map(|(id, want)| Set::steps(*id, held(*id), want)).collect()));
        ops.extend(rings.into_iter().map(|(k, v)| Op::Ring(k, Some(v))));
        ops.extend(of_sets.into_iter().map(|(k, v)| Op::Rings(k, Some(v))));
        ops.extend(ranges.into_iter().map(|(k, v)| Op::SourceRange(k, Some(v))));
        ops.extend(frontends.into_iter().map(|(k, v)| Op::Frontend(k, Some(v))));
        if self.is_behind() {
            return;
        }
        ops.extend(gone_frontends.into_iter().map(|k| Op::Frontend(k, None)));
        ops.extend(gone_ranges.into_iter().map(|k| Op::SourceRange(k, None)));
        ops.extend(gone_of_sets.into_iter().map(|k| Op::Rings(k, None)));
        ops.extend(gone_rings.into_iter().map(|k| Op::Ring(k, None)));
        ops.extend(by_phase(gone_sets.into_iter().flat_map(|id| Set::steps(id, held(id), &empty)).collect()));
        ops.extend(gone_backends.into_iter().map(|k| Op::Backend(k, None)));
    }

    /// A write succeeded. Sets count as written with [`State::settle`].
    pub fn written(&mut self, op: &Op) {
        let s = &mut self.services.tables;
        let p = &mut self.policies.tables;
        match op {
            Op::Frontend(k, v) => s.frontends.written(*k, *v),
            Op::Set(id, v) => self.set_written(SetStep::Header(*id, *v)),
            Op::Slot(k, v) => self.set_written(SetStep::Slot(*k, *v)),
            Op::Member(k, v) => self.set_written(SetStep::Member(*k, *v)),
            Op::Backend(k, v) => s.backends.written(*k, *v),
            Op::Rings(k, v) => s.rings.sets.written(*k, *v),
            Op::Ring(k, v) => s.rings.rings.written(*k, v.clone()),
            Op::SourceRange(k, v) => s.source_ranges.written(*k, *v),
            Op::NodeAddr(k, v) => self.node_addrs.written(*k, *v),
            Op::Endpoint(k, v) => p.endpoints.written(*k, *v),
            Op::Ipcache(k, v) => p.ipcache.written(*k, *v),
            Op::Policy(k, v) => p.policy.written(*k, *v),
            Op::Uplink(k, v) => self.uplinks.written(*k, *v),
            Op::Announced(k, v) => self.announced.written(*k, *v),
            Op::NoMasquerade(k, v) => self.no_masquerade.written(*k, *v),
        }
    }

    fn set_written(&mut self, step: SetStep) {
        let id = step.set();
        let have = || self.services.tables.sets.have().get(&id).cloned().unwrap_or_default();
        step.apply(self.touched.entry(id).or_insert_with(have));
    }

    /// Takes over what was written of sets: a set is written in many steps, and compared as a whole.
    pub fn settle(&mut self) {
        for (id, have) in std::mem::take(&mut self.touched) {
            self.services.tables.sets.written(id, (have != Set::default()).then_some(have));
        }
    }
}
