//! Ways out of the machine, as the kernel's routing helper answers; and what else drivers are asked.

use super::Fake;
use std::collections::HashMap;
use xebec_ebpf_abi::{Addr, Tuple};
use xebec_ebpf_logic::{
    route::{self, Router, Way},
    xdp::{Decided, Driver, Hop},
};

/// A route, as far as it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct NextHop {
    pub device: u32,
    pub mtu: u16,
    /// Hardware addresses of the next hop and of the device; none: nobody has asked the next hop yet.
    pub link: Option<[[u8; 6]; 2]>,
}

#[derive(Default, Debug)]
pub struct Routes {
    /// None: there is no way to these.
    pub ways: HashMap<Addr, Option<NextHop>>,
    /// For all others.
    pub way: Option<NextHop>,
}

/// What the helper can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Known,
    NoNeighbor,
    TooBig,
    None,
}

impl Answer {
    pub const ALL: [Answer; 4] = [
        Answer::Known,
        Answer::NoNeighbor,
        Answer::TooBig,
        Answer::None,
    ];
}

impl Routes {
    /// The route for a packet: it is of the family of its source.
    fn find(&self, tuple: &Tuple) -> Option<NextHop> {
        let (src, dst) = (tuple.src, tuple.dst);
        let to = if src.is_v4() {
            let to = Addr::from_v4_word(dst.words()[3]);
            if to.is_loopback() {
                return None;
            }
            to
        } else if needs_its_link(src) || needs_its_link(dst) {
            return None;
        } else {
            dst
        };
        match self.ways.get(&to) {
            // The kernel has other tables for the families.
            Some(way) if to.is_v4() == src.is_v4() => *way,
            Some(_) | None => self.way,
        }
    }

    /// The same for a packet that long; and what the helper says of it.
    pub fn ask(&self, tuple: &Tuple, len: u16) -> (Answer, Option<NextHop>) {
        match self.find(tuple) {
            None => (Answer::None, None),
            Some(way) if len > way.mtu => (Answer::TooBig, Some(way)),
            Some(way) if way.link.is_none() => (Answer::NoNeighbor, Some(way)),
            Some(way) => (Answer::Known, Some(way)),
        }
    }
}

/// `rt6_need_strict`: an address that says nothing without a device: `::1`, multicast and link-local ones.
fn needs_its_link(addr: Addr) -> bool {
    let octets = addr.octets();
    let link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
    addr.is_loopback() || octets[0] == 0xff || link_local
}

impl Fake {
    /// Asks, for the driver or not.
    pub fn ask(&self, driver: bool, tuple: &Tuple, len: u16) -> (Answer, Option<NextHop>) {
        let (answer, way) = self.routes.borrow().ask(tuple, len);
        *self
            .answers
            .borrow_mut()
            .entry((driver, answer))
            .or_default() += 1;
        (answer, way)
    }
}

/// tc leaves the neighbour to the kernel, and asks for a byte: what is too big it finds out itself.
impl Router for &Fake {
    fn segment(self) -> u32 {
        self.segment.get()
    }

    fn mark(self) -> u32 {
        0
    }

    fn way(self, tuple: &Tuple) -> u64 {
        let (device, mtu) = match self.ask(false, tuple, 1).1 {
            Some(way) => (way.device, u32::from(way.mtu)),
            None => (0, 0),
        };
        Way { device, mtu }.number()
    }
}

/// A device whose driver runs a program.
pub struct Device<'a> {
    pub fake: &'a Fake,
    pub ifindex: u32,
}

impl Driver for Device<'_> {
    fn now(&self) -> u64 {
        self.fake.time.get()
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn own(&self, ifindex: u32) -> Option<[u16; 3]> {
        let mac = *self.fake.xdp_devices.borrow().get(&ifindex)?;
        Some([0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]])))
    }

    fn with_decided<R>(&self, key: &Tuple, f: impl FnOnce(&Decided) -> R) -> Option<R> {
        self.fake.decided.borrow().get(key).map(f)
    }

    fn set_decided(&self, key: &Tuple, value: &Decided) {
        self.fake.decided.borrow_mut().insert(*key, *value);
    }

    fn next_hop(&self, tuple: &Tuple, len: u16, decided: &mut Decided) -> Hop {
        let (answer, way) = self.fake.ask(true, tuple, len);
        let device = match (answer, way) {
            // The helper gets to the next device only with what is short enough.
            (Answer::Known | Answer::NoNeighbor, Some(way)) => way.device,
            _ => self.ifindex,
        };
        decided.ifindex = device;
        match (answer, way) {
            (Answer::Known, Some(way)) => {
                decided.mtu = route::largest(self.fake, device, u32::from(way.mtu)) as u16;
                let bytes = way.link.unwrap_or_default().concat();
                decided.link = [0, 4, 8].map(|at| {
                    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
                });
                Hop::Known
            }
            (Answer::NoNeighbor | Answer::TooBig, _) => Hop::Device,
            _ => Hop::None,
        }
    }
}
