//! Random contents of the maps. Not all of it is what user space would write: the programs must agree on nonsense too.

use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};
use xebec_ebpf_abi::{direct::range, *};

use super::{
    entries::Entry,
    world::{
        self, BALANCER, CLIENT, CLUSTER_IP, FAR_PODS, NARROW, NODE, OTHER_NODE, OWN, PODS, REMOTE_POD, SECOND, UPLINK, addr, bits, of, port,
    },
};

/// Ids that sets, backends, rings, Services and identities are taken from.
const SETS: u32 = 5;
const BACKENDS: u32 = 8;
const RINGS: u32 = 4;
const SERVICES: u32 = 3;
const IDENTITIES: &[u32] = &[identity::ANY, identity::HOST, identity::WORLD, 256, 257];

pub struct States<'a> {
    pub rng: &'a mut SmallRng,
    /// The time entries expire by.
    pub now: u64,
}

/// The family that most of what has this number is of.
fn is_v4(number: u32) -> bool {
    number % 2 == 1
}

impl States<'_> {
    pub fn all(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.node(&mut entries);
        self.pods(&mut entries);
        self.services(&mut entries);
        for _ in 0..self.rng.random_range(0..12) {
            entries.push(if self.rng.random() { self.flow() } else { self.nat() });
        }
        entries
    }

    /// One that changes what there is.
    pub fn change(&mut self) -> Entry {
        match self.rng.random_range(0..10) {
            0 => {
                let id = self.rng.random_range(1..=BACKENDS);
                self.backend(id)
            }
            1 => self.set(),
            2 => self.slot(),
            3 => self.member(),
            4 => self.frontend(),
            5 | 6 => self.endpoint(),
            7 => self.policy(),
            8 => self.flow(),
            _ => self.nat(),
        }
    }

    fn v4(&mut self) -> bool {
        self.rng.random()
    }

    /// A number of a set, a backend or a ring of a family: odd ones are of IPv4. Some are of neither.
    fn number(&mut self, most: u32, v4: bool) -> u32 {
        if self.rng.random_ratio(1, 16) {
            return self.rng.random_range(0..=most);
        }
        let numbers: Vec<u32> = (1..=most).filter(|number| is_v4(*number) == v4).collect();
        *numbers.choose(self.rng).expect("some")
    }

    fn node(&mut self, entries: &mut Vec<Entry>) {
        for v4 in [true, false] {
            if !self.rng.random_ratio(1, 10) {
                entries.push(Entry::NodeAddr(of(NODE, v4).into(), NodeAddr { flags: bits(self.rng, 3) | 1 }));
            }
            self.ranges(v4, entries);
            if self.rng.random() {
                let key = AnnouncedKey { addr: of(BALANCER, v4).into(), ifindex: 1 };
                entries.push(Entry::Announced(key, Announced::new([2, 0, 0, 0, 0, 9])));
            }
        }
        // The first is where `BPF_PROG_TEST_RUN` makes packets of tc.
        for device in [1, UPLINK, SECOND] {
            if self.rng.random_ratio(1, 10) {
                continue;
            }
            let mut of_family = |v4| if self.rng.random_ratio(1, 8) { Addr::ANY } else { of(NODE, v4).into() };
            let (v4, v6) = (of_family(true), of_family(false));
            let mtu = *[1500, 1500, 9000, u32::from(NARROW), 90, 0].choose(self.rng).expect("some");
            entries.push(Entry::Uplink(device, Uplink { v4, v6, mtu }));
        }
        for device in [UPLINK, SECOND] {
            if !self.rng.random_ratio(1, 10) {
                let mac = if self.rng.random_ratio(1, 10) { [2, 0, 0, 0, 9, 9] } else { OWN };
                entries.push(Entry::XdpDevice(device, mac));
            }
        }
        for _ in 0..self.rng.random_range(0..6) {
            let v4 = self.v4();
            let remote = Remote { identity: *IDENTITIES.choose(self.rng).expect("some"), flags: bits(self.rng, Remote::HOST) };
            let length = if self.rng.random() { 128 } else { self.rng.random_range(0..=128) };
            entries.push(Entry::Remote(addr(self.rng, v4), length, remote));
        }
    }

    /// Whose addresses are whose: mostly as they are.
    fn ranges(&mut self, v4: bool, entries: &mut Vec<Entry>) {
        let pods = if v4 { 96 + 16 } else { 118 };
        for (at, length, whose) in
            [(REMOTE_POD, pods, range::PODS), (NODE, 128, range::NODE), (OTHER_NODE, 128, range::NODE), (CLIENT, 128, 0)]
        {
            let whose = if self.rng.random_ratio(1, 10) { bits(self.rng, range::PODS | range::NODE) } else { whose };
            let wanted = if whose == 0 { self.rng.random_ratio(1, 20) } else { !self.rng.random_ratio(1, 5) };
            if wanted {
                entries.push(Entry::Range(of(at, v4).into(), length, range::INSIDE | whose));
            }
        }
    }

    fn pods(&mut self, entries: &mut Vec<Entry>) {
        for (pod, id) in PODS.iter().zip(1..) {
            let endpoint = self.endpoint_value(id);
            for v4 in [true, false] {
                if !self.rng.random_ratio(1, 12) {
                    entries.push(Entry::Endpoint(of(*pod, v4).into(), endpoint));
                }
            }
        }
        // Nothing passes, for longer than any machine runs, or all that comes.
        let limits = [Limit { rate: 1, burst: 1, until: u64::MAX / 2 }, Limit { rate: u64::MAX, burst: 1, until: 0 }];
        for endpoint in 1..=2 {
            let key = LimitKey { endpoint, direction: self.rng.random_range(0..=1) };
            entries.push(Entry::Limit(key, *limits.choose(self.rng).expect("some")));
        }
        for _ in 0..self.rng.random_range(0..16) {
            entries.push(self.policy());
        }
    }

    fn services(&mut self, entries: &mut Vec<Entry>) {
        for id in 1..=BACKENDS {
            if !self.rng.random_ratio(1, 8) {
                entries.push(self.backend(id));
            }
        }
        for set in 1..SETS {
            if self.rng.random_ratio(1, 12) {
                continue;
            }
            let count = self.count();
            entries.push(Entry::Set(set, BackendSet { count, flags: bits(self.rng, BackendSet::DROP_WHEN_EMPTY) }));
            for slot in 0..count {
                let backend = self.number(BACKENDS, is_v4(set));
                entries.push(Entry::Slot(SlotKey { set, slot }, backend));
                if !self.rng.random_ratio(1, 8) {
                    entries.push(Entry::Member(MemberKey { set, backend }));
                }
            }
        }
        for _ in 0..self.rng.random_range(6..24) {
            entries.push(self.frontend());
        }
        for v4 in [true, false] {
            if self.rng.random() {
                let nothing = Frontend { service: 0, internal: 0, external: 0, flags: 0, affinity_timeout: 0 };
                entries.push(Entry::Frontend(FrontendKey::address(of(CLUSTER_IP, v4).into()), nothing));
            }
        }
        for _ in 0..self.rng.random_range(0..4) {
            let (v4, service) = (self.v4(), self.rng.random_range(0..SERVICES));
            let key = SourceRangeKey { service, addr: addr(self.rng, v4) };
            entries.push(Entry::SourceRange(key, 32 + self.rng.random_range(90..=128)));
        }
        for _ in 0..self.rng.random_range(0..3) {
            entries.push(self.affinity());
        }
        if self.rng.random() {
            self.rings(entries);
        }
    }

    fn rings(&mut self, entries: &mut Vec<Entry>) {
        let mut sizes = vec![0; RINGS as usize + 1];
        for ring in 1..=RINGS {
            let size: u32 = *[7, 61, 600].choose(self.rng).expect("some");
            sizes[ring as usize] = size;
            let mut places: Vec<u32> = (0..size).map(|_| self.number(BACKENDS, is_v4(ring))).collect();
            places.resize(size.next_multiple_of(Places::COUNT) as usize, 0);
            entries.push(Entry::Places(ring, places));
        }
        for set in 1..SETS {
            let mut ring = || match self.rng.random_range(0..4) {
                0 => Ring::default(),
                1 => Ring { number: self.number(BACKENDS, is_v4(set)), size: 1 },
                _ => {
                    let number = self.number(RINGS, is_v4(set)).max(1);
                    Ring { number, size: sizes[number as usize] }
                }
            };
            let (current, previous) = (ring(), ring());
            let until = if self.rng.random() { 0 } else { u64::MAX };
            entries.push(Entry::Rings(set, Rings { current, previous, until }));
        }
    }

    fn backend(&mut self, id: u32) -> Entry {
        let v4 = is_v4(id) != self.rng.random_ratio(1, 24);
        let here = [PODS[0], PODS[1], NODE];
        let there = [REMOTE_POD, REMOTE_POD, OTHER_NODE, *FAR_PODS.choose(self.rng).expect("some")];
        let is_local = self.rng.random();
        let address = *if is_local { &here[..] } else { &there[..] }.choose(self.rng).expect("some");
        let flags = if is_local != self.rng.random_ratio(1, 20) { Backend::LOCAL } else { 0 };
        Entry::Backend(id, Backend::new(of(address, v4).into(), port(self.rng), flags))
    }

    /// Of a set's backends.
    fn count(&mut self) -> u32 {
        *[0, 1, 2, 3, 3].choose(self.rng).expect("some")
    }

    fn set(&mut self) -> Entry {
        let value = BackendSet { count: self.count(), flags: bits(self.rng, BackendSet::DROP_WHEN_EMPTY) };
        Entry::Set(self.rng.random_range(1..SETS), value)
    }

    fn slot(&mut self) -> Entry {
        let key = SlotKey { set: self.rng.random_range(1..SETS), slot: self.rng.random_range(0..3) };
        Entry::Slot(key, self.number(BACKENDS, is_v4(key.set)))
    }

    fn member(&mut self) -> Entry {
        Entry::Member(MemberKey { set: self.rng.random_range(1..SETS), backend: self.rng.random_range(1..=BACKENDS) })
    }

    fn frontend(&mut self) -> Entry {
        let v4 = self.v4();
        let at = if self.rng.random_ratio(1, 3) {
            addr(self.rng, v4)
        } else {
            let places = [of(CLUSTER_IP, v4).into(), of(BALANCER, v4).into(), of(NODE, v4).into()];
            let any = if v4 { Addr::ANY_V4 } else { Addr::ANY };
            *[places[0], places[1], places[2], any].choose(self.rng).expect("some")
        };
        let all =
            Frontend::AFFINITY | Frontend::SOURCE_RANGES | Frontend::EXTERNAL | Frontend::RING | Frontend::RING_INSIDE | Frontend::DIRECT;
        let mut flags = bits(self.rng, all);
        // Most are open to all, and to outside.
        if self.rng.random_ratio(3, 4) {
            flags = flags & !Frontend::SOURCE_RANGES | Frontend::EXTERNAL;
        }
        let value = Frontend {
            service: self.rng.random_range(0..SERVICES),
            internal: self.number(SETS - 1, v4),
            external: self.number(SETS - 1, v4),
            flags,
            affinity_timeout: *[0, 3600].choose(self.rng).expect("some"),
        };
        let port = if self.rng.random_ratio(3, 4) { Port::new(80) } else { port(self.rng) };
        let proto =
            if self.rng.random_ratio(1, 6) { world::proto(self.rng) } else { *[proto::TCP, proto::UDP].choose(self.rng).expect("some") };
        Entry::Frontend(FrontendKey::new(at, port, proto), value)
    }

    fn affinity(&mut self) -> Entry {
        let (v4, set) = (self.v4(), self.rng.random_range(1..SETS));
        let last_used = if self.rng.random() { self.now } else { 0 };
        let value = Affinity::new(self.rng.random_range(0..=BACKENDS), last_used);
        Entry::Affinity(AffinityKey::address(addr(self.rng, v4), set), value)
    }

    fn endpoint_value(&mut self, id: u32) -> Endpoint {
        let mut flags = bits(self.rng, Endpoint::ISOLATE_INGRESS | Endpoint::ISOLATE_EGRESS | Endpoint::DIRECT);
        if self.rng.random_ratio(1, 6) {
            flags |= bits(self.rng, Endpoint::LIMIT_INGRESS | Endpoint::LIMIT_EGRESS);
        }
        Endpoint {
            id,
            ifindex: if self.rng.random_ratio(1, 8) { 2 } else { 1 },
            pod_mac: [2, 0, 0, 0, 1, id as u8],
            host_mac: [2, 0, 0, 0, 2, id as u8],
            flags,
            epoch: self.rng.random_range(0..3),
            netns: NetnsCookie::new(self.rng.random_range(0..3)),
        }
    }

    fn endpoint(&mut self) -> Entry {
        let (v4, id) = (self.v4(), self.rng.random_range(1..=2));
        Entry::Endpoint(of(PODS[id as usize - 1], v4).into(), self.endpoint_value(id))
    }

    fn policy(&mut self) -> Entry {
        let key = PolicyKey::new(
            self.rng.random_range(1..=2),
            self.rng.random_range(0..=1),
            *IDENTITIES.choose(self.rng).expect("some"),
            world::proto(self.rng),
            port(self.rng),
        );
        let length = match self.rng.random_range(0..4) {
            0 => PolicyKey::ANY_PROTO,
            1 => PolicyKey::ANY_PORT,
            2 => self.rng.random_range(PolicyKey::ANY_PORT..=PolicyKey::EXACT),
            _ => PolicyKey::EXACT,
        };
        let verdict = if self.rng.random_ratio(1, 4) { PolicyVerdict::DENY } else { PolicyVerdict::ALLOW };
        Entry::Policy(key, length, PolicyVerdict { verdict, rule: 0 })
    }

    fn expires(&mut self) -> u64 {
        if self.rng.random_ratio(1, 4) { 1 } else { self.now + 7200 * 1_000_000_000 }
    }

    fn flow(&mut self) -> Entry {
        let v4 = self.v4();
        let key = FlowKey::new(self.rng.random_range(1..=2), port(self.rng), addr(self.rng, v4), port(self.rng), world::proto(self.rng));
        let state = bits(self.rng, 0x3f) as u8;
        Entry::Flow(key, Flow::new(self.rng.random_range(0..=1), state, self.rng.random_range(0..3), self.expires()))
    }

    fn tuple(&mut self, v4: bool, proto: u8) -> Tuple {
        Tuple::new(addr(self.rng, v4), port(self.rng), addr(self.rng, v4), port(self.rng), proto)
    }

    fn nat(&mut self) -> Entry {
        let (v4, proto) = (self.v4(), world::proto(self.rng));
        let (from, to) = (self.tuple(v4, proto), self.tuple(v4, proto));
        let (backend, set) = (self.rng.random_range(0..=BACKENDS), self.rng.random_range(0..SETS));
        let flags = bits(self.rng, u32::from(Nat::REPLY | Nat::MASQUERADE | Nat::BOTH | Nat::DIRECT));
        let mut value = Nat::new(to, flags as u16, backend, set, self.expires());
        value.state = bits(self.rng, 0xf) as u16;
        Entry::Nat(from, value)
    }
}
