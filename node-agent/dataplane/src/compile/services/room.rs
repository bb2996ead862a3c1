//! Room in the maps of Services. A Service that would not fit is refused whole, before it is half there; one that is there
//! and outgrows the maps keeps as many endpoints as it had.

use std::collections::{BTreeMap, BTreeSet};

use xebec_ebpf_abi::{map, proto};

use super::{Installed, Owner, PortId, Services};
use crate::compile::expand::{BackendKey, PortSpec, Role};
use crate::compile::input::Key;

/// Entries of the maps of Services, in the order of [`MAPS`].
pub type Entries = [usize; 6];

/// Where [`map::BACKENDS`] is among them.
const BACKENDS: usize = 4;

/// The maps that fill up with Services. Rings have a rule of their own: without one a Service still works.
pub const MAPS: [&str; 6] = [map::FRONTENDS, map::BACKEND_SETS, map::BACKEND_SLOTS, map::SET_MEMBERS, map::BACKENDS, map::SOURCE_RANGES];

/// Why a Service is not served as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The map without room.
    pub map: &'static str,
    /// Entries that would be needed in it.
    pub needed: usize,
    /// Entries it has for everybody.
    pub room: usize,
    /// It is served as before, with as many endpoints as it had.
    pub is_kept: bool,
}

impl Refusal {
    /// For the operator.
    fn text(&self) -> String {
        let Refusal { map, needed, room, is_kept } = self;
        let served =
            if *is_kept { "it keeps the ports and no more than the number of endpoints it had" } else { "it is not served on this node" };
        format!(
            "it does not fit: the map {map} would need {needed} entries and has {room}; {served} (start the agent with a higher --max-map-entries, or --map-entries {map}=N, or use fewer Services and endpoints)"
        )
    }
}

/// A part of each map stays free: what replaces an entry is written before that one is deleted.
fn usable(places: usize) -> usize {
    places - (places / 32).min(1024)
}

/// The greatest index into so many places.
fn highest(places: usize) -> Option<u32> {
    u32::try_from(places).ok().map(|places| places.saturating_sub(1).max(1))
}

/// Whether an owner has more in one of the maps.
fn is_less_somewhere(now: &Entries, then: &Entries) -> bool {
    now.iter().zip(then).any(|(now, then)| now < then)
}

impl Services {
    /// How many entries the maps may have at most, in the order of [`MAPS`], and how many backends there are places for now.
    pub fn set_room(&mut self, most: Entries, backends: usize) {
        self.room = Some(most.map(usable));
        self.most_backend = highest(backends.min(most[BACKENDS]));
        self.last_backend = highest(most[BACKENDS]);
    }

    /// Numbers of backends are indices into an array, and begin again before they leave it. Where there are to be more
    /// backends than that, it will grow with the map of backends.
    fn raise_numbers(&mut self, backends: usize) {
        let Some(most) = self.most_backend.filter(|most| backends > *most as usize && Some(*most) < self.last_backend) else {
            return;
        };
        let wanted = backends.max(self.expected()[BACKENDS]);
        let raised = highest(wanted.saturating_add(1).checked_next_power_of_two().unwrap_or(usize::MAX));
        self.most_backend = raised.min(self.last_backend).max(Some(most));
    }

    /// Entries there will be, as far as can be told without compiling what has not been compiled yet.
    pub fn expected(&self) -> Entries {
        let mut expected = self.used();
        for owner in self.dirty.iter().filter(|owner| !self.installed.contains_key(owner)) {
            let Owner::Service(key) = owner else { continue };
            let Some(service) = self.services.get(key) else { continue };
            let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
            let backends: usize = slices.map(|slice| slice.endpoints.len() * slice.ports.len()).sum();
            let local = usize::from(service.internal_local || service.external_local);
            let addresses = service.cluster_ips.len() + service.external_ips.len() + service.load_balancer_ips.len();
            let has_members = service.affinity.is_some() || service.ports.iter().any(|port| port.proto == proto::UDP);
            let ports = service.ports.len();
            let frontends = addresses * ports + service.cluster_ips.len() + service.ports.iter().filter(|p| p.node_port.is_some()).count();
            let more = [
                frontends,
                ports * (1 + local),
                backends,
                if has_members { backends } else { 0 },
                backends,
                service.source_ranges.len() * ports,
            ];
            expected = add(&expected, &more);
        }
        expected
    }

