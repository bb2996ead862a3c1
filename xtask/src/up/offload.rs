//! Receive offload of veths: what makes a veth take packets that its other end's XDP programs send or redirect.

use std::{fs::File, io, path::Path};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// `ETHTOOL_SGRO` of linux/ethtool.h.
const SET_GRO: u32 = 0x2c;
/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches it on for devices of a namespace, as a network card has it.
pub fn receive(namespace: &Path, devices: &[String]) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    let devices = devices.to_vec();
    // A thread of its own, because a thread that has left its namespace does not come back.
    let done = std::thread::spawn(move || -> Result<()> {
        setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))?;
        devices.iter().try_for_each(|device| set(&socket, device).with_context(|| format!("cannot switch on receive offload of {device}")))
    });
    match done.join() {
        Ok(result) => result,
        Err(_) => bail!("the thread that enters {} died", namespace.display()),
    }
}

fn set(socket: &std::net::UdpSocket, device: &str) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut value = Value { command: SET_GRO, data: 1 };
    let mut name = [0; libc::IFNAMSIZ];
    if device.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    name.iter_mut().zip(device.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    let union = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: union };
    // SAFETY: the request names a device with its terminating zero, and points to a value that outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
