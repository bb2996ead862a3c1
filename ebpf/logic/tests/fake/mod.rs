//! Maps, clock and packets in memory: the logic on the host.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod routes;

use routes::{Answer, Routes};

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};
use xebec_ebpf_abi::*;
use xebec_ebpf_logic::{
    Env, Packet, Stored, budget::Budget, direct::Wrap, nat::Scratch, packet::Plain, reject::Resize,
    socket::Socket, xdp::Decided,
};

/// A place nobody has.
const NO_SHORTCUT: Shortcut = Shortcut::new(
    Tuple::new(Addr::ANY, Port::new(0), Addr::ANY, Port::new(0), 0),
    0,
    0,
    0,
    0,
);

#[derive(Default)]
pub struct Fake {
    pub time: Cell<u64>,
    pub dice: Cell<u32>,
    /// What the dice always show instead.
    pub loaded_dice: Cell<Option<u32>>,
    pub config: Cell<Option<Config>>,
    pub frontends: RefCell<HashMap<FrontendKey, Frontend>>,
    pub sets: RefCell<HashMap<u32, BackendSet>>,
    pub slots: RefCell<HashMap<SlotKey, u32>>,
    pub backends: RefCell<HashMap<u32, Backend>>,
    pub members: RefCell<HashMap<MemberKey, u32>>,
    pub node_addrs: RefCell<HashMap<Addr, NodeAddr>>,
    pub rings: RefCell<HashMap<u32, Rings>>,
    /// The places of each ring.
    pub places: RefCell<HashMap<u32, Vec<u32>>>,
    pub affinities: RefCell<HashMap<AffinityKey, Affinity>>,
    pub socks: RefCell<HashMap<SockKey, SockFrontend>>,
    pub given: RefCell<HashMap<SockKey, Given>>,
    /// Backend by socket.
    pub counted: RefCell<HashMap<u64, u32>>,
    pub endpoints: RefCell<HashMap<Addr, Endpoint>>,
    /// Prefix, its length, what it is.
    pub remotes: RefCell<Vec<(Addr, u32, Remote)>>,
    pub policies: RefCell<Vec<(PolicyKey, u32, PolicyVerdict)>>,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    /// How many entries `flows` takes; 0: any number.
    pub flow_places: Cell<usize>,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    pub uplinks: RefCell<HashMap<u32, Uplink>>,
    pub announced: RefCell<HashMap<AnnouncedKey, Announced>>,
    /// Prefixes and their lengths; those of a Service's sources count its id.
    pub source_ranges: RefCell<Vec<(SourceRangeKey, u32)>>,
    /// Prefixes, their lengths, bits of `direct::range`.
    pub no_masquerade: RefCell<Vec<(Addr, u32, u32)>>,
    pub nat: RefCell<HashMap<Tuple, Nat>>,
    /// How many entries `nat` takes; 0: any number.
    pub nat_places: Cell<usize>,
    pub budget: Cell<Budget>,
    /// Runs once, after the first new entry of `nat`: another CPU.
    #[allow(clippy::type_complexity)]
    pub between: RefCell<Option<Box<dyn FnOnce(&Fake)>>>,
    pub shortcuts: RefCell<HashMap<u32, Shortcut>>,
    pub generation: Cell<u64>,
    pub limits: RefCell<HashMap<LimitKey, Limit>>,
    pub routes: RefCell<Routes>,
    /// What they were asked, by a driver or not, and answered.
    pub answers: RefCell<BTreeMap<(bool, Answer), u64>>,
    pub segment: Cell<u32>,
    /// Devices whose driver runs the program, with their hardware addresses.
    pub xdp_devices: RefCell<HashMap<u32, [u8; 6]>>,
    pub decided: RefCell<HashMap<Tuple, Decided>>,
    /// What each Service was asked for.
    pub served: RefCell<HashMap<u32, ServiceCount>>,
    /// Sockets of the node that were given a backend elsewhere: what they asked for, and where it is.
    pub sent_away: RefCell<Vec<(SockFrontend, Addr, Port)>>,
    pub drops: RefCell<HashMap<u32, u64>>,
    pub forwards: RefCell<HashMap<u32, u64>>,
    /// Bytes of both.
    pub dropped_bytes: RefCell<HashMap<u32, u64>>,
    pub forwarded_bytes: RefCell<HashMap<u32, u64>>,
    /// Runs before each read of a backend set: somebody who changes maps at the same time.
    #[allow(clippy::type_complexity)]
    pub meanwhile: RefCell<Option<Box<dyn FnMut(&Fake)>>>,
}

/// Whether two numbers begin with the same `bits` of 128.
pub fn same_prefix(a: u128, b: u128, bits: u32) -> bool {
    bits == 0 || a >> (128 - bits) == b >> (128 - bits)
}

/// The entry with the longest matching prefix, found the plain way.
fn longest<K: Copy, V: Copy>(table: &[(K, u32, V)], bits: impl Fn(K) -> u128, key: K) -> Option<V> {
    let matches = |entry: &&(K, u32, V)| same_prefix(bits(entry.0), bits(key), entry.1);
    table
        .iter()
        .filter(matches)
        .max_by_key(|e| e.1)
        .map(|e| e.2)
}

