//! What the BPF programs and user space agree on: map names, keys, values, program names, drop
//! reasons and constants. No code that decides anything.
//!
//! # Conventions
//! - Every type is `repr(C)`, without implicit padding (`const` size asserts), and valid for any
//!   bit pattern: no `bool`, `enum`, `Option` in keys or values. Padding fields are private and zero.
//! - [`Addr`] is 16 bytes in network order; IPv4 is the mapped form `::ffff:a.b.c.d`. So one map
//!   serves both families, and a v4-mapped IPv6 socket needs nothing special. [`Port`] is two bytes
//!   in network order. Every other number is in host order, except inside [`PolicyKey`], which is
//!   compared bit by bit and therefore big-endian.
//! - `proto` is the IP protocol number (6 TCP, 17 UDP, 132 SCTP, 1 ICMP, 58 ICMPv6).
//! - Times are nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
//! - "user" writes a map from user space, "bpf" from the programs. A map has one writer unless said.
//!
//! # Maps (name: kind, key → value)
//!
//! ## Services (user writes, except the last five)
//! - `FRONTENDS`: hash, [`FrontendKey`] → [`Frontend`]. One entry for each address and port a
//!   Service is reached at: ClusterIPs, external IPs, load-balancer IPs, hostPorts. A NodePort is
//!   *one* entry for each family, with address [`Addr::ANY_V4`] or [`Addr::ANY`]: it is tried after
//!   the exact entry misses, when the destination is an address of the node
//!   ([`NodeAddr::NODEPORT`] in `NODE_ADDRS`), or is loopback and the client runs in the node's
//!   network namespace. Loopback of a pod is nobody else's, whatever entries there are.
//!   `Frontend::internal` is the backend set
//!   for clients in the cluster (socket hooks, packets from pods), `Frontend::external` the set for
//!   packets from an uplink. They are equal unless a traffic policy is `Local`: a ClusterIP has the
//!   internalTrafficPolicy set in both; NodePort, external and load-balancer addresses have the
//!   cluster-wide set in `internal` and the externalTrafficPolicy set in `external`.
//!   A ClusterIP has one more entry, [`FrontendKey::address`], with zeros in its value: what is sent to
//!   it on a port that is none of its Service's is refused.
//! - `BACKEND_SETS`: hash, set id (`u32`, never 0) → [`BackendSet`]. How many slots there are.
//!   `count == 0`: new connections are refused (or dropped without an answer with
//!   [`BackendSet::DROP_WHEN_EMPTY`], as for externalTrafficPolicy Local without a local endpoint).
//!   A missing set counts as empty.
//! - `BACKEND_SLOTS`: hash, [`SlotKey`] (set id, slot `0..count`) → backend id (`u32`).
//! - `BACKENDS`: hash, backend id (`u32`, never 0) → [`Backend`].
//! - `SET_MEMBERS`: hash, [`MemberKey`] (set id, backend id) → slot (`u32`). For sets that a
//!   frontend with [`Frontend::AFFINITY`] uses, and for those of UDP frontends: an affinity entry, and
//!   a flow that has no handshake to fail, count only while their backend is a member.
//! - `SOURCE_RANGES`: LPM trie, [`SourceRangeKey`] (service id, source prefix) → `u32` (1). Asked for
//!   packets from an uplink and from pods when the frontend has [`Frontend::SOURCE_RANGES`]; no
//!   match: dropped. The socket hooks leave such a frontend to the pod's device, where the client's
//!   address is seen; for the node's own sockets [`Frontend::FROM_NODE`] is the answer.
//!   Prefix length counts the 32 bits of the service id too ([`SourceRangeKey::prefix_len`]).
//! - `NODE_ADDRS`: hash, [`Addr`] → [`NodeAddr`]. Every address of the node, loopback excluded.
//! - `RINGS`: hash, set id → [`Rings`]. Consistent hashing over the set, for frontends with
//!   [`Frontend::RING`] (packets from uplinks) or [`Frontend::RING_INSIDE`] (clients in the cluster). A set
//!   without an entry is chosen from by slot. The ring before the last change is kept: a packet in the
//!   middle of a flow that nobody knows goes where it went before the change, if that backend is still in
//!   `BACKENDS`; so nothing breaks when backends and the node that balances change together.
//! - `RING_PLACES`: hash, [`PlacesKey`] (ring, part) → [`Places`]. A ring is written in full before `RINGS`
//!   names it, and never changed: a change makes a new one.
//! - `AFFINITY`: LRU hash, bpf, [`AffinityKey`] → [`Affinity`]. User space deletes those whose time is over.
//! - `SOCK_REVERSE`: LRU hash, bpf, [`SockKey`] → [`SockFrontend`]. What a socket thinks it talks to, until it is closed: a
//!   connected socket then says where to, of one that only sends the last address that was new to it is kept at
//!   [`SockKey::last`]. What such a socket has sent to besides stays behind, for the map to take the place of.
//! - `GIVEN`: LRU hash, bpf, [`SockKey`] → [`Given`]. Backends that connected UDP sockets were given:
//!   the socket keeps sending there when the backend has gone, and [`prog::FROM_POD`], which sees packets of
//!   pods' sockets with the socket they come from, sends them to another one. Until it is closed.
//! - `CONNECTIONS`: array, bpf, backend id → `u64`. How many open sockets of this node were given the
//!   backend for a frontend with [`Frontend::LEAST_CONNECTIONS`].
//! - `COUNTED`: hash, bpf, `bpf_get_socket_cookie` (`u64`) → backend id (`u32`). The sockets in those
//!   counts, until they are closed. A socket that finds no room is not counted.
//!
//! Order of writes so that no reader sees half an update. Add: `BACKENDS`, then the slot at index
//! `count` (and `SET_MEMBERS`), then `BACKEND_SETS` with `count + 1`, then `FRONTENDS` if new.
//! Remove backend at slot `i`: write the last slot's backend to slot `i`, then `count - 1`, then
//! delete the last slot and the member; delete from `BACKENDS` last, when no set has it any more
//! and it has stopped serving (flows that have chosen keep working without the entry). Replace: write the slot. Delete a
//! Service: `FRONTENDS` first, then the rest. A program that reads a slot that has just gone reads
//! the set again. Ids may be reused once nothing refers to them.
//!
//! ## Pods and policy (user writes, except the last)
//! - `ENDPOINTS`: hash, pod address → [`Endpoint`]. Local pods with a network namespace of their own;
//!   one entry for each address, the same `id` for both families. A packet from a veth whose source
//!   has no entry with that veth's ifindex is dropped as spoofed; a packet to a pod's veth whose
//!   destination has no entry with that ifindex is dropped as unknown. So: write policy, then the
//!   entry, then let the pod send. Bump `epoch` after a change of policy, of the flags, or of an
//!   identity that the endpoint's policy names: established flows are then judged again with their
//!   next packet in the direction of the first; what is no longer allowed is dropped from then on.
//!   With [`Endpoint::DIRECT`], packets from other pods of the node and from uplinks go to the pod
//!   without the node's stack and without the pod's [`prog::TO_POD`], whose work is done where they come
//!   from (so `pod_mac` and `host_mac` must be right); without it, and for all else, they take the stack's
//!   way through `TO_POD`. Only then does a pod reach itself through a Service that the socket hooks
//!   have not translated.
//! - `IPCACHE`: LPM trie, [`Addr`] prefix (IPv4: 96 + bits, [`Addr::prefix_len`]) → [`Remote`]. No match:
//!   [`identity::WORLD`]. The most specific entry wins, so user space gives overlapping ipBlocks
//!   each an identity of its own and names in a rule every identity it covers.
//! - `POLICY`: LPM trie, [`PolicyKey`] → [`PolicyVerdict`]. Asked when the endpoint's flag
//!   [`Endpoint::ISOLATE_INGRESS`] / [`Endpoint::ISOLATE_EGRESS`] is set for the direction; without
//!   the flag everything passes. The lookup with the peer's identity decides if it finds something, else the
//!   one with [`identity::ANY`]; no match drops. Within each, the longest port prefix, else any port of the
//!   protocol, else any protocol. So a peer of whom something is denied, or for whom the tiers of
//!   ClusterNetworkPolicy say other than for all, has entries for all that is true of it: precedence is
//!   resolved where the entries are made. Port ranges are split into prefixes with
//!   [`port_prefixes`]. The port is the destination port of the flow's first packet, as it arrives at
//!   or leaves the pod (after Service translation).
//!   Never asked: replies of flows that were allowed, ICMP errors about such flows, ARP, neighbour
//!   discovery, and, for ingress, packets from the node itself ([`Remote::HOST`] in `IPCACHE`, which
//!   user space sets for each address of the node).
//! - `FLOWS`: hash, bpf, [`FlowKey`] → [`Flow`]. Conntrack of each endpoint, one entry for both
//!   directions. Nothing alive is evicted: user space deletes expired entries, before there are none
//!   left to take, and must delete those of a deleted endpoint.
//!
//! - `LIMITS`: hash, user and bpf (see there), [`LimitKey`] → [`Limit`]. Bandwidth of pods that have
//!   [`Endpoint::LIMIT_INGRESS`] / [`Endpoint::LIMIT_EGRESS`]. What is too much is dropped.
//! - `SHORTCUTS`: per-CPU array of [`Shortcut::PLACES`], bpf, [`Shortcut::place`] → [`Shortcut`]. Connections from
//!   pods that have been judged within a second and whose packets therefore go on without. Each CPU has its
//!   own, so nobody reads what is being written.
//! - `GENERATION`: array of 1, user, `u32` 0 → `u64`. Another number ends all shortcuts: written after every
//!   change of `ENDPOINTS`.
//!
//! ## Uplinks (user writes, except the last two)
//! - `UPLINKS`: hash, ifindex (`u32`) → [`Uplink`]: the addresses that packets leaving there get, and how large they may be
//!   without the stack's having a look. With [`Config::PAST_STACK`] pods' packets go straight there.
//! - `ANNOUNCED`: hash, user, [`AnnouncedKey`] (load-balancer address, ifindex of an uplink) →
//!   [`Announced`]. ARP requests and neighbour solicitations for it that come in there are answered
//!   with the device's hardware address.
//! - `XDP_DEVICES`: hash, ifindex (`u32`) → [`XdpDevice`]: uplinks whose driver runs [`prog::XDP_UPLINK`]. Without
//!   an entry that program passes everything on.
//! - `NO_MASQUERADE`: LPM trie, [`Addr`] prefix → `u32`, bits of [`direct::range`]: destinations that see pods' own
//!   addresses, and whose they are.
//!   Packets of local pods (`ENDPOINTS`) to any other address leave with the uplink's address.
//! - `NAT`: hash, bpf, [`Tuple`] → [`Nat`]. The packet's tuple as it arrives → the tuple it leaves
//!   with. Every translation has two entries, one a direction: the second's key is the first's target
//!   reversed. A connection from outside to a backend elsewhere is translated twice: its destination as
//!   it arrives, its source as it leaves again (the stack drops what arrives with the node's own
//!   source address). Nothing alive is evicted; user space deletes expired entries. A UDP flow whose
//!   backend is no member of its set any more is given another one with its next packet.
//!   For that path to work the uplink needs forwarding on and `send_redirects` off.
//! - `FRAGMENTS`: LRU hash, bpf, [`FragmentKey`] → [`FragmentPorts`]: ports of a datagram's first fragment.
//!
//! ## All
//! - `CONFIG`: array of 1, user, `u32` 0 → [`Config`]. Written before any program is attached.
//! - `DROPS`: per-CPU array of [`DropReason::COUNT`], bpf, reason → [`DropCount`].
//! - `FORWARDS`: per-CPU array of [`forward::COUNT`], bpf, path → [`DropCount`]: what was passed on.
//! - `SERVICE_COUNTS`: per-CPU hash, bpf, `Frontend::service` → [`ServiceCount`]. User space deletes those of
//!   Services that are gone before it gives their number to another one.
//! - `LISTEN`: array of 1, user, `u32` 0 → [`Listen`]: which events are told, and how many in a second.
//! - `EVENTS`: ring buffer, bpf, [`Event`]: drops, first packets of flows, and sockets of the node that are given a
//!   backend elsewhere, which sends no packet that shows a Service, as `LISTEN` says. Whoever
//!   cannot keep up, or asks for less than there is, finds how many it has missed in `UNTOLD`.
//! - `UNTOLD`: per-CPU array of 1, bpf, `u32` 0 → `u64`: events that were wanted and not told.
//! - `INSERTS`: per-CPU array of [`inserts::MAPS`], bpf, one of [`inserts`]' → `u64`: entries that programs have put into that
//!   map, or have found no room for.
//!
//! # Programs
//! See [`prog`]: socket hooks are `cgroup_sock_addr` programs, one set for the node's cgroup2 directory
//! ([`prog::SOCKET`]), one for the root of the hierarchy ([`prog::ROOT_SOCKET`]), which acts for the
//! node's network namespace alone and only with [`Config::AT_ROOT`]; then the first set leaves that
//! namespace to it, so that a socket below both is asked about once. With each set goes a `cgroup_sock`
//! program that sees sockets end ([`prog::SOCK_RELEASE`], [`prog::ROOT_SOCK_RELEASE`]). The others are `classifier` programs. [`prog::FROM_POD`] goes to the ingress hook of a pod's host-side
//! veth (packets leaving the pod), [`prog::TO_POD`] to its egress hook, [`prog::FROM_UPLINK`] and
//! [`prog::TO_UPLINK`] to ingress and egress of each uplink, and [`prog::TAKE_DIRECT`] to ingress before
//! [`prog::FROM_UPLINK`]: it takes out what other nodes send inside packets of theirs. [`prog::XDP_UPLINK`] is an `xdp` program for the drivers
//! of uplinks: it turns round what goes between outside and backends elsewhere, and passes all else to tc. A program that has nothing to say
//! returns `TC_ACT_UNSPEC` (= `TCX_NEXT`), so others behind it still run.
//!
//! # Globals (read-only data, set before load)
//! [`global::SET_RETVAL`]: `u32`, default 1. Set 0 on kernels before 5.18, which lack
//! `bpf_set_retval`: refused connects then fail with EPERM instead of ECONNREFUSED.
#![no_std]

