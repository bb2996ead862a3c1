//! Consistent hashing: rings of places, each with a backend.

/// A ring: the backends of a set, each at its places.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ring {
    /// Names the ring's places in `RING_PLACES`. With one place: the backend itself.
    pub number: u32,
    /// How many places; 0: there is no ring.
    pub size: u32,
}

/// The rings of a backend set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    pub current: Ring,
    /// The ring before the last change.
    pub previous: Ring,
    /// Until then a flow without handshake that nobody knows may be one from before the change.
    pub until: u64,
}

/// Some places of a ring that follow each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlacesKey {
    pub ring: u32,
    /// The first place divided by [`Places::COUNT`].
    pub part: u32,
}

/// Backend ids.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    pub backends: [u32; Places::COUNT as usize],
}

impl Places {
    /// A power of two.
    pub const COUNT: u32 = 512;
}

crate::wire! { Ring = 8, Rings = 24, PlacesKey = 8, Places = 2048 }
