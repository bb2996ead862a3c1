//! An entry of a map, and how it gets into the kernel's and the host's.

use aya::maps::lpm_trie::Key;
use xebec_ebpf_abi::*;

use super::fake::{Fake, addr_bits, policy_bits, same_prefix};
use crate::fixture::Dataplane;

#[derive(Clone, Debug)]
pub enum Entry {
    Frontend(FrontendKey, Frontend),
    Set(u32, BackendSet),
    Slot(SlotKey, u32),
    Backend(u32, Backend),
    Member(MemberKey),
    /// The length counts the Service's id.
    SourceRange(SourceRangeKey, u32),
    NodeAddr(Addr, NodeAddr),
    Rings(u32, Rings),
    /// All places of a ring.
    Places(u32, Vec<u32>),
    Affinity(AffinityKey, Affinity),
    Endpoint(Addr, Endpoint),
    Remote(Addr, u32, Remote),
    Policy(PolicyKey, u32, PolicyVerdict),
    Flow(FlowKey, Flow),
    Uplink(u32, Uplink),
    Announced(AnnouncedKey, Announced),
    /// Whose a prefix is: bits of `direct::range`.
    Range(Addr, u32, u32),
    XdpDevice(u32, [u8; 6]),
    Limit(LimitKey, Limit),
    Nat(Tuple, Nat),
}

/// A ring's places as its map has them; what is missing is no backend.
fn parts(places: &[u32]) -> impl Iterator<Item = (u32, Places)> {
    places.chunks(Places::COUNT as usize).zip(0..).map(|(chunk, part)| {
        let mut backends = [0; Places::COUNT as usize];
        backends[..chunk.len()].copy_from_slice(chunk);
        (part, Places { backends })
    })
}

impl Entry {
    pub fn put(&self, kernel: &mut Dataplane, host: &Fake) {
        match self {
            Entry::Frontend(key, value) => {
                kernel.put(map::FRONTENDS, *key, *value);
                host.frontends.borrow_mut().insert(*key, *value);
            }
            Entry::Set(key, value) => {
                kernel.put(map::BACKEND_SETS, *key, *value);
                host.sets.borrow_mut().insert(*key, *value);
            }
            Entry::Slot(key, value) => {
                kernel.put(map::BACKEND_SLOTS, *key, *value);
                host.slots.borrow_mut().insert(*key, *value);
            }
            Entry::Backend(key, value) => {
                kernel.put(map::BACKENDS, *key, *value);
                host.backends.borrow_mut().insert(*key, *value);
            }
            Entry::Member(key) => {
                kernel.put(map::SET_MEMBERS, *key, 0u32);
                host.members.borrow_mut().insert(*key, 0);
            }
            Entry::SourceRange(key, bits) => {
                kernel.put_prefix(map::SOURCE_RANGES, *bits, *key, 1u32);
                host.source_ranges.borrow_mut().push((*key, *bits));
            }
            Entry::NodeAddr(key, value) => {
                kernel.put(map::NODE_ADDRS, *key, *value);
                host.node_addrs.borrow_mut().insert(*key, *value);
            }
            Entry::Rings(key, value) => {
                kernel.put(map::RINGS, *key, *value);
                host.rings.borrow_mut().insert(*key, *value);
            }
            Entry::Places(ring, places) => {
                for (part, value) in parts(places) {
                    kernel.put(map::RING_PLACES, PlacesKey { ring: *ring, part }, value);
                }
                host.places.borrow_mut().insert(*ring, places.clone());
            }
            Entry::Affinity(key, value) => {
                kernel.put(map::AFFINITY, *key, *value);
                host.affinities.borrow_mut().insert(*key, *value);
            }
            Entry::Endpoint(key, value) => {
                kernel.put(map::ENDPOINTS, *key, *value);
                host.endpoints.borrow_mut().insert(*key, *value);
                host.generation.update(|generation| generation + 1);
            }
            Entry::Remote(key, bits, value) => {
                kernel.put_prefix(map::IPCACHE, *bits, *key, *value);
                let mut table = host.remotes.borrow_mut();
                table.retain(|(other, length, _)| length != bits || !same_prefix(addr_bits(*other), addr_bits(*key), *bits));
                table.push((*key, *bits, *value));
            }
            Entry::Policy(key, bits, value) => {
                kernel.put_prefix(map::POLICY, *bits, *key, *value);
                let mut table = host.policies.borrow_mut();
                table.retain(|(other, length, _)| length != bits || !same_prefix(policy_bits(*other), policy_bits(*key), *bits));
                table.push((*key, *bits, *value));
            }
            Entry::Flow(key, value) => {
                // Where there is no place the host has none either.
                if xebec_ebpf_logic::Env::set_flow(host, key, value) {
                    kernel.put(map::FLOWS, *key, *value);
                }
            }
            Entry::Uplink(key, value) => {
                kernel.put(map::UPLINKS, *key, *value);
                host.uplinks.borrow_mut().insert(*key, *value);
            }
            Entry::Announced(key, value) => {
                kernel.put(map::ANNOUNCED, *key, *value);
                host.announced.borrow_mut().insert(*key, *value);
            }
            Entry::Range(key, bits, whose) => {
                kernel.put_prefix(map::NO_MASQUERADE, *bits, *key, *whose);
                let mut table = host.no_masquerade.borrow_mut();
                table.retain(|(other, length, _)| length != bits || !same_prefix(addr_bits(*other), addr_bits(*key), *bits));
                table.push((*key, *bits, *whose));
            }
            Entry::XdpDevice(key, mac) => {
                kernel.put(map::XDP_DEVICES, *key, XdpDevice::new(*mac));
                host.xdp_devices.borrow_mut().insert(*key, *mac);
            }
            Entry::Limit(key, value) => {
                kernel.put(map::LIMITS, *key, *value);
                host.limits.borrow_mut().insert(*key, *value);
            }
            Entry::Nat(key, value) => {
                if xebec_ebpf_logic::Env::set_nat(host, key, value, false) == xebec_ebpf_logic::Stored::Written {
                    kernel.put(map::NAT, *key, *value);
                }
            }
        }
    }

