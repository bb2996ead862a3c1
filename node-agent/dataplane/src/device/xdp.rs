//! Which uplinks' drivers shall run the XDP program, and what came of it.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Where XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// Nowhere.
    Off,
    /// On every uplink whose driver runs it, veths excepted: one sends from XDP only if its other end runs a program
    /// too, which cannot be seen from here.
    #[default]
    Auto,
    /// On veths too.
    All,
}

/// What is done at an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The driver runs the program, tc takes the rest.
    Native,
    /// tc takes everything, for this reason.
    Tc(String),
}

impl Xdp {
    /// Why a device is not even to be tried.
    pub fn refuses(self, name: &str, has_mac: bool, tunnel: bool) -> Option<String> {
        match self {
            Xdp::Off => Some("XDP is switched off".into()),
            _ if tunnel => Some("a tunnel has no driver".into()),
            _ if !has_mac => Some("the device has no hardware address".into()),
            Xdp::Auto if driver(name).is_ok_and(|d| d == "veth") => {
                Some("a veth sends from XDP only if its other end runs an XDP program too: --xdp all says that it does".into())
            }
            Xdp::Auto | Xdp::All => None,
        }
    }
}

/// When a driver that refused is asked again the first time. What refused may be another's program that goes, an MTU or a number
/// of queues that is changed, of which nothing on the device tells us.
const FIRST: Duration = Duration::from_secs(5);
/// The longest wait: each time is twice the one before, for some drivers stop for a moment to find out that they cannot.
const LONGEST: Duration = Duration::from_secs(600);

/// Drivers that refused, by index.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<u32, Refusal>);

#[derive(Debug)]
struct Refusal {
    again: Instant,
    wait: Duration,
}

impl Refusals {
    /// The driver refused now. If it was asked before its time, for another reason, that changes nothing.
    pub fn refused(&mut self, index: u32, now: Instant) {
        let known = self.0.get(&index);
        if known.is_some_and(|refusal| now < refusal.again) {
            return;
        }
        let wait = known.map_or(FIRST, |refusal| (refusal.wait * 2).min(LONGEST));
        self.0.insert(index, Refusal { again: now + wait, wait });
    }

    /// Only these are still refused.
    pub fn retain(&mut self, refused: impl Fn(u32) -> bool) {
        self.0.retain(|index, _| refused(*index));
    }

    /// Whether it is time to ask one of them.
    pub fn is_due(&self, now: Instant) -> bool {
        self.0.values().any(|refusal| now >= refusal.again)
    }
}

/// The driver of a device.
fn driver(name: &str) -> io::Result<String> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = Info { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() };
    let mut request = libc::ifreq { ifr_name, ifr_ifru };
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    // SAFETY: the request names a device with its terminating zero, and points to the whole block, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let text = info.driver.split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_devices_are_never_tried() {
        assert!(Xdp::Off.refuses("eth0", true, false).is_some());
        assert!(Xdp::All.refuses("eth0", false, false).is_some());
        assert!(Xdp::All.refuses("vxlan", true, true).is_some());
        // Nobody knows a driver of a device that there is not: attaching will tell.
        assert_eq!(Xdp::Auto.refuses("no-such-device", true, false), None);
        assert_eq!(Xdp::All.refuses("no-such-device", true, false), None);
    }

    #[test]
    fn drivers_that_refused_are_asked_again_less_and_less_often() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        assert!(!refusals.is_due(at(1000)), "nobody refused");
        refusals.refused(3, at(0));
        assert_eq!([4, 5].map(|s| refusals.is_due(at(s))), [false, true]);
        refusals.refused(3, at(2));
        assert!(refusals.is_due(at(5)), "it was asked for another reason meanwhile");
        refusals.refused(3, at(5));
        assert_eq!([14, 15].map(|s| refusals.is_due(at(s))), [false, true]);
        let mut now = 15;
        for _ in 0..20 {
            refusals.refused(3, at(now));
            now += 600;
            assert!(refusals.is_due(at(now)), "at least every ten minutes");
        }
        refusals.refused(3, at(now));
        assert!(!refusals.is_due(at(now + 599)));
        refusals.refused(4, at(now));
        assert!(refusals.is_due(at(now + 5)), "each device has a time of its own");
        refusals.retain(|index| index == 3);
        assert!(!refusals.is_due(at(now + 5)), "it took the program, or is gone");
    }

    #[test]
    fn a_device_without_a_driver_or_a_name_that_cannot_be_is_an_error() {
        assert!(driver("no-such-device").is_err());
        assert!(driver("a-name-that-is-far-too-long").is_err());
    }
}
