//! The maps that are in force, as the packet logic reads them. Writes go nowhere.

use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, BackendSet, Config, DropReason, Endpoint, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Given, Limit, LimitKey, MemberKey, Nat, NodeAddr, Places, PlacesKey, PolicyKey, PolicyVerdict,
    Port, Remote, Rings, Shortcut, SlotKey, SockFrontend, SockKey, SourceRangeKey, Tuple, Uplink, map,
};
use xebec_ebpf_logic::budget::Budget;
use xebec_ebpf_logic::nat::Scratch;
use xebec_ebpf_logic::socket::Socket;
use xebec_ebpf_logic::{Env, Stored};

use crate::bpf::gc;
use crate::bpf::replica::Replica;

/// Reads.
pub struct Live<'a> {
    replica: &'a Replica,
}

impl<'a> Live<'a> {
    /// Of the maps a replica reads.
    pub fn new(replica: &'a Replica) -> Live<'a> {
        Live { replica }
    }
}

impl Env for Live<'_> {
    fn now(&self) -> u64 {
        gc::now()
    }

    fn random(&self) -> u32 {
        rand::random()
    }

    fn config(&self) -> Option<Config> {
        self.replica.config()
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.replica.get(map::FRONTENDS, key)
    }

    fn backend_set(&self, id: u32) -> Option<BackendSet> {
        self.replica.get(map::BACKEND_SETS, &id)
    }

    fn backend_slot(&self, key: &SlotKey) -> Option<u32> {
        self.replica.get(map::BACKEND_SLOTS, key)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.replica.get(map::BACKENDS, &id)
    }

    fn is_member(&self, key: &MemberKey) -> bool {
        self.replica.get::<_, u32>(map::SET_MEMBERS, key).is_some()
    }

    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.replica.get(map::NODE_ADDRS, addr)
    }

    fn rings(&self, set: u32) -> Option<Rings> {
        self.replica.get(map::RINGS, &set)
    }

    fn ring_backend(&self, ring: u32, place: u32) -> Option<u32> {
        let key = PlacesKey { ring, part: place / Places::COUNT };
        let places: Places = self.replica.get(map::RING_PLACES, &key)?;
        places.backends.get((place % Places::COUNT) as usize).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.replica.affinity(key)
    }

    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}

    fn sock_frontend(&self, _: &SockKey) -> Option<SockFrontend> {
        None
    }

    fn set_sock_frontend(&self, _: &SockKey, _: &SockFrontend) -> bool {
        true
    }

    fn remove_sock_frontend(&self, _: &SockKey) {}

    fn given(&self, key: &SockKey) -> Option<Given> {
        self.replica.get(map::GIVEN, key)
    }

    fn set_given(&self, _: &SockKey, _: &Given) {}

    fn remove_given(&self, _: &SockKey) {}

    fn connections(&self, backend: u32) -> u64 {
        self.replica.at(map::CONNECTIONS, backend).unwrap_or(0)
    }

    fn count_connection(&self, _: u64, _: u32) {}

    fn end_connection(&self, _: u64) {}

    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        self.replica.get(map::ENDPOINTS, addr)
    }

    fn remote(&self, addr: &Addr) -> Option<Remote> {
        self.replica.longest(map::IPCACHE, 128, *addr)
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyVerdict> {
        self.replica.longest(map::POLICY, PolicyKey::EXACT, *key)
    }

    fn with_flow<R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.replica.get(map::FLOWS, key).map(|mut copy| f(&mut copy))
    }

    fn set_flow(&self, _: &FlowKey, _: &Flow) -> bool {
        true
    }

    // A made-up packet is always judged.
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
        self.replica.get(map::UPLINKS, &ifindex)
    }

    fn announced(&self, key: &AnnouncedKey) -> Option<Announced> {
        self.replica.get(map::ANNOUNCED, key)
    }

    fn is_source_allowed(&self, key: &SourceRangeKey) -> bool {
        self.replica.longest::<_, u32>(map::SOURCE_RANGES, 160, *key).is_some()
    }

    fn range(&self, addr: &Addr) -> u32 {
        self.replica.longest(map::NO_MASQUERADE, 128, *addr).unwrap_or(0)
    }

    fn with_nat<R>(&self, key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R> {
        self.replica.nat(key).map(|mut copy| f(&mut copy))
    }

    fn set_nat(&self, _: &Tuple, _: &Nat, _: bool) -> Stored {
        Stored::Written
    }

    fn remove_nat(&self, _: &Tuple) {}

    fn with_scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        Some(f(&mut Scratch::EMPTY.clone()))
    }

    fn with_budget<R>(&self, f: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        Some(f(&mut Budget::default()))
    }

    fn dropped(&self, _: DropReason, _: u32) {}

    fn forwarded(&self, _: u32, _: u32) {}

    fn served(&self, _: u32, _: bool) {}

    fn sent_away(&self, _: &Socket, _: &SockFrontend, _: &Addr, _: Port) {}

    // A question takes nothing off a pod's limit.
    fn with_limit<R>(&self, _: &LimitKey, _: impl FnOnce(&mut Limit) -> R) -> Option<R> {
        None
    }
}
