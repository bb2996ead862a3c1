//! The `loopback` plugin: `lo` of the sandbox up. Its addresses come with the kernel.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde_json::{Value, json};

use crate::wire::{Env, Failure};

/// Serves one call.
pub fn call(env: &Env, version: &str) -> Result<Value, Failure> {
    match env.command.as_str() {
        "ADD" => {
            set_up(&env.netns).map_err(|e| Failure::new(100, "cannot bring up lo of the sandbox", format!("{}: {e}", env.netns)))?;
            Ok(result(version, &env.netns))
        }
        "CHECK" => match flags(&env.netns) {
            Ok(f) if f & libc::IFF_UP != 0 => Ok(Value::Null),
            Ok(_) => Err(Failure::plain(100, "lo of the sandbox is down")),
            Err(e) => Err(Failure::new(100, "cannot read lo of the sandbox", format!("{}: {e}", env.netns))),
        },
        // lo goes with its namespace.
        "DEL" | "STATUS" | "GC" => Ok(Value::Null),
        other => Err(Failure::new(4, "unknown CNI_COMMAND", other)),
    }
}

fn result(version: &str, netns: &str) -> Value {
    let mut ips = vec![json!({"address": "127.0.0.1/8", "interface": 0}), json!({"address": "::1/128", "interface": 0})];
    if version.starts_with("0.") {
        ips[0]["version"] = json!("4");
        ips[1]["version"] = json!("6");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": ips,
    })
}

fn set_up(netns: &str) -> io::Result<()> {
    let (socket, mut request) = lo(netns)?;
    // SAFETY: lo() filled the flags member of the union.
    let now = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = now | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    cvt(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
}

fn flags(netns: &str) -> io::Result<i32> {
    let (_socket, request) = lo(netns)?;
    // SAFETY: lo() filled the flags member of the union.
    Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// Enters the namespace (the process does nothing else afterwards) and reads the flags of `lo`.
fn lo(netns: &str) -> io::Result<(OwnedFd, libc::ifreq)> {
    let namespace = File::open(netns)?;
    // SAFETY: setns takes a file descriptor that stays open through the call.
    cvt(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    // SAFETY: socket returns a new descriptor or -1, which is checked before it is owned.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        cvt(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: ifreq is plain data, all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS fills one ifreq, which lives through the call.
    cvt(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    Ok((socket, request))
}

fn cvt(code: libc::c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_before_1_0_name_the_ip_version() {
        assert_eq!(result("0.3.1", "/n")["ips"][0]["version"], "4");
        assert!(result("1.0.0", "/n")["ips"][0].get("version").is_none());
    }
}
