//! What is needed to send a socket's packets elsewhere after its backend has gone.

use crate::{Addr, Port};

/// `SO_NETNS_COOKIE` of a network namespace, in two words: no type here needs more alignment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NetnsCookie([u32; 2]);

impl NetnsCookie {
    /// Of no namespace: the cookie could not be read.
    pub const UNKNOWN: NetnsCookie = NetnsCookie([0; 2]);

    #[inline(always)]
    pub const fn new(cookie: u64) -> NetnsCookie {
        NetnsCookie([(cookie >> 32) as u32, cookie as u32])
    }

    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0[0] != 0 || self.0[1] != 0
    }
}

/// The Service the backend was given for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// What the socket asked for: finds the Service, also one that was made anew.
    pub addr: Addr,
    pub port: Port,
    pad: u16,
    /// The backend's id then.
    pub backend: u32,
}

impl Given {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, backend: u32) -> Given {
        Given {
            addr,
            port,
            pad: 0,
            backend,
        }
    }
}

crate::wire! { NetnsCookie = 8, Given = 24 }