pub fn addr_bits(addr: Addr) -> u128 {
    u128::from_be_bytes(addr.octets())
}

pub fn policy_bits(key: PolicyKey) -> u128 {
    let mut bits = u128::from(key.endpoint()) << 96;
    bits |= u128::from(key.direction()) << 88;
    bits |= u128::from(key.identity()) << 32;
    bits |= u128::from(key.proto()) << 24;
    bits | u128::from(key.port().get())
}

impl Env for Fake {
    fn now(&self) -> u64 {
        self.time.get()
    }
    fn random(&self) -> u32 {
        if let Some(loaded) = self.loaded_dice.get() {
            return loaded;
        }
        self.dice.set(
            self.dice
                .get()
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223),
        );
        self.dice.get()
    }
    fn config(&self) -> Option<Config> {
        self.config.get()
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.borrow().get(key).copied()
    }
    fn backend_set(&self, id: u32) -> Option<BackendSet> {
        let set = self.sets.borrow().get(&id).copied();
        let meanwhile = self.meanwhile.borrow_mut().take();
        if let Some(mut change) = meanwhile {
            change(self);
            *self.meanwhile.borrow_mut() = Some(change);
        }
        set
    }
    fn backend_slot(&self, key: &SlotKey) -> Option<u32> {
        self.slots.borrow().get(key).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.borrow().get(&id).copied()
    }
    fn is_member(&self, key: &MemberKey) -> bool {
        self.members.borrow().contains_key(key)
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.borrow().get(addr).copied()
    }
    fn rings(&self, set: u32) -> Option<Rings> {
        self.rings.borrow().get(&set).copied()
    }
    fn ring_backend(&self, ring: u32, place: u32) -> Option<u32> {
        self.places
            .borrow()
            .get(&ring)
            .map(|places| places[place as usize])
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *value);
    }
    fn sock_frontend(&self, key: &SockKey) -> Option<SockFrontend> {
        self.socks.borrow().get(key).copied()
    }
    fn set_sock_frontend(&self, key: &SockKey, value: &SockFrontend) -> bool {
        self.socks.borrow_mut().insert(*key, *value);
        true
    }
    fn remove_sock_frontend(&self, key: &SockKey) {
        self.socks.borrow_mut().remove(key);
    }
    fn given(&self, key: &SockKey) -> Option<Given> {
        self.given.borrow().get(key).copied()
    }
    fn set_given(&self, key: &SockKey, value: &Given) {
        self.given.borrow_mut().insert(*key, *value);
    }
    fn remove_given(&self, key: &SockKey) {
        self.given.borrow_mut().remove(key);
    }
    fn connections(&self, backend: u32) -> u64 {
        let counted = self.counted.borrow();
        counted.values().filter(|b| **b == backend).count() as u64
    }
    fn count_connection(&self, cookie: u64, backend: u32) {
        self.counted.borrow_mut().insert(cookie, backend);
    }
    fn end_connection(&self, cookie: u64) {
        self.counted.borrow_mut().remove(&cookie);
    }
    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        self.endpoints.borrow().get(addr).copied()
    }
    fn remote(&self, addr: &Addr) -> Option<Remote> {
        longest(&self.remotes.borrow(), addr_bits, *addr)
    }
    fn policy(&self, key: &PolicyKey) -> Option<PolicyVerdict> {
        longest(&self.policies.borrow(), policy_bits, *key)
    }
    fn with_flow<R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.flows.borrow_mut().get_mut(key).map(f)
    }
    fn set_flow(&self, key: &FlowKey, value: &Flow) -> bool {
        let mut flows = self.flows.borrow_mut();
        let places = self.flow_places.get();
        if places != 0 && flows.len() >= places && !flows.contains_key(key) {
            return false;
        }
        flows.insert(*key, *value);
        true
    }
    fn with_shortcut<R>(&self, place: u32, f: impl FnOnce(&mut Shortcut) -> R) -> Option<R> {
        let mut shortcuts = self.shortcuts.borrow_mut();
        Some(f(shortcuts.entry(place).or_insert(NO_SHORTCUT)))
    }
    fn generation(&self) -> u64 {
        self.generation.get()
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *value);
    }
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        self.uplinks.borrow().get(&ifindex).copied()
    }
    fn announced(&self, key: &AnnouncedKey) -> Option<Announced> {
        self.announced.borrow().get(key).copied()
    }
    fn is_source_allowed(&self, key: &SourceRangeKey) -> bool {
        let (service, addr) = (key.service, addr_bits(key.addr));
        self.source_ranges.borrow().iter().any(|(range, bits)| {
            range.service == service && same_prefix(addr_bits(range.addr), addr, bits - 32)
        })
    }
    fn range(&self, addr: &Addr) -> u32 {
        longest(&self.no_masquerade.borrow(), addr_bits, *addr).unwrap_or(0)
    }
    fn with_nat<R>(&self, key: &Tuple, f: impl FnOnce(&mut Nat) -> R) -> Option<R> {
        self.nat.borrow_mut().get_mut(key).map(f)
    }
    fn set_nat(&self, key: &Tuple, value: &Nat, only_new: bool) -> Stored {
        let mut nat = self.nat.borrow_mut();
        let exists = nat.contains_key(key);
        if only_new && exists {
            return Stored::Exists;
        }
        if !exists && self.nat_places.get() != 0 && nat.len() >= self.nat_places.get() {
            return Stored::Full;
        }
        nat.insert(*key, *value);
        drop(nat);
        let between = self.between.borrow_mut().take();
        if let Some(other) = between {
            other(self);
        }
        Stored::Written
    }
    fn remove_nat(&self, key: &Tuple) {
        self.nat.borrow_mut().remove(key);
    }
    fn with_scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        let mut scratch = Scratch::EMPTY;
        Some(f(&mut scratch))
    }
    fn with_budget<R>(&self, f: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        let mut budget = self.budget.get();
        let result = f(&mut budget);
        self.budget.set(budget);
        Some(result)
    }
    fn served(&self, service: u32, refused: bool) {
        let mut all = self.served.borrow_mut();
        let count = all.entry(service).or_insert(ServiceCount {
            flows: 0,
            refused: 0,
        });
        if refused {
            count.refused += 1;
        } else {
            count.flows += 1;
        }
    }
    fn sent_away(&self, _: &Socket, asked: &SockFrontend, to: &Addr, port: Port) {
        self.sent_away.borrow_mut().push((*asked, *to, port));
    }
    fn with_limit<R>(&self, key: &LimitKey, f: impl FnOnce(&mut Limit) -> R) -> Option<R> {
        self.limits.borrow_mut().get_mut(key).map(f)
    }
    fn dropped(&self, reason: DropReason, bytes: u32) {
        count(&self.drops, reason as u32, 1);
        count(&self.dropped_bytes, reason as u32, bytes);
    }
    fn forwarded(&self, path: u32, bytes: u32) {
        count(&self.forwards, path, 1);
        count(&self.forwarded_bytes, path, bytes);
    }
}