mod addr;
mod announce;
pub mod direct;
mod drop;
mod event;
pub mod inserts;
mod limit;
mod nat;
mod policy;
mod ring;
mod service;
mod shortcut;
mod steer;

pub use addr::{Addr, Port, Tuple};
pub use announce::{Announced, AnnouncedKey};
pub use drop::{DropCount, DropReason, forward};
pub use event::{Event, Listen, ServiceCount, seen};
pub use limit::{Limit, LimitKey};
pub use nat::{FragmentKey, FragmentPorts, Nat, Uplink, XdpDevice};
pub use policy::{
    Endpoint, Flow, FlowKey, PolicyKey, PolicyVerdict, Remote, direction, identity, port_prefixes,
};
pub use ring::{Places, PlacesKey, Ring, Rings};
pub use service::{
    Affinity, AffinityKey, Backend, BackendSet, Frontend, FrontendKey, MemberKey, NodeAddr,
    SlotKey, SockFrontend, SockKey, SourceRangeKey,
};
pub use shortcut::Shortcut;
pub use steer::{Given, NetnsCookie};

/// Facts about the node that programs need. See `CONFIG` in the crate's doc.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `SO_NETNS_COOKIE` of the node's network namespace.
    pub node_netns_cookie: u64,
    /// First port that may be allocated when a source is translated.
    pub nat_port_min: u16,
    /// Last such port. The range must not meet the NodePort range nor `ip_local_port_range`.
    pub nat_port_max: u16,
    /// Bits of `Config::*`.
    pub flags: u32,
}

