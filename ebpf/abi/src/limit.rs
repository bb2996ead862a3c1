//! How much a pod may send and be sent.

/// Whose limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitKey {
    /// `Endpoint::id`.
    pub endpoint: u32,
    /// One of [`direction`](crate::direction)'s.
    pub direction: u32,
}

/// A bucket that fills with time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second, not 0. User space writes it.
    pub rate: u64,
    /// How far ahead of its rate the pod may be, in nanoseconds: the bucket's size. User space writes it.
    pub burst: u64,
    /// When what has passed would be over at just that rate. Programs write it, user space 0.
    pub until: u64,
}

crate::wire! { LimitKey = 8, Limit = 24 }
