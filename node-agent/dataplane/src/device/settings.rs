//! The kernel's settings that forwarding depends on: what each device shall have. Pure but for reading and writing them.

use super::sysctl::{self, Sysctls};
use crate::Error;

/// One setting, below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: &'static str,
    /// Of a device of ours, which takes it along when it goes.
    pub own: bool,
}

/// Which devices there are.
#[derive(Clone, Debug, Default)]
pub struct Devices<'a> {
    pub pods: Vec<&'a str>,
    pub uplinks: Vec<&'a str>,
    pub tunnel: Option<&'a str>,
    /// The node forwards IPv6.
    pub v6: bool,
}

/// What they shall have. `read` gives what a setting is now.
pub fn wanted(devices: &Devices<'_>, read: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |name: String, value: &'static str, own: bool| settings.push(Setting { name, value, own });
    add("net/ipv4/ip_forward".into(), "1", false);
    // Connections from outside to a backend elsewhere come in and leave by the same device: nobody shall be told of a better way.
    add("net/ipv4/conf/all/send_redirects".into(), "0", false);
    if devices.v6 {
        add("net/ipv6/conf/all/forwarding".into(), "1", false);
    }
    let strict = |name: &str| read(&format!("net/ipv4/conf/{name}/rp_filter")).is_some_and(|value| value == "1");
    let all_strict = strict("all");
    for name in &devices.uplinks {
        add(format!("net/ipv4/conf/{name}/forwarding"), "1", false);
        add(format!("net/ipv4/conf/{name}/send_redirects"), "0", false);
        // The greater of `all` and the device's counts: 2, loose, is the way out of a strict `all`. What is loose or off stays.
        if strict(name) || all_strict && read(&format!("net/ipv4/conf/{name}/rp_filter")).is_some_and(|value| value == "0") {
            add(format!("net/ipv4/conf/{name}/rp_filter"), "2", false);
        }
    }
    for name in devices.pods.iter().chain(&devices.tunnel) {
        // Packets come from addresses that are routed elsewhere: translated ones, and other nodes'.
        add(format!("net/ipv4/conf/{name}/rp_filter"), if all_strict { "2" } else { "0" }, true);
        add(format!("net/ipv4/conf/{name}/forwarding"), "1", true);
        if devices.v6 {
            add(format!("net/ipv6/conf/{name}/forwarding"), "1", true);
        }
        add(format!("net/ipv6/conf/{name}/accept_ra"), "0", true);
    }
    settings
}

/// Reads a setting of the calling thread's namespace.
pub fn read(name: &str) -> Option<String> {
    std::fs::read_to_string(std::path::Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}

/// Puts right what is not as it shall be. How many were not, and what could not be written.
pub fn put(settings: &[Setting], sysctls: &Sysctls) -> (usize, Vec<Error>) {
    let (mut changed, mut errors) = (0, Vec::new());
    for setting in settings {
        // A setting that is not there is of a device that has just gone, or of a family the kernel does not have.
        if read(&setting.name).is_none_or(|now| now == setting.value) {
            continue;
        }
        changed += 1;
        tracing::info!(setting = %setting.name, value = setting.value, "set");
        let done = match setting.own {
            true => sysctl::set_own(&setting.name, setting.value).map_err(Error::io("write", format!("/proc/sys/{}", setting.name))),
            false => sysctls.set(&setting.name, setting.value),
        };
        errors.extend(done.err());
    }
    (changed, errors)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn value(devices: &Devices<'_>, now: &[(&str, &str)], name: &str) -> Option<&'static str> {
        let now: BTreeMap<String, String> = now.iter().map(|(k, v)| (format!("net/ipv4/conf/{k}/rp_filter"), (*v).to_owned())).collect();
        let all = wanted(devices, |name| now.get(name).cloned());
        all.iter().find(|s| s.name == name).map(|s| s.value)
    }

    #[test]
    fn a_strict_filter_is_loosened_where_packets_come_from_elsewhere() {
        let devices = Devices { pods: vec!["p"], uplinks: vec!["u"], tunnel: Some("t"), v6: false };
        let filter = |name: &str| format!("net/ipv4/conf/{name}/rp_filter");
        // Of all, of the uplink: what the uplink and the pods shall have.
        for (all, uplink, of_uplink, of_pods) in
            [("0", "0", None, "0"), ("0", "1", Some("2"), "0"), ("1", "0", Some("2"), "2"), ("2", "0", None, "0"), ("1", "2", None, "2")]
        {
            let now = [("all", all), ("u", uplink), ("p", "1"), ("t", "1")];
            assert_eq!(value(&devices, &now, &filter("u")), of_uplink, "{all} {uplink}");
            assert_eq!(value(&devices, &now, &filter("p")), Some(of_pods), "{all} {uplink}");
            assert_eq!(value(&devices, &now, &filter("t")), Some(of_pods), "{all} {uplink}");
        }
    }

    #[test]
    fn ipv6_is_forwarded_only_where_it_is_used() {
        let with = |v6: bool| value(&Devices { v6, ..Devices::default() }, &[], "net/ipv6/conf/all/forwarding");
        assert_eq!((with(false), with(true)), (None, Some("1")));
    }
}
