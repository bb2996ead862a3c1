//! Addresses, ports, tuples.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`. Kept as words because BPF
/// copies and compares words, not bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr([u32; 4]);

const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// `::`; in a frontend's key: any IPv6 address of the node.
    pub const ANY: Addr = Addr([0; 4]);
    /// `0.0.0.0`; in a frontend's key: any IPv4 address of the node.
    pub const ANY_V4: Addr = Addr([0, 0, MAPPED, 0]);

    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Addr {
        Addr([0, 0, MAPPED, u32::from_ne_bytes(octets)])
    }

    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Addr {
        Addr([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// From an IPv4 address as the kernel keeps it: network order in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Addr {
        Addr([0, 0, MAPPED, word])
    }

    /// From an address as the kernel keeps it: four words, network order in memory.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Addr {
        Addr(words)
    }

    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            self.0[3].to_ne_bytes()[0] == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1u32.to_be()
        }
    }

    /// The length of this address' prefix of `bits` as an LPM key has it.
    pub const fn prefix_len(self, bits: u8) -> u32 {
        if self.is_v4() {
            96 + bits as u32
        } else {
            bits as u32
        }
    }

    pub const fn octets(self) -> [u8; 16] {
        let mut out = [0; 16];
        let mut i = 0;
        while i < 16 {
            out[i] = self.0[i / 4].to_ne_bytes()[i % 4];
            i += 1;
        }
        out
    }

    /// IPv4 for a mapped address.
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(a: Ipv4Addr) -> Addr {
        Addr::v4(a.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(a: Ipv6Addr) -> Addr {
        Addr::v6(a.octets())
    }
}

impl From<IpAddr> for Addr {
    fn from(a: IpAddr) -> Addr {
        match a {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.to_ip())
    }
}

/// A port, two bytes in network order. For ICMP echo: the identifier.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Port(u16);

impl Port {
    #[inline(always)]
    pub const fn new(port: u16) -> Port {
        Port(port.to_be())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From two bytes of a packet, loaded as one word.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Port {
        Port(raw)
    }

    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// A packet's addresses and ports. ICMP echo requests have the identifier as source port and 0 as
/// destination port, replies the other way round, so that a reply is the request reversed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub sport: Port,
    pub dport: Port,
    proto: u32,
}

impl Tuple {
    #[inline(always)]
    pub const fn new(src: Addr, sport: Port, dst: Addr, dport: Port, proto: u8) -> Tuple {
        Tuple {
            src,
            dst,
            sport,
            dport,
            proto: proto as u32,
        }
    }

    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        self.proto as u8
    }

    /// The tuple of the answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Tuple {
        Tuple {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
        }
    }
}

crate::wire! { Addr = 16, Port = 2, Tuple = 40 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_the_mapped_address_in_network_order() {
        let a = Addr::v4([10, 96, 0, 1]);
        assert_eq!(
            a.octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]
        );
        assert_eq!(a, Addr::v6(a.octets()));
        assert_eq!(a.to_ip(), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)));
        assert_eq!(a.prefix_len(24), 120);
        assert!(a.is_v4() && !a.is_loopback());
    }

    #[test]
    fn loopback_in_both_families() {
        assert!(Addr::v4([127, 3, 2, 1]).is_loopback());
        assert!(Addr::from(Ipv6Addr::LOCALHOST).is_loopback());
        assert!(!Addr::ANY.is_loopback());
        assert!(!Addr::v6([0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).is_loopback());
    }

    #[test]
    fn port_is_big_endian_in_memory() {
        assert_eq!(Port::new(0x1234).raw().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::new(8080).get(), 8080);
    }

    #[test]
    fn reversed_twice_is_the_same() {
        let t = Tuple::new(
            Addr::v4([1; 4]),
            Port::new(1),
            Addr::v4([2; 4]),
            Port::new(2),
            6,
        );
        assert_ne!(t, t.reversed());
        assert_eq!(t, t.reversed().reversed());
    }
}
