//! The maps as a model: takes writes, is asked by the very logic that runs in the kernel.

use std::collections::BTreeMap;

use xebec_ebpf_abi::*;
use xebec_ebpf_logic::budget::Budget;
use xebec_ebpf_logic::nat::Scratch;
use xebec_ebpf_logic::socket::Socket;
use xebec_ebpf_logic::{Env, Stored, policy};

use super::sets::SetStep;
use super::state::{Contents, Op, State};

/// Maps that user space writes.
#[derive(Default)]
pub struct Kernel(pub Contents);

fn write<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Kernel {
    /// One write.
    pub fn apply(&mut self, op: Op) {
        let c = &mut self.0;
        let mut step = |step: SetStep| {
            let id = step.set();
            let set = c.sets.entry(id).or_default();
            step.apply(set);
            if *set == Default::default() {
                c.sets.remove(&id);
            }
        };
        match op {
            Op::Set(k, v) => step(SetStep::Header(k, v)),
            Op::Slot(k, v) => step(SetStep::Slot(k, v)),
            Op::Member(k, v) => step(SetStep::Member(k, v)),
            Op::Frontend(k, v) => write(&mut c.frontends, k, v),
            Op::Backend(k, v) => write(&mut c.backends, k, v),
            Op::Rings(k, v) => write(&mut c.rings, k, v),
            Op::Ring(k, v) => write(&mut c.ring_places, k, v),
            Op::SourceRange(k, v) => write(&mut c.source_ranges, k, v),
            Op::NodeAddr(k, v) => write(&mut c.node_addrs, k, v),
            Op::Endpoint(k, v) => write(&mut c.endpoints, k, v),
            Op::Ipcache(k, v) => write(&mut c.ipcache, k, v),
            Op::Policy(k, v) => write(&mut c.policy, k, v),
            Op::Uplink(k, v) => write(&mut c.uplinks, k, v),
            Op::Announced(k, v) => write(&mut c.announced, k, v),
            Op::NoMasquerade(k, v) => write(&mut c.no_masquerade, k, v),
        }
    }

    /// Plans and applies; `after` sees the maps as packets would, after each write.
    pub fn follow(&mut self, state: &mut State, mut after: impl FnMut(&Kernel)) -> Vec<Op> {
        let mut all = Vec::new();
        loop {
            let ops = state.plan();
            let needs = state.needs();
            for op in &ops {
                self.apply(op.clone());
                state.written(op);
                self.assert_fits(&needs);
                after(self);
            }
            all.extend(ops);
            if !state.is_behind() {
                state.settle();
                return all;
            }
        }
    }

    /// Maps that have places for what is needed take every write.
    fn assert_fits(&self, needs: &BTreeMap<&'static str, u64>) {
        let c = &self.0;
        let mut have = vec![
            (map::FRONTENDS, c.frontends.len()),
            (map::BACKENDS, c.backends.len()),
            (map::RINGS, c.rings.len()),
            (map::SOURCE_RANGES, c.source_ranges.len()),
            (map::ENDPOINTS, c.endpoints.len()),
            (map::IPCACHE, c.ipcache.len()),
            (map::POLICY, c.policy.len()),
        ];
        // Counting takes its time where there is much.
        if c.sets.len() < 32 {
            have.push((map::BACKEND_SETS, c.sets.values().filter(|s| s.header.is_some()).count()));
            have.push((map::BACKEND_SLOTS, c.sets.values().map(|s| s.slots.len()).sum()));
            have.push((map::SET_MEMBERS, c.sets.values().map(|s| s.members.len()).sum()));
            have.push((map::RING_PLACES, c.ring_places.values().map(|r| r.parts as usize).sum()));
        }
        for (name, entries) in have {
            assert!(entries as u64 <= needs[name], "{name} has {entries} entries, {} were to be needed", needs[name]);
        }
    }

    /// A copy of the contents, as a starting agent reads it.
    pub fn contents(&self) -> Contents {
        let c = &self.0;
        Contents {
            frontends: c.frontends.clone(),
            sets: c.sets.clone(),
            backends: c.backends.clone(),
            rings: c.rings.clone(),
            ring_places: c.ring_places.clone(),
            source_ranges: c.source_ranges.clone(),
            node_addrs: c.node_addrs.clone(),
            endpoints: c.endpoints.clone(),
            ipcache: c.ipcache.clone(),
            policy: c.policy.clone(),
            uplinks: c.uplinks.clone(),
            announced: c.announced.clone(),
            no_masquerade: c.no_masquerade.clone(),
        }
    }
}

impl Kernel {
    /// Whether a pod may start, or be sent, a flow with `remote`, by these contents.
    pub fn allows(&self, endpoint: &Endpoint, direction: u8, remote: &Addr, proto: u8, port: Port) -> bool {
        policy::asks(self, endpoint, direction, remote, proto, port).allowed
    }
}