impl Config {
    /// [`prog::ROOT_SOCKET`] are attached and serve the node's network namespace.
    pub const AT_ROOT: u32 = 1;
    /// What pods send to other machines leaves without the node's IP stack, where that would only pass it on.
    pub const PAST_STACK: u32 = 2;
    /// Packets of clients that other nodes send to pods inside packets of their own are taken: see [`direct`].
    pub const DIRECT: u32 = 4;
    /// Bytes that user space finds in a map written by another layout differ here: bump on change.
    pub const LAYOUT: u32 = 4 + if cfg!(feature = "next") { 100 } else { 0 };
    /// Default of `nat_port_min`: above the kernel's default ephemeral range.
    pub const NAT_PORT_MIN: u16 = 61000;
    /// Default of `nat_port_max`.
    pub const NAT_PORT_MAX: u16 = 65535;
}

/// Names of the maps, which are also the names of their pins.
pub mod map {
    pub const FRONTENDS: &str = "FRONTENDS";
    pub const BACKEND_SETS: &str = "BACKEND_SETS";
    pub const BACKEND_SLOTS: &str = "BACKEND_SLOTS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const SET_MEMBERS: &str = "SET_MEMBERS";
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    pub const NODE_ADDRS: &str = "NODE_ADDRS";
    pub const RINGS: &str = "RINGS";
    pub const RING_PLACES: &str = "RING_PLACES";
    pub const AFFINITY: &str = "AFFINITY";
    pub const SOCK_REVERSE: &str = "SOCK_REVERSE";
    pub const GIVEN: &str = "GIVEN";
    pub const CONNECTIONS: &str = "CONNECTIONS";
    pub const COUNTED: &str = "COUNTED";
    pub const ENDPOINTS: &str = "ENDPOINTS";
    pub const IPCACHE: &str = "IPCACHE";
    pub const POLICY: &str = "POLICY";
    pub const FLOWS: &str = "FLOWS";
    pub const UPLINKS: &str = "UPLINKS";
    pub const ANNOUNCED: &str = "ANNOUNCED";
    pub const XDP_DEVICES: &str = "XDP_DEVICES";
    pub const NO_MASQUERADE: &str = "NO_MASQUERADE";
    pub const NAT: &str = "NAT";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const CONFIG: &str = "CONFIG";
    pub const DROPS: &str = "DROPS";
    pub const FORWARDS: &str = "FORWARDS";
    pub const LIMITS: &str = "LIMITS";
    pub const SHORTCUTS: &str = "SHORTCUTS";
    pub const GENERATION: &str = "GENERATION";
    pub const SERVICE_COUNTS: &str = "SERVICE_COUNTS";
    pub const LISTEN: &str = "LISTEN";
    pub const EVENTS: &str = "EVENTS";
    pub const UNTOLD: &str = "UNTOLD";
    pub const INSERTS: &str = "INSERTS";

