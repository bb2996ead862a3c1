//! Cluster addresses of one range.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address cannot be had, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpError {
    #[error("range is full")]
    Full,
    #[error("provided IP is already allocated")]
    Allocated,
    #[error("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}")]
    NotInRange { ip: IpAddr, range: IpNet },
}

/// A range and what is taken of it.
#[derive(Debug)]
pub struct IpRange {
    net: IpNet,
    /// First usable address as an offset base: network address plus one.
    first: u128,
    /// Usable addresses: without network and (IPv4) broadcast address, at most 65536 of IPv6.
    size: u128,
    /// Offsets below this are handed out on request, and only when the rest is used up otherwise (KEP-3070).
    reserved: u128,
    used: HashSet<u128>,
}

impl IpRange {
    pub fn new(net: IpNet) -> IpRange {
        let base = number(net.network());
        let all = 1u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX);
        let size = match net {
            IpNet::V4(_) => all.saturating_sub(2),
            // A whole /64 could not be searched; upstream cuts off as well.
            IpNet::V6(_) => all.saturating_sub(1).min(1 << 20),
        };
        let reserved = if size < 16 { 0 } else { (size / 16).clamp(16, 256) };
        IpRange { net, first: base + 1, size, reserved, used: HashSet::new() }
    }

    pub fn is_ipv4(&self) -> bool {
        self.net.addr().is_ipv4()
    }

    fn offset(&self, ip: IpAddr) -> Option<u128> {
        if !self.net.contains(&ip) {
            return None;
        }
        number(ip).checked_sub(self.first).filter(|offset| *offset < self.size)
    }

    /// Whether the address could be taken now.
    pub fn check(&self, ip: IpAddr) -> Result<(), IpError> {
        match self.offset(ip) {
            None => Err(IpError::NotInRange { ip, range: self.net }),
            Some(offset) if self.used.contains(&offset) => Err(IpError::Allocated),
            Some(_) => Ok(()),
        }
    }

    /// Takes the address.
    pub fn take(&mut self, ip: IpAddr) -> Result<(), IpError> {
        self.check(ip)?;
        self.used.extend(self.offset(ip));
        Ok(())
    }

    /// Takes a free address; `seed` decides which.
    pub fn take_any(&mut self, seed: u64) -> Result<IpAddr, IpError> {
        for (from, to) in [(self.reserved, self.size), (0, self.reserved)] {
            let span = to - from;
            if span == 0 {
                continue;
            }
            let start = u128::from(seed) % span;
            // At most as many steps as there are used addresses, plus one.
            let free = (0..span).map(|step| from + (start + step) % span).find(|offset| !self.used.contains(offset));
            if let Some(offset) = free {
                self.used.insert(offset);
                return Ok(address(self.first + offset, self.is_ipv4()));
            }
        }
        Err(IpError::Full)
    }

    /// Gives an address back; one that is not of this range is ignored.
    pub fn release(&mut self, ip: IpAddr) {
        if let Some(offset) = self.offset(ip) {
            self.used.remove(&offset);
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_given_once() {
        let mut range = IpRange::new("10.0.0.0/27".parse().unwrap());
        let mut seen = HashSet::new();
        for seed in 0..30u64 {
            let ip = range.take_any(seed * 7919).unwrap();
            assert!(seen.insert(ip), "{ip} twice");
            assert!(range.net.contains(&ip));
        }
        assert_eq!(range.take_any(1), Err(IpError::Full));
        assert!(!seen.contains(&"10.0.0.0".parse().unwrap()) && !seen.contains(&"10.0.0.31".parse().unwrap()));
        range.release("10.0.0.7".parse().unwrap());
        assert_eq!(range.take_any(3).unwrap().to_string(), "10.0.0.7");
    }

    #[test]
    fn the_low_band_is_kept_for_requests() {
        let mut range = IpRange::new("10.96.0.0/12".parse().unwrap());
        for seed in 0..500 {
            let ip = range.take_any(seed << 20).unwrap();
            assert!(number(ip) > number("10.96.1.0".parse().unwrap()), "{ip}");
        }
        range.take("10.96.0.10".parse().unwrap()).unwrap();
        assert_eq!(range.take("10.96.0.10".parse().unwrap()).unwrap_err().to_string(), "provided IP is already allocated");
        assert_eq!(
            range.take("10.0.0.1".parse().unwrap()).unwrap_err().to_string(),
            "the provided IP (10.0.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12"
        );
    }

    #[test]
    fn ipv6_works() {
        let mut range = IpRange::new("fd00::/112".parse().unwrap());
        let ip = range.take_any(0).unwrap();
        assert_eq!(ip.to_string(), "fd00::101");
        range.take("fd00::5".parse().unwrap()).unwrap();
        assert!(range.check("fd00::1:5".parse().unwrap()).is_err());
    }
}