/// Whether the first `len` bits agree.
fn covers(prefix: &[u8], len: u32, key: &[u8]) -> bool {
    (0..len as usize).all(|bit| (prefix[bit / 8] ^ key[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

fn policy_bytes(key: &PolicyKey) -> Vec<u8> {
    let mut bytes = key.endpoint().to_be_bytes().to_vec();
    bytes.extend([key.direction(), 0, 0, 0]);
    bytes.extend(key.identity().to_be_bytes());
    bytes.extend([key.proto(), 0]);
    bytes.extend(key.port().get().to_be_bytes());
    bytes
}

fn longest<'a, K: 'a, V: Copy + 'a>(map: &'a BTreeMap<(u32, K), V>, bytes: impl Fn(&K) -> Vec<u8>, key: &[u8]) -> Option<V> {
    let matching = map.iter().filter(|((len, prefix), _)| covers(&bytes(prefix), *len, key));
    matching.max_by_key(|((len, _), _)| *len).map(|(_, v)| *v)
}

/// What the policy lookup asks; everything else a test does not reach.
impl Env for Kernel {
    fn now(&self) -> u64 {
        0
    }
    fn random(&self) -> u32 {
        0
    }
    fn config(&self) -> Option<Config> {
        None
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.0.frontends.get(key).copied()
    }
    fn backend_set(&self, id: u32) -> Option<BackendSet> {
        self.0.sets.get(&id)?.header
    }
    fn backend_slot(&self, key: &SlotKey) -> Option<u32> {
        self.0.sets.get(&key.set)?.slots.get(&key.slot).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.0.backends.get(&id).copied()
    }
    fn is_member(&self, key: &MemberKey) -> bool {
        self.0.sets.get(&key.set).is_some_and(|s| s.members.contains_key(&key.backend))
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.0.node_addrs.get(addr).copied()
    }
    fn rings(&self, set: u32) -> Option<Rings> {
        self.0.rings.get(&set).copied()
    }
    fn ring_backend(&self, ring: u32, place: u32) -> Option<u32> {
        let spec = self.0.ring_places.get(&ring)?.spec.as_ref()?;
        super::maglev::places(&spec.members, spec.size).get(place as usize).copied()
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}
    fn sock_frontend(&self, _: &SockKey) -> Option<SockFrontend> {
        None
    }
    fn set_sock_frontend(&self, _: &SockKey, _: &SockFrontend) -> bool {
        false
    }
    fn remove_sock_frontend(&self, _: &SockKey) {}
    fn given(&self, _: &SockKey) -> Option<Given> {
        None
    }
    fn set_given(&self, _: &SockKey, _: &Given) {}
    fn remove_given(&self, _: &SockKey) {}
    fn connections(&self, _: u32) -> u64 {
        0
    }
    fn count_connection(&self, _: u64, _: u32) {}
    fn end_connection(&self, _: u64) {}
    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        self.0.endpoints.get(addr).copied()
    }
    fn remote(&self, addr: &Addr) -> Option<Remote> {
        longest(&self.0.ipcache, |a| a.octets().to_vec(), &addr.octets())
    }
    fn policy(&self, key: &PolicyKey) -> Option<PolicyVerdict> {
        longest(&self.0.policy, policy_bytes, &policy_bytes(key))
    }
    fn with_flow<R>(&self, _: &FlowKey, _: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        None
    }
    fn set_flow(&self, _: &FlowKey, _: &Flow) -> bool {
        false
    }
    fn with_shortcut<R>(&self, _: u32, _: impl FnOnce(&mut Shortcut) -> R) -> Option<R> {
        None
    }
    fn generation(&self) -> u64 {
        0
    }
    fn fragment(&self, _: &FragmentKey) -> Option<FragmentPorts> {
        None
    }
    fn set_fragment(&self, _: &FragmentKey, _: &FragmentPorts) {}
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        self.0.uplinks.get(&ifindex).copied()
    }
    fn announced(&self, key: &AnnouncedKey) -> Option<Announced> {
        self.0.announced.get(key).copied()
    }
    fn is_source_allowed(&self, key: &SourceRangeKey) -> bool {
        let bytes = |k: &SourceRangeKey| [&k.service.to_be_bytes()[..], &k.addr.octets()].concat();
        longest(&self.0.source_ranges, bytes, &bytes(key)).is_some()
    }
    fn range(&self, _: &Addr) -> u32 {
        0
    }
    fn with_nat<R>(&self, _: &Tuple, _: impl FnOnce(&mut Nat) -> R) -> Option<R> {
        None
    }
    fn set_nat(&self, _: &Tuple, _: &Nat, _: bool) -> Stored {
        Stored::Full
    }
    fn remove_nat(&self, _: &Tuple) {}
    fn with_scratch<R>(&self, _: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        None
    }
    fn with_budget<R>(&self, _: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        None
    }
    fn dropped(&self, _: DropReason, _: u32) {}
    fn forwarded(&self, _: u32, _: u32) {}
    fn served(&self, _: u32, _: bool) {}
    fn sent_away(&self, _: &Socket, _: &SockFrontend, _: &Addr, _: Port) {}
    fn with_limit<R>(&self, _: &LimitKey, _: impl FnOnce(&mut Limit) -> R) -> Option<R> {
        None
    }
}
