//! Pod addresses: one bitmap a range, every set bit has an owner (the sandbox).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range larger than this is used only at its beginning: no node runs more pods, and the bitmap stays small.
const MAX_ADDRESSES: u64 = 1 << 16;

/// Why no address was leased. Retried by containerd with the next attempt to run the pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The node has no range for pods yet.
    #[error("the node has no podCIDR yet (is its Node object registered and a range assigned?)")]
    NoRange,
    /// Every address has an owner.
    #[error("all {size} addresses of {range} are leased; delete pods of this node or give it a larger podCIDR")]
    Full {
        /// The range without a free address.
        range: IpNet,
        /// How many addresses it holds for pods.
        size: u64,
    },
}

/// The leases of a node.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    ranges: Vec<Range>,
    owners: BTreeMap<String, Vec<IpAddr>>,
}

#[derive(Clone, Debug)]
struct Range {
    net: IpNet,
    /// One bit an address, by its offset from the network address.
    used: Vec<u64>,
    /// Where the search starts: after the last lease, so that an address rests before it is used again and
    /// peers forget what they remember of its last owner.
    next: u64,
    first: u64,
    end: u64,
}

impl Range {
    fn new(net: IpNet) -> Range {
        let bits = net.max_prefix_len() - net.prefix_len();
        let size = if bits >= 16 { MAX_ADDRESSES } else { 1u64 << bits };
        let whole = bits <= 16;
        // Of an IPv4 range with more than two addresses, the first names the network and the last is its
        // broadcast address; of an IPv6 range the first is the routers' anycast address (RFC 4291, 2.6.1).
        let (first, end) = match net {
            IpNet::V4(_) if bits >= 2 => (1, if whole { size - 1 } else { size }),
            IpNet::V6(_) if bits >= 1 => (1, size),
            IpNet::V4(_) | IpNet::V6(_) => (0, size),
        };
        Range { net, used: vec![0; size.div_ceil(64) as usize], next: first, first, end }
    }

    fn offset(&self, address: IpAddr) -> Option<u64> {
        if !self.net.contains(&address) {
            return None;
        }
        let offset = match (self.net.network(), address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => u128::from(u32::from(a) - u32::from(n)),
            (IpAddr::V6(n), IpAddr::V6(a)) => u128::from(a) - u128::from(n),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        u64::try_from(offset).ok().filter(|o| (self.first..self.end).contains(o))
    }

    fn address(&self, offset: u64) -> IpAddr {
        match self.net.network() {
            IpAddr::V4(n) => Ipv4Addr::from(u32::from(n) + offset as u32).into(),
            IpAddr::V6(n) => Ipv6Addr::from(u128::from(n) + u128::from(offset)).into(),
        }
    }

    fn is_used(&self, offset: u64) -> bool {
        self.used[(offset / 64) as usize] & (1 << (offset % 64)) != 0
    }

    fn set(&mut self, offset: u64, used: bool) {
        let word = &mut self.used[(offset / 64) as usize];
        if used { *word |= 1 << (offset % 64) } else { *word &= !(1 << (offset % 64)) }
    }

    fn take(&mut self) -> Option<IpAddr> {
        let offset = (self.next..self.end).chain(self.first..self.next).find(|o| !self.is_used(*o))?;
        self.set(offset, true);
        self.next = if offset + 1 < self.end { offset + 1 } else { self.first };
        Some(self.address(offset))
    }
}

impl Ipam {
    /// Uses these ranges from now on. Leases stay with their owners, also those outside the new ranges.
    pub fn set_ranges(&mut self, nets: &[IpNet]) {
        if self.ranges.iter().map(|r| r.net).eq(nets.iter().map(IpNet::trunc)) {
            return;
        }
        self.ranges = nets.iter().map(|n| Range::new(n.trunc())).collect();
        for address in self.owners.values().flatten() {
            for range in &mut self.ranges {
                if let Some(offset) = range.offset(*address) {
                    range.set(offset, true);
                }
            }
        }
    }

    /// One address of each family the node has a range of. An owner that already has a lease gets the same.
    pub fn lease(&mut self, owner: &str) -> Result<Vec<IpAddr>, IpamError> {
        if let Some(addresses) = self.owners.get(owner) {
            return Ok(addresses.clone());
        }
        if self.ranges.is_empty() {
            return Err(IpamError::NoRange);
        }
        let mut taken: Vec<IpAddr> = Vec::new();
        for v4 in [true, false] {
            let mut full = None;
            for range in self.ranges.iter_mut().filter(|r| r.net.addr().is_ipv4() == v4) {
                match range.take() {
                    Some(address) => {
                        taken.push(address);
                        full = None;
                        break;
                    }
                    None => full = Some(IpamError::Full { range: range.net, size: range.end - range.first }),
                }
            }
            if let Some(error) = full {
                self.clear(&taken);
                return Err(error);
            }
        }
        self.owners.insert(owner.to_owned(), taken.clone());
        Ok(taken)
    }

