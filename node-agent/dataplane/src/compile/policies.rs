//! Pods, namespaces and NetworkPolicies to identities and verdicts: keeps what was compiled of each object and
//! recompiles what a change can reach.

pub mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xebec_ebpf_abi::{Addr, Endpoint, NetnsCookie, PolicyKey, PolicyVerdict, Remote, direction, identity};

use super::bandwidth::Bandwidth;
use super::cluster::{ClusterPeer, ClusterPolicy};
use super::cluster_resolve::{self, ResolvedCluster, Way};
use super::expand::addr;
use super::identity::{Blocks, Facts, Identities, PodFacts, host_net};
use super::input::{Key, Labels, PodIn};
use super::prefix::Prefix;
use super::resolve::{self, Grants, Resolved};
use super::rules::{Peer, Policy};
use crate::table::Table;

/// A pod of this node with a device, as CNI set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Node-local number, never 0.
    pub id: u32,
    /// Host side of its device.
    pub ifindex: u32,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Of the host's side.
    pub host_mac: [u8; 6],
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// `SO_NETNS_COOKIE` of its network namespace, 0 if not known.
    pub netns_cookie: u64,
    /// Namespace and name of the pod.
    pub pod: Key,
    /// What the runtime limits it to beyond its annotations.
    pub asked: Bandwidth,
    /// The pod as last seen: policy stays in force while its object is gone and the device is not.
    pub last_seen: PodIn,
}

impl LocalEndpoint {
    /// What it may send and be sent: its annotations, which may change, win over what the runtime asked for when it started.
    pub fn bandwidth(&self) -> Bandwidth {
        self.last_seen.bandwidth.or(self.asked)
    }
}

/// The maps of pods and policies.
#[derive(Default)]
pub struct PolicyTables {
    /// `ENDPOINTS`.
    pub endpoints: Table<Addr, Endpoint>,
    /// `IPCACHE` by prefix length and prefix.
    pub ipcache: Table<(u32, Addr), Remote>,
    /// `POLICY` by prefix length and key.
    pub policy: Table<(u32, PolicyKey), PolicyVerdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Endpoint(u32),
    Pod(Key),
}

struct Local {
    endpoint: LocalEndpoint,
    epoch: u32,
    entries: BTreeSet<(u32, PolicyKey)>,
}

/// Compiles what decides who may talk to whom.
#[derive(Default)]
pub struct Policies {
    node_name: String,
    node_addresses: BTreeSet<IpAddr>,
    remote_nodes: BTreeSet<IpAddr>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<Key, PodIn>,
    policies: BTreeMap<Key, Policy>,
    locals: BTreeMap<u32, Local>,
    claims: BTreeMap<IpAddr, BTreeSet<Claim>>,
    blocks: Blocks,
    identities: Identities,
    entries: BTreeMap<IpNet, u32>,
    resolved: BTreeMap<Key, Resolved>,
    cluster: BTreeMap<String, ClusterPolicy>,
    resolved_cluster: BTreeMap<String, ResolvedCluster>,
    /// Labels and addresses of every node, and whose an address is.
    nodes: BTreeMap<String, (Labels, BTreeSet<IpAddr>)>,
    node_of: BTreeMap<IpAddr, String>,
    dirty_nets: BTreeSet<IpNet>,
    dirty_policies: BTreeSet<Key>,
    dirty_cluster: BTreeSet<String>,
    dirty_locals: BTreeSet<u32>,
    /// Entries that `POLICY` has room for.
    room: Option<usize>,
    /// By endpoint, the policies whose entries would not fit, and how many there were then.
    refused: BTreeMap<u32, BTreeSet<Key>>,
    full_at: usize,
    /// Numbers found in the kernel are taken as hints until the first compilation.
    hints: bool,
    /// What endpoints begin with whose epoch is not found in the kernel.
    first_epoch: u32,
    /// What the maps shall hold.
    pub tables: PolicyTables,
}

impl Policies {
    /// For a node.
    pub fn new(node_name: &str) -> Policies {
        Policies { node_name: node_name.to_owned(), ..Policies::default() }
    }

