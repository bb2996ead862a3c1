//! What the logic reads and writes besides the packet.

use crate::budget::Budget;
use crate::nat::Scratch;
use crate::socket::Socket;
use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, BackendSet, Config, DropReason,
    Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, Given, Limit,
    LimitKey, MemberKey, Nat, NodeAddr, PolicyKey, PolicyVerdict, Port, Remote, Rings, Shortcut,
    SlotKey, SockFrontend, SockKey, SourceRangeKey, Tuple, Uplink,
};

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Written,
    /// There is an entry already, and a new one was asked for.
    Exists,
    /// The map took no entry.
    Full,
}

/// Maps, clock and dice. In the kernel a call is a helper call; in tests it is a `HashMap`.
pub trait Env {
    /// Nanoseconds of the monotonic clock.
    fn now(&self) -> u64;
    fn random(&self) -> u32;
    fn config(&self) -> Option<Config>;

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    fn backend_set(&self, id: u32) -> Option<BackendSet>;
    fn backend_slot(&self, key: &SlotKey) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Backend>;
    fn is_member(&self, key: &MemberKey) -> bool;
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr>;
    fn rings(&self, set: u32) -> Option<Rings>;
    /// The backend at a place of a ring that has more than one.
    fn ring_backend(&self, ring: u32, place: u32) -> Option<u32>;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    fn sock_frontend(&self, key: &SockKey) -> Option<SockFrontend>;
    /// False when the map took no entry.
    fn set_sock_frontend(&self, key: &SockKey, value: &SockFrontend) -> bool;
    fn remove_sock_frontend(&self, key: &SockKey);
    fn given(&self, key: &SockKey) -> Option<Given>;
    fn set_given(&self, key: &SockKey, value: &Given);
    fn remove_given(&self, key: &SockKey);
    /// How many sockets are counted for a backend.
    fn connections(&self, backend: u32) -> u64;
    /// Counts a socket for a backend, and no longer for the one it had before.
    fn count_connection(&self, cookie: u64, backend: u32);
    /// The socket is closed.
    fn end_connection(&self, cookie: u64);

    fn endpoint(&self, addr: &Addr) -> Option<Endpoint>;
    fn remote(&self, addr: &Addr) -> Option<Remote>;
    fn policy(&self, key: &PolicyKey) -> Option<PolicyVerdict>;
    /// Runs `f` on the entry in place.
    fn with_flow<R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R>;
    /// False when the map took no entry.
    fn set_flow(&self, key: &FlowKey, value: &Flow) -> bool;

    /// Runs `f` on this CPU's shortcut in place.
    fn with_shortcut<R>(&self, place: u32, f: impl FnOnce(&mut Shortcut) -> R) -> Option<R>;
    /// What shortcuts must have been made under.
    fn generation(&self) -> u64;

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentPorts);

    fn uplink(&self, ifindex: u32) -> Option<Uplink>;
    fn announced(&self, key: &AnnouncedKey) -> Option<Announced>;
    fn is_source_allowed(&self, key: &SourceRangeKey) -> bool;
    /// Whose address it is: bits of `abi::direct::range`, 0: nobody's of the cluster.
    fn range(&self, addr: &Addr) -> u32;
    /// Runs `f` on the entry in place.
    fn with_nat<R>(&self, key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R>;
    /// `only_new`: an entry that is there already stays.
    fn set_nat(&self, key: &Tuple, value: &Nat, only_new: bool) -> Stored;
    fn remove_nat(&self, key: &Tuple);
    /// Runs `f` on this CPU's space to put entries together in.
    fn with_scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> Option<R>;

    /// Runs `f` on this CPU's budget of ICMP errors.
    fn with_budget<R>(&self, f: impl FnOnce(&mut Budget) -> R) -> Option<R>;

    /// Counts a drop of `bytes`.
    fn dropped(&self, reason: DropReason, bytes: u32);
    /// Counts what was passed on, `path` is one of `abi::forward`'s.
    fn forwarded(&self, path: u32, bytes: u32);
    /// Counts what a Service (`Frontend::service`) was asked for and gave, or refused.
    fn served(&self, service: u32, refused: bool);
    /// A socket of the node was given a backend that has no device here, for what it `asked`: no program will see its packets
    /// as those of a Service.
    fn sent_away(&self, socket: &Socket, asked: &SockFrontend, to: &Addr, port: Port);
    /// Runs `f` on a pod's limit in place.
    fn with_limit<R>(&self, key: &LimitKey, f: impl FnOnce(&mut Limit) -> R) -> Option<R>;
}
