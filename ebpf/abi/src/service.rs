//! Services: frontends, backend sets, what sockets and clients were given.

use crate::{Addr, Port};

/// Where a Service is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
    pad: u8,
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> FrontendKey {
        FrontendKey {
            addr,
            port,
            proto,
            pad: 0,
        }
    }

    /// Stands for all ports of an address: a ClusterIP.
    #[inline(always)]
    pub const fn address(addr: Addr) -> FrontendKey {
        FrontendKey::new(addr, Port::new(0), 0)
    }

    /// The same NodePort on every address of the node in one family.
    #[inline(always)]
    pub const fn node_port(v4: bool, port: Port, proto: u8) -> FrontendKey {
        FrontendKey::new(if v4 { Addr::ANY_V4 } else { Addr::ANY }, port, proto)
    }
}

/// What is behind a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Names the Service port towards people and in `SOURCE_RANGES`.
    pub service: u32,
    /// Backend set for clients inside the cluster.
    pub internal: u32,
    /// Backend set for packets from outside.
    pub external: u32,
    /// Bits of `Frontend::*`.
    pub flags: u32,
    /// Seconds; read with [`Frontend::AFFINITY`].
    pub affinity_timeout: u32,
}

impl Frontend {
    /// sessionAffinity: ClientIP.
    pub const AFFINITY: u32 = 1;
    /// loadBalancerSourceRanges are set and apply to this frontend.
    pub const SOURCE_RANGES: u32 = 2;
    /// The address may be used from outside. Without it packets from an uplink are left alone.
    pub const EXTERNAL: u32 = 4;
    /// With [`Frontend::SOURCE_RANGES`]: the node's own processes are among the allowed sources.
    /// Their sockets have no address yet when they are asked, so this is answered beforehand.
    pub const FROM_NODE: u32 = 8;
    /// Packets from outside get their backend from the set's ring, see `RINGS`.
    pub const RING: u32 = 16;
    /// So do clients inside the cluster; a socket, which has no tuple yet, gets any place of it.
    pub const RING_INSIDE: u32 = 32;
    /// A socket that connects gets the backend with the fewest open connections of this node.
    pub const LEAST_CONNECTIONS: u32 = 64;
    /// Packets from outside go to pods of other nodes as they are, and those answer the client themselves.
    pub const DIRECT: u32 = 128;
}

/// How many backends a set has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSet {
    pub count: u32,
    /// Bits of `BackendSet::*`.
    pub flags: u32,
}

impl BackendSet {
    /// An empty set drops without an answer instead of refusing.
    pub const DROP_WHEN_EMPTY: u32 = 1;
}

/// One place of a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    pub set: u32,
    pub slot: u32,
}

/// Asks whether a backend is in a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    pub set: u32,
    pub backend: u32,
}

/// An endpoint of a Service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    pad: u16,
    /// Bits of `Backend::*`.
    pub flags: u32,
    /// What the version has that tests of upgrades play.
    #[cfg(feature = "next")]
    pub more: u32,
}

impl Backend {
    /// The endpoint is on this node: a pod here, or the node itself.
    pub const LOCAL: u32 = 1;

    pub const fn new(addr: Addr, port: Port, flags: u32) -> Backend {
        Backend {
            addr,
            port,
            pad: 0,
            flags,
            #[cfg(feature = "next")]
            more: 1,
        }
    }
}

/// Key of a Service's allowed sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRangeKey {
    pub service: u32,
    pub addr: Addr,
}

impl SourceRangeKey {
    /// Length of the key for a source prefix of `bits`.
    pub const fn prefix_len(addr: Addr, bits: u8) -> u32 {
        32 + addr.prefix_len(bits)
    }
}

/// An address of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddr {
    /// Bits of `NodeAddr::*`.
    pub flags: u32,
}

impl NodeAddr {
    /// NodePorts are served on this address.
    pub const NODEPORT: u32 = 1;
}

/// Which client was given a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    pub client: Addr,
    pub set: u32,
    kind: u32,
}

impl AffinityKey {
    /// A client seen by its packets.
    #[inline(always)]
    pub const fn address(client: Addr, set: u32) -> AffinityKey {
        AffinityKey {
            client,
            set,
            kind: 0,
        }
    }

    /// A client seen by its socket, before it has an address: its network namespace stands for it.
    #[inline(always)]
    pub const fn netns(cookie: u64, set: u32) -> AffinityKey {
        AffinityKey {
            client: Addr::from_words([0, 0, (cookie >> 32) as u32, cookie as u32]),
            set,
            kind: 1,
        }
    }
}

/// The backend a client was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When a new connection last used it.
    pub last_used: u64,
    pub backend: u32,
    pad: u32,
}

impl Affinity {
    #[inline(always)]
    pub const fn new(backend: u32, last_used: u64) -> Affinity {
        Affinity {
            last_used,
            backend,
            pad: 0,
        }
    }
}

/// A socket and the backend it was connected to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    pub addr: Addr,
    pub port: Port,
    pad: [u16; 3],
}

impl SockKey {
    #[inline(always)]
    pub const fn new(cookie: u64, addr: Addr, port: Port) -> SockKey {
        SockKey {
            cookie,
            addr,
            port,
            pad: [0; 3],
        }
    }

    /// Where it is kept to whom a socket that is not connected has sent.
    #[inline(always)]
    pub const fn last(cookie: u64) -> SockKey {
        SockKey::new(cookie, Addr::ANY, Port::new(0))
    }
}

/// What the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFrontend {
    pub addr: Addr,
    pub port: Port,
    pad: u16,
    pub service: u32,
}

impl SockFrontend {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, service: u32) -> SockFrontend {
        SockFrontend {
            addr,
            port,
            pad: 0,
            service,
        }
    }
}

crate::wire! {
    FrontendKey = 20, Frontend = 20, BackendSet = 8, SlotKey = 8, MemberKey = 8,
    SourceRangeKey = 20, NodeAddr = 4, AffinityKey = 24, Affinity = 16, SockKey = 32,
    SockFrontend = 24,
}

#[cfg(not(feature = "next"))]
crate::wire! { Backend = 24 }
#[cfg(feature = "next")]
crate::wire! { Backend = 28 }
