//! Maps of consistent hashing.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap};
use xebec_ebpf_abi::{Places, PlacesKey, Rings};

#[map]
static RINGS: HashMap<u32, Rings> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
static RING_PLACES: HashMap<PlacesKey, Places> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[inline(always)]
pub fn rings(set: u32) -> Option<Rings> {
    // SAFETY: see services.rs.
    unsafe { RINGS.get(set) }.copied()
}

#[inline(always)]
pub fn backend(ring: u32, place: u32) -> Option<u32> {
    let key = PlacesKey {
        ring,
        part: place / Places::COUNT,
    };
    let places = RING_PLACES.get_ptr(key)?;
    let index = (place % Places::COUNT) as usize;
    // SAFETY: the index is below the array's length, and the entry lives until the program ends.
    Some(unsafe {
        (&raw const (*places).backends)
            .cast::<u32>()
            .add(index)
            .read()
    })
}