    /// Services there is no room for, and why.
    pub(super) fn refusals(&self) -> BTreeMap<Key, String> {
        let of = |(owner, refusal): (&Owner, &Refusal)| match owner {
            Owner::Service(key) => Some((Key::clone(key), refusal.text())),
            Owner::Sandbox(_) => None,
        };
        self.refused.iter().filter_map(of).collect()
    }

    fn used(&self) -> Entries {
        let t = &self.tables;
        let (frontends, sets) = (t.frontends.want().len(), t.sets.want().len());
        [frontends, sets, self.slots, self.members, t.backends.want().len(), t.source_ranges.want().len()]
    }

    /// What of an owner's ports is served: all of them, or, where the maps have no room, what it had or nothing.
    pub(super) fn admit(&mut self, owner: &Owner, specs: Vec<PortSpec>) -> Vec<PortSpec> {
        let Some(room) = self.room.filter(|_| !specs.is_empty()) else {
            self.refused.remove(owner);
            return specs;
        };
        let used = self.used();
        let fits = |needed: &Entries| needed.iter().zip(&room).all(|(needed, room)| needed <= room);
        // Counting exactly is only worth its time when it gets tight.
        let at_most = add(&used, &entries(&specs, &mut |_| true));
        self.raise_numbers(at_most[BACKENDS]);
        if fits(&at_most) {
            self.refused.remove(owner);
            return specs;
        }
        let needed = self.needed(owner, &used, &specs);
        if fits(&needed) {
            self.refused.remove(owner);
            return specs;
        }
        let full = (0..MAPS.len()).find(|map| needed[*map] > room[*map]).unwrap_or(0);
        let specs = self.kept(owner, specs);
        let refusal = Refusal { map: MAPS[full], needed: needed[full], room: room[full], is_kept: !specs.is_empty() };
        self.refused.insert(owner.clone(), refusal);
        self.refused_at = used;
        specs
    }

    /// Whoever was refused, or has no ring, has another chance when something has gone since.
    pub(super) fn retry_refused(&mut self) {
        let used = self.used();
        if !self.refused.is_empty() && is_less_somewhere(&used, &self.refused_at) {
            self.dirty.extend(self.refused.keys().cloned());
        }
        self.refused_at = used;
        let parts = self.tables.rings.parts();
        if !self.without_ring.is_empty() && parts < self.ringless_at {
            let is_without = |port: &Installed| [port.ids.cluster, port.ids.local].iter().any(|set| self.without_ring.contains(set));
            let without = self.installed.iter().filter(|(_, ports)| ports.iter().any(|(_, port)| is_without(port)));
            let without: Vec<Owner> = without.map(|(owner, _)| owner.clone()).collect();
            self.dirty.extend(without);
        }
        self.ringless_at = parts;
    }

    fn installed_of(&self, owner: &Owner) -> &[(PortId, Installed)] {
        self.installed.get(owner).map_or(&[], |ports| ports)
    }

    /// The entries of everybody with these ports in the place of those the owner has.
    fn needed(&self, owner: &Owner, used: &Entries, specs: &[PortSpec]) -> Entries {
        let old = self.installed_of(owner);
        let mut had = BTreeMap::<u32, u32>::new();
        old.iter().flat_map(|(_, port)| port.backends.iter()).for_each(|id| *had.entry(*id).or_default() += 1);
        let mine = |key: &BackendKey| self.backends.get(key).is_none_or(|(id, users)| had.get(id) == Some(users));
        let new = entries(specs, &mut |key| mine(key));
        let alone = |id: &u32| self.tables.backends.want().get(id).map(super::backend_key).is_some_and(|key| mine(&key));
        let set = |id: u32| self.tables.sets.want().get(&id);
        let sets = || old.iter().flat_map(|(_, port)| [port.ids.cluster, port.ids.local]).filter_map(set);
        let claimed_alone = |key: &&xebec_ebpf_abi::FrontendKey| self.claims.get(key).is_some_and(|claims| claims.len() == 1);
        let frontends: BTreeSet<_> = old.iter().flat_map(|(_, port)| port.frontends.iter()).filter(claimed_alone).collect();
        let gone = [
            frontends.len(),
            sets().count(),
            sets().map(|s| s.slots.len()).sum(),
            sets().map(|s| s.members.len()).sum(),
            had.keys().filter(|id| alone(id)).count(),
            old.iter().map(|(_, port)| port.source_ranges.len()).sum(),
        ];
        let mut needed = add(used, &new);
        needed.iter_mut().zip(gone).for_each(|(needed, gone)| *needed = needed.saturating_sub(gone));
        needed
    }

