//! Node ports.

use std::collections::HashSet;

/// Why a port cannot be had, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("range is full")]
    Full,
    #[error("provided port is already allocated")]
    Allocated,
    #[error("provided port is not in the valid range. The range of valid ports is {first}-{last}")]
    NotInRange { first: u16, last: u16 },
}

/// A range of ports and what is taken of it.
#[derive(Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
    used: HashSet<u16>,
}

impl PortRange {
    /// Both ends belong to it.
    pub fn new(first: u16, last: u16) -> PortRange {
        PortRange { first, last, used: HashSet::new() }
    }

    pub fn take(&mut self, port: u16) -> Result<(), PortError> {
        if port < self.first || port > self.last {
            return Err(PortError::NotInRange { first: self.first, last: self.last });
        }
        if self.used.insert(port) { Ok(()) } else { Err(PortError::Allocated) }
    }

    /// Takes a free port; `seed` decides which. The low band is for requests, as with addresses (KEP-3668).
    pub fn take_any(&mut self, seed: u64) -> Result<u16, PortError> {
        let size = u32::from(self.last) - u32::from(self.first) + 1;
        let reserved = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
        for (from, to) in [(reserved, size), (0, reserved)] {
            let span = to - from;
            if span == 0 {
                continue;
            }
            let start = (seed % u64::from(span)) as u32;
            let ports = (0..span).map(|step| self.first + (from + (start + step) % span) as u16);
            if let Some(port) = ports.into_iter().find(|port| !self.used.contains(port)) {
                self.used.insert(port);
                return Ok(port);
            }
        }
        Err(PortError::Full)
    }

    pub fn release(&mut self, port: u16) {
        self.used.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once_and_come_back() {
        let mut range = PortRange::new(30000, 30019);
        let all: HashSet<u16> = (0..20).map(|seed| range.take_any(seed * 31).unwrap()).collect();
        assert_eq!(all.len(), 20);
        assert_eq!(range.take_any(0), Err(PortError::Full));
        assert_eq!(range.take(30000), Err(PortError::Allocated));
        range.release(30004);
        assert_eq!(range.take_any(0), Ok(30004));
        assert_eq!(
            range.take(80).unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-30019"
        );
    }
}