    /// Takes it out of the kernel's map, which may not have it; the host's maps are thrown away whole.
    pub fn forget(&self, kernel: &mut Dataplane) {
        fn hash<K: aya::Pod, V: aya::Pod>(kernel: &mut Dataplane, name: &str, key: &K, _: V) {
            let _ = kernel.hash::<K, V>(name).remove(key);
        }
        fn trie<K: aya::Pod, V: aya::Pod>(kernel: &mut Dataplane, name: &str, bits: u32, key: K, _: V) {
            let _ = kernel.trie::<K, V>(name).remove(&Key::new(bits, key));
        }
        match self {
            Entry::Frontend(key, value) => hash(kernel, map::FRONTENDS, key, *value),
            Entry::Set(key, value) => hash(kernel, map::BACKEND_SETS, key, *value),
            Entry::Slot(key, value) => hash(kernel, map::BACKEND_SLOTS, key, *value),
            Entry::Backend(key, value) => hash(kernel, map::BACKENDS, key, *value),
            Entry::Member(key) => hash(kernel, map::SET_MEMBERS, key, 0u32),
            Entry::SourceRange(key, bits) => trie(kernel, map::SOURCE_RANGES, *bits, *key, 1u32),
            Entry::NodeAddr(key, value) => hash(kernel, map::NODE_ADDRS, key, *value),
            Entry::Rings(key, value) => hash(kernel, map::RINGS, key, *value),
            Entry::Places(ring, places) => {
                for (part, value) in parts(places) {
                    hash(kernel, map::RING_PLACES, &PlacesKey { ring: *ring, part }, value);
                }
            }
            Entry::Affinity(key, value) => hash(kernel, map::AFFINITY, key, *value),
            Entry::Endpoint(key, value) => hash(kernel, map::ENDPOINTS, key, *value),
            Entry::Remote(key, bits, value) => trie(kernel, map::IPCACHE, *bits, *key, *value),
            Entry::Policy(key, bits, value) => trie(kernel, map::POLICY, *bits, *key, *value),
            Entry::Flow(key, value) => hash(kernel, map::FLOWS, key, *value),
            Entry::Uplink(key, value) => hash(kernel, map::UPLINKS, key, *value),
            Entry::Announced(key, value) => hash(kernel, map::ANNOUNCED, key, *value),
            Entry::Range(key, bits, whose) => trie(kernel, map::NO_MASQUERADE, *bits, *key, *whose),
            Entry::XdpDevice(key, mac) => hash(kernel, map::XDP_DEVICES, key, XdpDevice::new(*mac)),
            Entry::Limit(key, value) => hash(kernel, map::LIMITS, key, *value),
            Entry::Nat(key, value) => hash(kernel, map::NAT, key, *value),
        }
    }
}