fn count(counters: &RefCell<HashMap<u32, u64>>, number: u32, more: u32) {
    *counters.borrow_mut().entry(number).or_default() += u64::from(more);
}

/// A packet in memory, whose checksums are all complete.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(pub &'a RefCell<Vec<u8>>);

impl Bytes<'_> {
    fn fix(&self, offset: u32, diff: u32, zero_is_none: bool) -> bool {
        let at = offset as usize;
        let mut bytes = self.0.borrow_mut();
        let Some(field) = bytes.get_mut(at..at + 2) else {
            return false;
        };
        let old = u16::from_ne_bytes([field[0], field[1]]);
        if zero_is_none && old == 0 {
            return true;
        }
        let mut new = replaced(old, diff);
        if zero_is_none && new == 0 {
            new = 0xffff;
        }
        field.copy_from_slice(&new.to_ne_bytes());
        true
    }
}

/// As the kernel's helpers do it (`csum_replace_by_diff`): of the two zeros of one's complement they
/// always write the same one.
fn replaced(checksum: u16, diff: u32) -> u16 {
    let (sum, carry) = diff.overflowing_add(!u32::from(checksum));
    let sum = sum.wrapping_add(u32::from(carry));
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

impl Resize for Bytes<'_> {
    fn set_len(&self, len: u32) -> bool {
        self.0.borrow_mut().resize(len as usize, 0);
        true
    }

    fn make_room(&self, bytes: u32) -> bool {
        let room = vec![0; bytes as usize];
        self.0.borrow_mut().splice(14..14, room);
        true
    }
}

impl Wrap for Bytes<'_> {
    fn put_in(&self, v4: bool) -> bool {
        self.make_room(if v4 { 20 } else { 40 })
    }

    fn take_out(&self, v4: bool) -> bool {
        let header = if v4 { 20 } else { 40 };
        self.0.borrow_mut().drain(14..14 + header);
        true
    }
}

impl Packet for Bytes<'_> {
    fn len(&self) -> u32 {
        self.0.borrow().len() as u32
    }

    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let bytes = self.0.borrow();
        let at = offset as usize;
        let from = bytes.get(at..at.checked_add(size_of::<T>())?)?;
        // SAFETY: `from` has the type's size, and any bytes are a T.
        Some(unsafe { from.as_ptr().cast::<T>().read_unaligned() })
    }

    fn store<T: Plain>(&self, offset: u32, value: &T) -> bool {
        let mut bytes = self.0.borrow_mut();
        let at = offset as usize;
        let Some(to) = bytes.get_mut(at..at + size_of::<T>()) else {
            return false;
        };
        // SAFETY: `to` has the type's size.
        unsafe { to.as_mut_ptr().cast::<T>().write_unaligned(*value) };
        true
    }

    fn l3_checksum(&self, offset: u32, diff: u32) -> bool {
        self.fix(offset, diff, false)
    }

    fn l4_checksum(&self, offset: u32, diff: u32, _pseudo: bool, zero_is_none: bool) -> bool {
        self.fix(offset, diff, zero_is_none)
    }
}