    /// The ports an owner has already, with the backends they have first and no more of them than they have.
    fn kept(&self, owner: &Owner, specs: Vec<PortSpec>) -> Vec<PortSpec> {
        let old = self.installed_of(owner);
        let keep = |mut spec: PortSpec| {
            let (_, had) = old.iter().find(|(id, _)| *id == spec.id)?;
            let is_had = |key: &BackendKey| self.backends.get(key).is_some_and(|(id, _)| had.backends.contains(id));
            let cut = |set: &mut BTreeSet<BackendKey>, id: u32| {
                let count = self.tables.sets.want().get(&id).map_or(0, |s| s.slots.len());
                let (first, rest): (Vec<BackendKey>, Vec<BackendKey>) = set.iter().copied().partition(is_had);
                *set = first.into_iter().chain(rest).take(count).collect();
            };
            cut(&mut spec.cluster.backends, had.ids.cluster);
            if let Some(local) = &mut spec.local {
                cut(&mut local.backends, had.ids.local);
            }
            spec.draining.retain(is_had);
            spec.frontends.retain(|f| had.frontends.contains(&f.key));
            // Fewer sources than are allowed get in, never more.
            spec.source_ranges.truncate(had.source_ranges.len());
            Some(spec)
        };
        specs.into_iter().filter_map(keep).collect()
    }
}

fn add(a: &Entries, b: &Entries) -> Entries {
    std::array::from_fn(|map| a[map] + b[map])
}

/// The entries of ports, where `counts` tells which backends are counted.
fn entries(specs: &[PortSpec], counts: &mut dyn FnMut(&BackendKey) -> bool) -> Entries {
    let mut frontends = BTreeSet::new();
    let mut backends = BTreeSet::new();
    let mut entries = [0; 6];
    for spec in specs {
        frontends.extend(spec.frontends.iter().map(|f| f.key));
        let sets = [Role::Cluster, Role::Local].into_iter().filter_map(|role| spec.set(role));
        for set in sets {
            entries[1] += 1;
            entries[2] += set.backends.len();
            entries[3] += if spec.has_members() { set.backends.len() } else { 0 };
            backends.extend(&set.backends);
        }
        backends.extend(&spec.draining);
        entries[5] += spec.source_ranges.len();
    }
    entries[0] = frontends.len();
    entries[4] = backends.into_iter().filter(|key| counts(key)).count();
    entries
}

impl PortSpec {
    /// Whether it is asked who is a member of its sets: affinity counts, and so does a UDP flow, only while its backend is one.
    pub(super) fn has_members(&self) -> bool {
        self.affinity.is_some() || self.id.1 == proto::UDP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::expand::NodeFacts;
    use crate::compile::input;
    use crate::compile::model::Kernel;
    use crate::compile::state::State;

    /// Maps with so many backends and slots; of all else there is enough.
    fn state(backends: usize) -> State {
        let mut state = State::default();
        state.services.set_room([1000, 1000, backends, 1000, backends, 1000], backends);
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        state
    }

    fn set(state: &mut State, name: &str, endpoints: std::ops::Range<u8>) {
        let key = Key::new("ns", name);
        let n = name.bytes().next().unwrap_or(0);
        let service = serde_json::json!({"metadata": {"namespace": "ns", "name": name}, "spec": {
            "clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}]}});
        let endpoints: Vec<_> = endpoints.map(|e| serde_json::json!({"addresses": [format!("10.244.{n}.{e}")]})).collect();
        let slice = serde_json::json!({"metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints});
        state.services.set_service(key.clone(), input::service(&serde_json::from_value(service).expect("a Service")));
        state.services.set_slice(key, input::slice(serde_json::from_value(slice).expect("an EndpointSlice")));
    }

    fn remove(state: &mut State, name: &str) {
        state.services.set_service(Key::new("ns", name), None);
        state.services.set_slice(Key::new("ns", name), None);
    }

    fn slots(kernel: &Kernel) -> Vec<usize> {
        let mut counts: Vec<usize> = kernel.0.sets.values().map(|s| s.slots.len()).collect();
        counts.sort_unstable();
        counts
    }

    fn refused(state: &State) -> Vec<String> {
        state.services.refusals().keys().map(Key::to_string).collect()
    }

    #[test]
    fn what_does_not_fit_is_refused_whole_and_retried_when_there_is_room() {
        let (mut state, mut kernel) = (state(30), Kernel::default());
        set(&mut state, "a", 0..20);
        set(&mut state, "b", 0..20);
        set(&mut state, "c", 0..10);
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![10, 20], vec!["ns/b".to_owned()]));
        assert_eq!((kernel.0.frontends.len(), kernel.0.backends.len()), (4, 30), "nothing of it is there");
        let text = &state.services.refusals()[&Key::new("ns", "b")];
        assert!(
            text.contains("BACKEND_SLOTS would need 40 entries and has 30") && text.contains("--map-entries BACKEND_SLOTS=N"),
            "{text}"
        );
        // Something went, but not enough; then enough.
        set(&mut state, "c", 0..5);
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![5, 20], vec!["ns/b".to_owned()]));
        remove(&mut state, "a");
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![5, 20], vec![]));
        assert!(kernel.0.backends.values().all(|b| b.addr.octets()[14] != b'a'), "the room is b's");
    }