    /// Records the lease of a sandbox found alive at start.
    pub fn adopt(&mut self, owner: &str, addresses: &[IpAddr]) {
        for address in addresses {
            for range in &mut self.ranges {
                if let Some(offset) = range.offset(*address) {
                    range.set(offset, true);
                }
            }
        }
        self.owners.insert(owner.to_owned(), addresses.to_vec());
    }

    /// Ends an owner's lease; nothing happens if it has none.
    pub fn release(&mut self, owner: &str) {
        if let Some(addresses) = self.owners.remove(owner) {
            self.clear(&addresses);
        }
    }

    fn clear(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            for range in &mut self.ranges {
                if let Some(offset) = range.offset(*address) {
                    range.set(offset, false);
                }
            }
        }
    }

    /// Owners with a lease.
    pub fn leases(&self) -> usize {
        self.owners.len()
    }

    /// Pods the ranges have addresses for.
    pub fn capacity(&self) -> u64 {
        let of = |v4: bool| {
            let ranges = self.ranges.iter().filter(|r| r.net.addr().is_ipv4() == v4);
            ranges.map(|r| r.end - r.first).reduce(|a, b| a + b)
        };
        [of(true), of(false)].into_iter().flatten().min().unwrap_or(0)
    }

    /// The ranges in use.
    pub fn ranges(&self) -> Vec<IpNet> {
        self.ranges.iter().map(|r| r.net).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ipam(nets: &[&str]) -> Ipam {
        let mut ipam = Ipam::default();
        ipam.set_ranges(&nets.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>());
        ipam
    }

    #[test]
    fn both_families_are_leased_together() {
        let mut ipam = ipam(&["10.244.0.0/24", "fd00:1::/64"]);
        assert_eq!(ipam.lease("a").unwrap(), ["10.244.0.1".parse::<IpAddr>().unwrap(), "fd00:1::1".parse().unwrap()]);
        assert_eq!(ipam.capacity(), 254);
    }

    #[test]
    fn a_full_range_says_so_and_keeps_nothing_of_the_other_family() {
        let mut ipam = ipam(&["10.0.0.0/24", "fd00::/127"]);
        ipam.lease("a").unwrap();
        let error = ipam.lease("b").unwrap_err();
        assert_eq!(error, IpamError::Full { range: "fd00::/127".parse().unwrap(), size: 1 });
        assert!(error.to_string().contains("fd00::/127"));
        ipam.release("a");
        for owner in 0..254 {
            ipam.lease(&owner.to_string()).map(|_| ()).unwrap_or_default();
            ipam.release(&owner.to_string());
        }
        assert_eq!(ipam.leases(), 0);
        assert!(ipam.ranges.iter().all(|r| r.used.iter().all(|w| *w == 0)));
    }

    #[test]
    fn no_range_is_an_error_of_its_own() {
        assert_eq!(Ipam::default().lease("a"), Err(IpamError::NoRange));
    }

    #[test]
    fn tiny_and_huge_ranges_hold_what_they_can() {
        for (net, capacity) in [
            ("10.0.0.4/32", 1),
            ("10.0.0.4/31", 2),
            ("10.0.0.4/30", 2),
            ("10.0.0.0/16", 65534),
            ("10.0.0.0/8", 65535),
            ("fd00::/64", 65535),
            ("fd00::1/128", 1),
        ] {
            assert_eq!(ipam(&[net]).capacity(), capacity, "{net}");
        }
    }

    #[test]
    fn an_address_rests_before_it_is_used_again() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        let first = ipam.lease("a").unwrap();
        ipam.release("a");
        assert_ne!(ipam.lease("b").unwrap(), first);
    }

    proptest! {
        /// Against the obvious model: a set of addresses per owner, no address twice, all within the range,
        /// a lease fails only when the model is full.
        #[test]
        fn leases_follow_the_model(steps in proptest::collection::vec((0u8..20, any::<bool>()), 0..200)) {
            let net: IpNet = "10.1.2.0/28".parse().unwrap();
            let mut ipam = ipam(&["10.1.2.0/28"]);
            let mut model: BTreeMap<String, IpAddr> = BTreeMap::new();
            for (owner, add) in steps {
                let owner = owner.to_string();
                if add {
                    match ipam.lease(&owner) {
                        Ok(a) => {
                            prop_assert_eq!(a.len(), 1);
                            prop_assert!(net.contains(&a[0]) && a[0] != net.network() && a[0] != net.broadcast());
                            if let Some(old) = model.insert(owner, a[0]) { prop_assert_eq!(old, a[0]); }
                        }
                        Err(_) => { prop_assert_eq!(model.len(), 14); prop_assert!(!model.contains_key(&owner)); }
                    }
                } else {
                    ipam.release(&owner);
                    model.remove(&owner);
                }
                prop_assert_eq!(model.values().collect::<BTreeSet<_>>().len(), model.len());
                // Rebuilding from the owners alone gives the same bitmap.
                let mut rebuilt = Ipam::default();
                for (owner, address) in &model { rebuilt.adopt(owner, &[*address]); }
                rebuilt.set_ranges(&[net]);
                prop_assert_eq!(&rebuilt.ranges[0].used, &ipam.ranges[0].used);
            }
        }
    }
}