    /// Every map of the object.
    pub const ALL: &[&str] = &[
        FRONTENDS,
        BACKEND_SETS,
        BACKEND_SLOTS,
        BACKENDS,
        SET_MEMBERS,
        SOURCE_RANGES,
        NODE_ADDRS,
        RINGS,
        RING_PLACES,
        AFFINITY,
        SOCK_REVERSE,
        GIVEN,
        CONNECTIONS,
        COUNTED,
        ENDPOINTS,
        IPCACHE,
        POLICY,
        FLOWS,
        UPLINKS,
        ANNOUNCED,
        XDP_DEVICES,
        NO_MASQUERADE,
        NAT,
        FRAGMENTS,
        CONFIG,
        DROPS,
        FORWARDS,
        LIMITS,
        SHORTCUTS,
        GENERATION,
        SERVICE_COUNTS,
        LISTEN,
        EVENTS,
        UNTOLD,
        INSERTS,
    ];
}

/// Names of the programs.
pub mod prog {
    pub const CONNECT4: &str = "connect4";
    pub const CONNECT6: &str = "connect6";
    pub const SENDMSG4: &str = "sendmsg4";
    pub const SENDMSG6: &str = "sendmsg6";
    pub const RECVMSG4: &str = "recvmsg4";
    pub const RECVMSG6: &str = "recvmsg6";
    pub const GETPEERNAME4: &str = "getpeername4";
    pub const GETPEERNAME6: &str = "getpeername6";
    pub const BIND4: &str = "bind4";
    pub const BIND6: &str = "bind6";
    pub const FROM_POD: &str = "from_pod";
    pub const TO_POD: &str = "to_pod";
    pub const FROM_UPLINK: &str = "from_uplink";
    pub const TO_UPLINK: &str = "to_uplink";
    pub const XDP_UPLINK: &str = "xdp_uplink";
    pub const TAKE_DIRECT: &str = "take_direct";

