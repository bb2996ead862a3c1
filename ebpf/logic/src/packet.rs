//! A packet to read and write, and the headers in it.

/// Types that any bytes are a valid value of.
///
/// # Safety
/// Only for `repr(C)` structs of integers without padding.
pub unsafe trait Plain: Copy {}

/// A packet, from its Ethernet header on; a handle that is passed on by value.
pub trait Packet: Copy {
    /// Bytes of the whole packet.
    fn len(&self) -> u32;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cookie of the socket that sent it, if that is a socket of this machine and the packet has come from
    /// it without passing through a network stack on its way; else 0.
    fn socket(&self) -> u64 {
        0
    }

    /// Reads a header; `None` past the end.
    fn load<T: Plain>(&self, offset: u32) -> Option<T>;

    /// The same, but `None` also where reading costs more than looking: of headers that lie apart.
    fn glimpse<T: Plain>(&self, offset: u32) -> Option<T> {
        self.load(offset)
    }

    /// Writes; false past the end or when the packet cannot be written.
    fn store<T: Plain>(&self, offset: u32, value: &T) -> bool;

    /// Adds a [`checksum::diff`](crate::checksum::diff) to the IPv4 header checksum at `offset`.
    fn l3_checksum(&self, offset: u32, diff: u32) -> bool;

    /// Adds a diff to the transport checksum at `offset`. `pseudo`: the change is in addresses, which
    /// count in the pseudo header only. `zero_is_none`: UDP, where 0 means that there is no checksum.
    fn l4_checksum(&self, offset: u32, diff: u32, pseudo: bool, zero_is_none: bool) -> bool;
}

macro_rules! plain {
    ($($(#[$meta:meta])* struct $name:ident = $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $(pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: integers whose sizes add up to the asserted size.
        unsafe impl Plain for $name {}
    )*};
}

// Fields wider than a byte are in network order, as they lie in the packet.
plain! {
    struct Ipv4Header = 20 {
        version_ihl: u8,
        tos: u8,
        total_len: u16,
        id: u16,
        fragment: u16,
        ttl: u8,
        proto: u8,
        checksum: u16,
        src: u32,
        dst: u32,
    }
    struct Ipv6Header = 40 {
        version_class_flow: u32,
        payload_len: u16,
        next: u8,
        hop_limit: u8,
        src: [u32; 4],
        dst: [u32; 4],
    }
    /// The start of every IPv6 extension header; of a fragment header all of it.
    struct Ipv6Extension = 8 {
        next: u8,
        len: u8,
        fragment: u16,
        id: u32,
    }
    /// The start of TCP, UDP and SCTP.
    struct Ports = 4 {
        sport: u16,
        dport: u16,
    }
    struct TcpStart = 16 {
        sport: u16,
        dport: u16,
        seq: u32,
        ack: u32,
        data_offset: u8,
        flags: u8,
        window: u16,
    }
    /// TCP in IPv4 without options.
    struct TcpIpv4 = 36 {
        ip: Ipv4Header,
        tcp: TcpStart,
    }
    struct TcpIpv6 = 56 {
        ip: Ipv6Header,
        tcp: TcpStart,
    }
    /// ARP for IPv4 on Ethernet, the frame's own header included.
    struct ArpFrame = 42 {
        dst: [u8; 6],
        src: [u8; 6],
        ethertype: u16,
        hardware: u16,
        protocol: u16,
        hardware_len: u8,
        protocol_len: u8,
        operation: u16,
        sender_mac: [u8; 6],
        sender_ip: [u8; 4],
        target_mac: [u8; 6],
        target_ip: [u8; 4],
    }
    /// A neighbour solicitation or advertisement.
    struct NeighborMessage = 24 {
        kind: u8,
        code: u8,
        checksum: u16,
        flags: u32,
        target: [u32; 4],
    }
    /// The hardware address behind it.
    struct LinkOption = 8 {
        kind: u8,
        len: u8,
        mac: [u8; 6],
    }
    struct TcpHeader = 20 {
        sport: u16,
        dport: u16,
        seq: u32,
        ack: u32,
        data_offset: u8,
        flags: u8,
        window: u16,
        checksum: u16,
        urgent: u16,
    }
    /// The start of ICMP and ICMPv6; `id` counts for echo only.
    struct IcmpStart = 8 {
        kind: u8,
        code: u8,
        checksum: u16,
        id: u16,
        seq: u16,
    }
}

// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for [u32; 4] {}
// SAFETY: integers.
unsafe impl Plain for [u32; 3] {}
// SAFETY: integers.
unsafe impl Plain for [u16; 3] {}
// SAFETY: integers.
unsafe impl Plain for [u8; 6] {}
// SAFETY: as for one.
unsafe impl<T: Plain> Plain for [T; 2] {}
