//! A protocol and a range of ports as `POLICY` matches them: any protocol, all ports of one, or an aligned block of them.

use xebec_ebpf_abi::{PolicyKey, Port, port_prefixes};

/// Two prefixes are disjoint, or one holds the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Length in `POLICY`'s keys: [`PolicyKey::ANY_PROTO`], or from [`PolicyKey::ANY_PORT`] to [`PolicyKey::EXACT`].
    pub len: u32,
    /// 0 for any.
    pub proto: u8,
    /// The first of the block.
    pub port: Port,
}

impl Prefix {
    /// Everything.
    pub const ALL: Prefix = Prefix { len: PolicyKey::ANY_PROTO, proto: 0, port: Port::new(0) };

    /// Every port of a protocol.
    pub fn protocol(proto: u8) -> Prefix {
        Prefix { len: PolicyKey::ANY_PORT, proto, port: Port::new(0) }
    }

    /// One port.
    pub fn port(proto: u8, port: u16) -> Prefix {
        Prefix { len: PolicyKey::EXACT, proto, port: Port::new(port) }
    }

    /// Ports `first..=last`.
    pub fn range(proto: u8, first: u16, last: u16) -> impl Iterator<Item = Prefix> {
        port_prefixes(first, last).map(move |(port, len)| Prefix { len, proto, port })
    }

    /// The next wider one; none for everything.
    pub fn wider(self) -> Option<Prefix> {
        match self.len {
            PolicyKey::ANY_PROTO => None,
            PolicyKey::ANY_PORT => Some(Prefix::ALL),
            len => {
                let kept = u32::from(u16::MAX) << (PolicyKey::EXACT - len + 1);
                Some(Prefix { len: len - 1, port: Port::new(self.port.get() & kept as u16), ..self })
            }
        }
    }

    /// It and all that hold it, narrow to wide.
    pub fn up(self) -> impl Iterator<Item = Prefix> {
        std::iter::successors(Some(self), |p| p.wider())
    }

    /// The key of an entry, with its prefix length.
    pub fn key(self, endpoint: u32, direction: u8, identity: u32) -> (u32, PolicyKey) {
        (self.len, PolicyKey::new(endpoint, direction, identity, self.proto, self.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_lies_in_a_block_of_each_size() {
        let up: Vec<Prefix> = Prefix::port(6, 0x1235).up().collect();
        assert_eq!(up.len(), 18);
        assert_eq!(up[1], Prefix { len: 127, proto: 6, port: Port::new(0x1234) });
        assert_eq!(up[4], Prefix { len: 124, proto: 6, port: Port::new(0x1230) });
        assert_eq!(up[16], Prefix::protocol(6));
        assert_eq!(up[17], Prefix::ALL);
        assert!(Prefix::range(6, 80, 81).all(|p| Prefix::port(6, 81).up().any(|u| u == p)));
    }
}