    #[test]
    fn a_service_that_outgrows_the_maps_keeps_what_it_can_and_loses_who_is_gone() {
        let (mut state, mut kernel) = (state(30), Kernel::default());
        set(&mut state, "a", 0..20);
        set(&mut state, "b", 0..5);
        kernel.follow(&mut state, |_| ());
        set(&mut state, "a", 10..50);
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![5, 20], vec!["ns/a".to_owned()]));
        assert!(state.services.refusals()[&Key::new("ns", "a")].contains("it keeps the ports"));
        let of_a: BTreeSet<u8> = kernel.0.backends.values().map(|b| b.addr.octets()).filter(|o| o[14] == b'a').map(|o| o[15]).collect();
        assert!((10..20).all(|e| of_a.contains(&e)) && of_a.iter().all(|e| *e >= 10), "those that stay, nobody who is gone: {of_a:?}");
        // As many as fit again.
        set(&mut state, "a", 10..35);
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![5, 25], vec![]));
    }

    #[test]
    fn a_full_map_still_takes_an_endpoint_in_the_place_of_another() {
        let (mut state, mut kernel) = (state(30), Kernel::default());
        set(&mut state, "a", 0..30);
        kernel.follow(&mut state, |_| ());
        set(&mut state, "a", 1..31);
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![30], vec![]));
        assert!(kernel.0.backends.values().any(|b| b.addr.octets()[15] == 30));
    }

    #[test]
    fn numbers_of_backends_stay_below_the_places_of_their_map_however_many_come_and_go() {
        let (mut state, mut kernel) = (state(30), Kernel::default());
        for first in (0..200).step_by(7) {
            set(&mut state, "a", first..first + 20);
            kernel.follow(&mut state, |_| ());
            assert!(
                kernel.0.backends.len() == 20 && kernel.0.backends.keys().all(|id| (1..30).contains(id)),
                "{:?}",
                kernel.0.backends.keys()
            );
        }
        // All at once: for a moment there are more than there are numbers.
        set(&mut state, "a", 220..249);
        kernel.follow(&mut state, |_| ());
        assert_eq!(kernel.0.backends.len(), 29);
    }

    #[test]
    fn what_is_to_come_is_known_before_it_is_compiled() {
        let mut state = state(1 << 20);
        state.services.set_room([1 << 20; 6], 64);
        for name in b'a'..=b'x' {
            set(&mut state, &char::from(name).to_string(), 0..25);
        }
        assert_eq!(state.services.expected(), [48, 24, 600, 0, 600, 0], "of 24 Services with an address and a port");
        let mut kernel = Kernel::default();
        kernel.follow(&mut state, |_| ());
        assert_eq!(state.services.expected(), [48, 24, 600, 0, 600, 0], "and so it is");
        assert_eq!(state.services.numbers_of_backends(), 1024, "raised at once to what all need, not to what there may be");
        assert_eq!(state.needs()["CONNECTIONS"], 601);
    }

    #[test]
    fn what_shares_backends_needs_no_room_for_them_twice() {
        let mut state = state(30);
        state.services.set_room([1000, 1000, 1000, 1000, 30, 1000], 30);
        let mut kernel = Kernel::default();
        set(&mut state, "a", 0..30);
        kernel.follow(&mut state, |_| ());
        let slice = |name: &str| {
            serde_json::from_value(
                serde_json::json!({"metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": "b"}},
                "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.97.7"]}]}),
            )
        };
        set(&mut state, "b", 0..0);
        state.services.set_slice(Key::new("ns", "b-2"), input::slice(slice("b-2").expect("an EndpointSlice")));
        kernel.follow(&mut state, |_| ());
        assert_eq!((slots(&kernel), refused(&state)), (vec![1, 30], vec![]));
    }
}
