//! The ring of events and who listens to it.

use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use xebec_ebpf_abi::{Event, Listen, map};

use super::loader::chain;
use super::maps::take;
use crate::Error;

/// The reading end. There is one: what is read is gone.
pub struct Events {
    ring: RingBuf<MapData>,
    listen: Array<MapData, Listen>,
    untold: PerCpuArray<MapData, u64>,
}

impl Events {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Events, Error> {
        Ok(Events { ring: take(ebpf, map::EVENTS)?, listen: take(ebpf, map::LISTEN)?, untold: take(ebpf, map::UNTOLD)? })
    }

    /// Says what is to be told.
    pub fn want(&mut self, listen: Listen) -> Result<(), Error> {
        let set = self.listen.set(0, listen, 0);
        set.map_err(|e| Error::Map { what: "write LISTEN".into(), reason: chain(&e) })
    }

    /// Up to so many events that have come; none: wait until the descriptor is readable.
    pub fn read(&mut self, most: usize) -> Vec<Event> {
        let mut found = Vec::new();
        while found.len() < most {
            let Some(item) = self.ring.next() else { break };
            if item.len() == size_of::<Event>() {
                // SAFETY: as many bytes as an event has, and any bytes are one.
                found.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
        found
    }

    /// Events that were wanted and not told, since the map was made.
    pub fn untold(&self) -> u64 {
        self.untold.get(&0, 0).map_or(0, |counts| counts.iter().sum())
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