    /// The `cgroup_sock_addr` programs.
    pub const SOCKET: &[&str] = &[
        CONNECT4,
        CONNECT6,
        SENDMSG4,
        SENDMSG6,
        RECVMSG4,
        RECVMSG6,
        GETPEERNAME4,
        GETPEERNAME6,
        BIND4,
        BIND6,
    ];
    /// The same for the root of the cgroup2 hierarchy.
    pub const ROOT_SOCKET: &[&str] = &[
        "root_connect4",
        "root_connect6",
        "root_sendmsg4",
        "root_sendmsg6",
        "root_recvmsg4",
        "root_recvmsg6",
        "root_getpeername4",
        "root_getpeername6",
        "root_bind4",
        "root_bind6",
    ];
    /// The `cgroup_sock` programs, which see sockets being closed: the node's, and the root's.
    pub const SOCK_RELEASE: &str = "sock_release";
    pub const ROOT_SOCK_RELEASE: &str = "root_sock_release";
    /// The `classifier` programs.
    pub const TC: &[&str] = &[FROM_POD, TO_POD, FROM_UPLINK, TO_UPLINK, TAKE_DIRECT];
}

/// Names of read-only globals, see the crate's doc.
pub mod global {
    pub const SET_RETVAL: &str = "SET_RETVAL";
}

/// IP protocol numbers that programs treat by name.
pub mod proto {
    pub const ICMP: u8 = 1;
    /// IPv4 inside IP.
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    /// IPv6 inside IP.
    pub const IPV6: u8 = 41;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

const _: () = assert!(size_of::<Config>() == 16);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Config {}

/// Asserts a type's size and, for user space, says that it may be copied as bytes.
macro_rules! wire {
    ($($type:ty = $size:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: repr(C) of integers whose sizes add up to the asserted one, so there is no
        // implicit padding, and any bit pattern is valid.
        unsafe impl aya::Pod for $type {}
    )*};
}
use wire;