    /// After the actual side of the tables was loaded: numbers and epochs found there are kept.
    pub fn adopt_loaded(&mut self) {
        self.hints = true;
        let found = self.tables.ipcache.have().values().map(|r| r.identity);
        let named = self.tables.policy.have().keys().map(|(_, k)| k.identity());
        self.identities.start_above(found.chain(named).max().unwrap_or(0));
        for local in self.locals.values_mut() {
            adopt_epoch(&self.tables, local);
        }
    }

    /// Epochs of endpoints that are not found in the kernel begin here.
    pub fn first_epoch(&mut self, epoch: u32) {
        self.first_epoch = epoch;
    }

    /// The node's own addresses.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let changed: Vec<IpAddr> = self.node_addresses.symmetric_difference(&addresses).copied().collect();
        self.node_addresses = addresses;
        self.dirty_nets.extend(changed.into_iter().map(host_net));
    }

    /// Addresses of the other nodes. While no policy asks for nodes they get no more than an identity to be known by, but for
    /// the blocks they lie in.
    pub fn set_remote_nodes(&mut self, addresses: BTreeSet<IpAddr>) {
        let changed: Vec<IpAddr> = self.remote_nodes.symmetric_difference(&addresses).copied().collect();
        self.remote_nodes = addresses;
        self.dirty_nets.extend(changed.into_iter().map(host_net));
    }

    /// Labels of a namespace; none when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let asks = |p: &Policy| {
            let rules = p.ingress.iter().chain(&p.egress).flatten();
            rules.flat_map(|r| r.peers.iter().flatten()).any(|p| matches!(p, Peer::Pods { namespaces: Some(_), .. }))
        };
        self.dirty_policies.extend(self.policies.iter().filter(|(_, p)| asks(p)).map(|(k, _)| k.clone()));
        if !self.cluster.is_empty() {
            // Who is a peer and who is a subject: both are asked of namespaces.
            self.dirty_cluster.extend(self.cluster.keys().cloned());
            self.dirty_locals.extend(self.locals_of(name));
        }
    }

    /// Labels and addresses of a node of the cluster; none when it is gone.
    pub fn set_cluster_node(&mut self, name: &str, node: Option<(Labels, BTreeSet<IpAddr>)>) {
        if self.nodes.get(name) == node.as_ref() {
            return;
        }
        let before = match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
        let now = self.nodes.get(name).into_iter().flat_map(|(_, ips)| ips);
        let all = before.iter().flat_map(|(_, ips)| ips).chain(now).copied().map(|ip| ip.to_canonical());
        let all: BTreeSet<IpAddr> = all.collect();
        for ip in &all {
            let owner = self.nodes.iter().find(|(_, (_, ips))| ips.contains(ip)).map(|(n, _)| n.clone());
            match owner {
                Some(owner) => self.node_of.insert(*ip, owner),
                None => self.node_of.remove(ip),
            };
        }
        if self.asks_for_nodes() {
            self.dirty_nets.extend(all.into_iter().map(host_net));
        }
    }

    /// A ClusterNetworkPolicy; none when it is gone.
    pub fn set_cluster_policy(&mut self, name: &str, policy: Option<ClusterPolicy>) {
        if self.cluster.get(name) == policy.as_ref() {
            return;
        }
        let asked = self.asks_for_nodes();
        let networks = |p: &ClusterPolicy| -> BTreeSet<IpNet> {
            let network = |p: &ClusterPeer| if let ClusterPeer::Network(net) = p { Some(*net) } else { None };
            p.ingress.iter().chain(&p.egress).flat_map(|r| r.peers.iter().flatten()).filter_map(network).collect()
        };
        for block in policy.iter().flat_map(networks) {
            if self.blocks.add(block) {
                self.mark_block(block);
            }
        }
        let old = match policy {
            Some(policy) => self.cluster.insert(name.to_owned(), policy),
            None => self.cluster.remove(name),
        };
        for block in old.iter().flat_map(networks) {
            if self.blocks.remove(&block) {
                self.mark_block(block);
            }
        }
        if self.asks_for_nodes() != asked {
            self.dirty_nets.extend(self.node_of.keys().map(|ip| host_net(*ip)));
        }
        self.dirty_cluster.insert(name.to_owned());
        self.dirty_locals.extend(self.locals.keys());
    }

    /// Names of the ClusterNetworkPolicies, for a full replacement.
    pub fn cluster_policy_keys(&self) -> Vec<Key> {
        self.cluster.keys().map(|n| Key::new("", n)).collect()
    }

    fn asks_for_nodes(&self) -> bool {
        let rules = self.cluster.values().flat_map(|p| p.ingress.iter().chain(&p.egress));
        rules.flat_map(|r| r.peers.iter().flatten()).any(|p| matches!(p, ClusterPeer::Nodes(_)))
    }

    /// How many entries `POLICY` holds: policies that would not fit are refused whole.
    pub fn set_room(&mut self, entries: usize) {
        self.room = Some(entries);
    }

    /// Policies whose entries do not fit for some pod here: the pods they select are isolated by them, but what they
    /// allow is not in force. A ClusterNetworkPolicy has no namespace.
    pub fn refused(&self) -> BTreeSet<Key> {
        self.refused.values().flatten().cloned().collect()
    }

    /// A pod anywhere in the cluster; none when its object is gone.
    pub fn set_pod(&mut self, key: Key, pod: Option<PodIn>) {
        if self.pods.get(&key) == pod.as_ref() {
            return;
        }
        // Addresses of pods here come from their devices, not from what a status may still say.
        let claimed = |p: &PodIn, node: &str| {
            if p.node == node { Vec::new() } else { p.ips.clone() }
        };
        let before = self.pods.get(&key).map(|p| claimed(p, &self.node_name)).unwrap_or_default();
        let after = pod.as_ref().map(|p| claimed(p, &self.node_name)).unwrap_or_default();
        self.claim(Claim::Pod(key.clone()), &before, &after);
        if let Some(pod) = &pod {
            for local in self.locals.values_mut().filter(|l| l.endpoint.pod == key) {
                if local.endpoint.last_seen.uid == pod.uid {
                    local.endpoint.last_seen = pod.clone();
                    self.dirty_nets.extend(local.endpoint.ips.iter().map(|ip| host_net(*ip)));
                    self.dirty_locals.insert(local.endpoint.id);
                }
            }
        }
        match pod {
            Some(pod) => self.pods.insert(key, pod),
            None => self.pods.remove(&key),
        };
    }

    /// A policy; none when it is gone.
    pub fn set_policy(&mut self, key: Key, policy: Option<Policy>) {
        if self.policies.get(&key) == policy.as_ref() {
            return;
        }
        let old = match policy {
            Some(policy) => {
                for block in blocks(&policy) {
                    if self.blocks.add(block) {
                        self.mark_block(block);
                    }
                }
                self.policies.insert(key.clone(), policy)
            }
            None => self.policies.remove(&key),
        };
        for block in old.iter().flat_map(blocks) {
            if self.blocks.remove(&block) {
                self.mark_block(block);
            }
        }
        self.dirty_locals.extend(self.locals_of(&key.namespace));
        self.dirty_policies.insert(key);
    }

    /// A local pod's device; replaces an endpoint of the same number.
    pub fn set_endpoint(&mut self, endpoint: LocalEndpoint) {
        let id = endpoint.id;
        let before = self.locals.get(&id).map(|l| l.endpoint.ips.clone()).unwrap_or_default();
        self.claim(Claim::Endpoint(id), &before, &endpoint.ips);
        let epoch = self.locals.get(&id).map_or(self.first_epoch.max(1), |l| l.epoch);
        let entries = self.locals.remove(&id).map(|l| l.entries).unwrap_or_default();
        let mut local = Local { endpoint, epoch, entries };
        if let Some(pod) = self.pods.get(&local.endpoint.pod)
            && pod.uid == local.endpoint.last_seen.uid
        {
            local.endpoint.last_seen = pod.clone();
        }
        adopt_epoch(&self.tables, &mut local);
        for ip in before.iter().filter(|ip| !local.endpoint.ips.contains(ip)) {
            self.tables.endpoints.unset(&addr(*ip));
        }
        self.locals.insert(id, local);
        self.dirty_locals.insert(id);
    }

    /// The device is going.
    pub fn remove_endpoint(&mut self, id: u32) {
        let Some(local) = self.locals.remove(&id) else {
            return;
        };
        self.claim(Claim::Endpoint(id), &local.endpoint.ips, &[]);
        for ip in &local.endpoint.ips {
            // Its address may have a new owner already.
            if self.tables.endpoints.want().get(&addr(*ip)).is_some_and(|e| e.id == id) {
                self.tables.endpoints.unset(&addr(*ip));
            }
        }
        for entry in &local.entries {
            self.tables.policy.unset(entry);
        }
        self.dirty_locals.remove(&id);
        self.refused.remove(&id);
    }

    /// A pod as watched.
    pub fn pod(&self, key: &Key) -> Option<&PodIn> {
        self.pods.get(key)
    }

    /// Whether a namespace is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// Names of the namespaces, for a full replacement.
    pub fn namespace_keys(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }

    /// Names of the pods, for a full replacement.
    pub fn pod_keys(&self) -> Vec<Key> {
        self.pods.keys().cloned().collect()
    }

    /// Names of the policies, for a full replacement.
    pub fn policy_keys(&self) -> Vec<Key> {
        self.policies.keys().cloned().collect()
    }

    /// Whether the maps hold the endpoint as it shall be: entries, identity, verdicts.
    pub fn is_in_force(&self, id: u32) -> bool {
        let Some(local) = self.locals.get(&id) else {
            return false;
        };
        let t = &self.tables;
        let entry = |ip: &IpAddr| {
            let key = addr(*ip);
            let prefix = (key.prefix_len(if ip.is_ipv4() { 32 } else { 128 }), key);
            let there = t.endpoints.have().get(&key).is_some_and(|e| e.id == id && Some(e) == t.endpoints.want().get(&key));
            there && t.ipcache.have().contains_key(&prefix) && t.ipcache.have().get(&prefix) == t.ipcache.want().get(&prefix)
        };
        let verdict = |key: &(u32, PolicyKey)| t.policy.have().get(key) == t.policy.want().get(key);
        local.endpoint.ips.iter().all(entry) && local.entries.iter().all(verdict)
    }

    /// Numbers of the local endpoints.
    pub fn endpoint_ids(&self) -> BTreeSet<u32> {
        self.locals.keys().copied().collect()
    }

    /// Local pods with a device.
    pub fn endpoints(&self) -> usize {
        self.locals.len()
    }

    fn locals_of(&self, namespace: &str) -> Vec<u32> {
        self.locals.values().filter(|l| l.endpoint.pod.namespace == namespace).map(|l| l.endpoint.id).collect()
    }

    fn claim(&mut self, claim: Claim, before: &[IpAddr], after: &[IpAddr]) {
        for ip in before.iter().filter(|ip| !after.contains(ip)) {
            if let Some(claims) = self.claims.get_mut(ip) {
                claims.remove(&claim);
                if claims.is_empty() {
                    self.claims.remove(ip);
                }
            }
        }
        for ip in after {
            self.claims.entry(*ip).or_default().insert(claim.clone());
        }
        // Also where the addresses are the same: labels may have changed.
        self.dirty_nets.extend(before.iter().chain(after).map(|ip| host_net(*ip)));
    }

    /// A block came or went: the facts of everything inside it change.
    fn mark_block(&mut self, block: IpNet) {
        self.dirty_nets.insert(block);
        // Nets are ordered by address: those inside lie between its ends.
        let first = IpNet::new(block.network(), 0).unwrap_or(block);
        let last = IpNet::new(block.broadcast(), block.max_prefix_len()).unwrap_or(block);
        self.dirty_nets.extend(self.entries.range(first..=last).map(|(n, _)| *n).filter(|n| block.contains(n)));
        // `::/0` and the like hold the mapped form of IPv4 as well: without an entry of its own IPv4 would match.
        if let IpNet::V6(v6) = block
            && v6.contains(&std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
        {
            self.dirty_nets.insert(IPV4);
        }
    }

    /// Brings the desired side of the tables up to date with what changed.
    pub fn compile(&mut self) {
        self.compile_identities();
        for key in std::mem::take(&mut self.dirty_policies) {
            let resolved = self.policies.get(&key).map(|p| resolve::policy(&key, p, &self.identities, &self.namespaces));
            if self.resolved.get(&key) == resolved.as_ref() {
                continue;
            }
            // Another policy than before has marked all it may have selected and may select.
            if let Some(policy) = self.policies.get(&key) {
                let mine = |l: &&Local| l.endpoint.pod.namespace == key.namespace && policy.selects.matches(&l.endpoint.last_seen.labels);
                self.dirty_locals.extend(self.locals.values().filter(mine).map(|l| l.endpoint.id));
            }
            match resolved {
                Some(resolved) => self.resolved.insert(key, resolved),
                None => self.resolved.remove(&key),
            };
        }
        for name in std::mem::take(&mut self.dirty_cluster) {
            let resolved = self.cluster.get(&name).map(|p| cluster_resolve::policy(&name, p, &self.identities, &self.namespaces));
            if self.resolved_cluster.get(&name) == resolved.as_ref() {
                continue;
            }
            if let Some(policy) = self.cluster.get(&name) {
                let selected = self.locals.values().filter(|l| self.selects(policy, &l.endpoint)).map(|l| l.endpoint.id);
                let selected: Vec<u32> = selected.collect();
                self.dirty_locals.extend(selected);
            }
            match resolved {
                Some(resolved) => self.resolved_cluster.insert(name, resolved),
                None => self.resolved_cluster.remove(&name),
            };
        }
        if self.tables.policy.want().len() < self.full_at {
            self.dirty_locals.extend(self.refused.keys());
        }
        for id in std::mem::take(&mut self.dirty_locals) {
            self.compile_endpoint(id);
        }
        self.hints = false;
    }

    fn compile_identities(&mut self) {
        let mut released = Vec::new();
        let mut added = Vec::new();
        let mut hosts_changed = false;
        for net in std::mem::take(&mut self.dirty_nets) {
            let facts = self.facts(net);
            let key = (addr(net.network()).prefix_len(net.prefix_len()), addr(net.network()));
            let before = self.entries.get(&net).copied();
            if before.is_some_and(|n| self.identities.get(n) == facts.as_ref() && facts.is_some()) {
                continue;
            }
            if let Some(facts) = facts {
                let flags = if facts.host { Remote::HOST } else { 0 };
                let hint = self.tables.ipcache.have().get(&key).filter(|_| self.hints).map(|r| r.identity);
                let (number, new) = if facts == Facts::default() {
                    (identity::WORLD, false)
                } else if facts == (Facts { remote_node: true, ..Facts::default() }) {
                    (identity::REMOTE_NODE, false)
                } else {
                    self.identities.hold(&facts, hint)
                };
                if new {
                    hosts_changed |= facts.host;
                    added.push(facts);
                }
                self.entries.insert(net, number);
                self.tables.ipcache.set(key, Remote { identity: number, flags });
            } else {
                self.entries.remove(&net);
                self.tables.ipcache.unset(&key);
            }
            if let Some(before) = before
                && let Some(facts) = self.identities.release(before)
            {
                hosts_changed |= facts.host;
                released.push(before);
            }
        }
        for (key, policy) in &self.policies {
            let names = |number: &u32| self.resolved.get(key).is_some_and(|r| r.names(*number));
            if released.iter().any(names) || added.iter().any(|f| resolve::concerns(key, policy, f, &self.namespaces)) {
                self.dirty_policies.insert(key.clone());
            }
        }
        for (name, policy) in &self.cluster {
            let names = |number: &u32| self.resolved_cluster.get(name).is_some_and(|r| r.names(*number));
            if released.iter().any(names) || added.iter().any(|f| cluster_resolve::concerns(policy, f, &self.namespaces)) {
                self.dirty_cluster.insert(name.clone());
            }
        }
        if hosts_changed {
            self.dirty_locals.extend(self.locals.keys());
        }
    }

    fn selects(&self, policy: &ClusterPolicy, endpoint: &LocalEndpoint) -> bool {
        policy.subject.select(&endpoint.pod.namespace, &endpoint.last_seen.labels, &self.namespaces)
    }

    /// What is known of an address or block; none if it needs no entry.
    fn facts(&self, net: IpNet) -> Option<Facts> {
        let mut facts = Facts { blocks: self.blocks.covering(net), ..Facts::default() };
        let mut wanted = facts.blocks.contains(&net) || (net == IPV4 && !self.blocks.covering(MAPPED).is_empty());
        if net.prefix_len() == net.max_prefix_len() {
            let ip = net.addr();
            facts.host = self.node_addresses.contains(&ip);
            facts.pod = match self.claims.get(&ip).and_then(|c| c.first()) {
                Some(Claim::Endpoint(id)) => self.locals.get(id).map(|l| PodFacts::new(&l.endpoint.pod, &l.endpoint.last_seen)),
                Some(Claim::Pod(key)) => self.pods.get(key).map(|p| PodFacts::new(key, p)),
                None => None,
            };
            facts.remote_node = self.remote_nodes.contains(&ip) && !facts.host;
            if self.asks_for_nodes() {
                facts.node = self.node_of.get(&ip).and_then(|n| self.nodes.get(n)).map(|(labels, _)| labels.clone());
            }
            wanted |= facts.host || facts.remote_node || facts.node.is_some() || facts.pod.is_some();
        }
        wanted.then_some(facts)
    }

    fn compile_endpoint(&mut self, id: u32) {
        let Some(local) = self.locals.get(&id) else {
            return;
        };
        let endpoint = &local.endpoint;
        let others = self.tables.policy.want().len() - local.entries.len();
        let room = self.room.map_or(usize::MAX, |room| room.saturating_sub(others));
        let (entries, flags, refused) = self.verdicts(endpoint, room);
        if refused.is_empty() {
            self.refused.remove(&id);
        } else {
            self.refused.insert(id, refused);
            self.full_at = others + entries.len();
        }
        let Some(local) = self.locals.get_mut(&id) else {
            return;
        };
        for gone in local.entries.iter().filter(|k| !entries.contains_key(k)) {
            self.tables.policy.unset(gone);
        }
        local.entries = entries.keys().copied().collect();
        for (key, verdict) in entries {
            self.tables.policy.set(key, verdict);
        }
        let e = &local.endpoint;
        for ip in &e.ips {
            let netns = NetnsCookie::new(e.netns_cookie);
            let value = Endpoint { id, ifindex: e.ifindex, pod_mac: e.pod_mac, host_mac: e.host_mac, flags, epoch: local.epoch, netns };
            self.tables.endpoints.set(addr(*ip), value);
        }
    }

    /// An endpoint's entries and flags, and the policies for whose entries there is no room: they isolate, but allow nothing.
    fn verdicts(&self, endpoint: &LocalEndpoint, room: usize) -> (BTreeMap<(u32, PolicyKey), PolicyVerdict>, u32, BTreeSet<Key>) {
        const WAYS: [(u8, u32); 2] = [(direction::INGRESS, Endpoint::ISOLATE_INGRESS), (direction::EGRESS, Endpoint::ISOLATE_EGRESS)];
        let (id, pod, bandwidth) = (endpoint.id, &endpoint.last_seen, endpoint.bandwidth());
        // Pods' devices are veth pairs into namespaces of their own, so packets may skip the node's stack.
        let mut flags = Endpoint::DIRECT;
        flags |= if bandwidth.ingress.is_some() { Endpoint::LIMIT_INGRESS } else { 0 };
        flags |= if bandwidth.egress.is_some() { Endpoint::LIMIT_EGRESS } else { 0 };
        let mut refused = BTreeSet::new();
        let mut grants: [Option<Grants>; 2] = [None, None];
        let mut left = room;
        let first = Key::new(&endpoint.pod.namespace, "");
        let selecting = self.policies.range(first..).take_while(|(k, _)| k.namespace == endpoint.pod.namespace);
        for (key, policy) in selecting.filter(|(_, p)| p.selects.matches(&pod.labels)) {
            let mut found: Vec<(u8, u32, Prefix, u32)> = Vec::new();
            for (way, isolates) in [(direction::INGRESS, policy.ingress.is_some()), (direction::EGRESS, policy.egress.is_some())] {
                if !isolates {
                    continue;
                }
                grants[usize::from(way)].get_or_insert_default();
                if let Some(resolved) = self.resolved.get(key) {
                    // One more than there is room for tells enough.
                    resolved.grants(way, &pod.named_ports, |peer, prefix, number| {
                        if found.len() <= left {
                            found.push((way, peer, prefix, number));
                        }
                    });
                }
            }
            if found.len() > left {
                refused.insert(key.clone());
                continue;
            }
            left -= found.len();
            for (way, peer, prefix, number) in found {
                let allowed = grants[usize::from(way)].get_or_insert_default().entry(peer).or_default();
                allowed.entry(prefix).and_modify(|n| *n = (*n).min(number)).or_insert(number);
            }
        }
        if let Some(grants) = &mut grants[usize::from(direction::EGRESS)] {
            // "Traffic to and from the node where a Pod is running is always allowed" (NetworkPolicy concept). Ingress is the
            // program's to know.
            for (host, _) in self.identities.iter().filter(|(_, f)| f.host) {
                grants.entry(host).or_default().entry(Prefix::ALL).or_insert(0);
            }
        }
        let mut cluster: Vec<(&String, &ClusterPolicy)> = self.cluster.iter().filter(|(_, p)| self.selects(p, endpoint)).collect();
        cluster.sort_by_key(|(name, p)| (p.tier, p.priority, *name));
        let mut entries = BTreeMap::new();
        for (way, isolated) in WAYS {
            let network = grants[usize::from(way)].as_ref();
            let of = |(name, p): &(&String, &ClusterPolicy)| Some((p.tier, self.resolved_cluster.get(*name)?.rules(way)));
            let rules = cluster.iter().filter_map(of).flat_map(|(tier, rules)| rules.iter().map(move |r| (tier, r)));
            let rules: Vec<_> = rules.collect();
            if network.is_some() || !rules.is_empty() {
                flags |= isolated;
            }
            if rules.is_empty() {
                resolve::entries(id, way, network.unwrap_or(&Grants::new()), &mut entries);
                continue;
            }
            let mut all = BTreeMap::new();
            let direction = Way { endpoint: id, direction: way, own_ports: &pod.named_ports, identities: &self.identities };
            direction.entries(&rules, network, &mut all);
            if entries.len() + all.len() <= room {
                entries.extend(all);
            } else {
                // Nothing passes: which of the tiers' verdicts could be left out without letting something through?
                refused.extend(cluster.iter().map(|(name, _)| Key::new("", name)));
            }
        }
        (entries, flags, refused)
    }

    /// Whether the kernel has an entry of the endpoint: a new one has no flows yet.
    pub fn is_known(&self, id: u32) -> bool {
        let in_kernel = |ip: &IpAddr| self.tables.endpoints.have().get(&addr(*ip)).is_some_and(|e| e.id == id);
        self.locals.get(&id).is_some_and(|local| local.endpoint.ips.iter().any(in_kernel))
    }

    /// What `ENDPOINTS` shall hold of an endpoint.
    pub fn entries_of(&self, id: u32) -> impl Iterator<Item = (Addr, Endpoint)> {
        let ips = self.locals.get(&id).into_iter().flat_map(|local| &local.endpoint.ips);
        let entry = move |ip: &IpAddr| self.tables.endpoints.want().get(&addr(*ip)).filter(|e| e.id == id).map(|e| (addr(*ip), *e));
        ips.filter_map(entry)
    }

    /// Judges again the established flows of these endpoints.
    pub fn bump(&mut self, which: &BTreeSet<u32>) {
        for id in which {
            let Some(local) = self.locals.get_mut(id) else { continue };
            local.epoch = local.epoch.wrapping_add(1);
            for ip in &local.endpoint.ips {
                let key = addr(*ip);
                if let Some(now) = self.tables.endpoints.want().get(&key).filter(|e| e.id == *id).copied() {
                    self.tables.endpoints.set(key, Endpoint { epoch: local.epoch, ..now });
                }
            }
        }
    }
}

const IPV4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
const MAPPED: IpNet = IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96));

fn adopt_epoch(tables: &PolicyTables, local: &mut Local) {
    let found = local.endpoint.ips.iter().filter_map(|ip| tables.endpoints.have().get(&addr(*ip)));
    let epochs = found.filter(|e| e.id == local.endpoint.id).map(|e| e.epoch);
    local.epoch = epochs.max().unwrap_or(local.epoch).max(local.epoch);
}

/// Blocks and exceptions a policy names, each once.
fn blocks(policy: &Policy) -> BTreeSet<IpNet> {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    let mut found = BTreeSet::new();
    for peer in rules.flat_map(|r| r.peers.iter().flatten()) {
        if let Peer::Block { cidr, except } = peer {
            found.insert(*cidr);
            found.extend(except);
        }
    }
    found
}
