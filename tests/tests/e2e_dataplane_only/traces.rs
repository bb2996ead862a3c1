//! What the dataplane could leave on its node, in the places the manifest gives it and in the node's network.

use std::{collections::BTreeSet, fs, path::Path};

use crate::cluster::Cluster;

/// The settings a network component is tempted to change.
const SETTINGS: &str =
    "/proc/sys/net/ipv4/*forward* /proc/sys/net/ipv4/conf/{all,default,eth0}/* /proc/sys/net/ipv6/conf/{all,default,eth0}/*";

#[derive(Debug)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    pub fn of(cluster: &Cluster) -> Traces {
        let mut found = BTreeSet::new();
        let mut note = |what: &str, items: Vec<String>| found.extend(items.into_iter().map(|item| format!("{what} {item}")));
        let run_dir = &cluster.node.run_dir;
        for dir in [&run_dir.join("cni"), &run_dir.join("cni-bin"), &run_dir.join("only"), &run_dir.join("bpf"), &cluster.state] {
            note("file", files(dir));
        }
        for args in ["-o link", "-o address", "route show table all", "rule show", "-6 rule show"] {
            let lines = cluster.in_netns(&format!("ip {args}"));
            // Lifetimes change by themselves.
            let stable =
                lines.iter().filter(|line| !line.contains("cache")).map(|line| line.split(" valid_lft").next().unwrap_or_default());
            note("network", stable.map(str::to_owned).collect());
        }
        note("network", cluster.in_netns("tc qdisc show"));
        for filter in ["nft list ruleset", "iptables-save"] {
            note("filter", cluster.in_netns(filter));
        }
        let settings = cluster.in_netns(&format!("bash -c 'grep -s . {SETTINGS}'"));
        note("setting", settings.into_iter().filter(|line| !line.contains("stable_secret")).collect());
        note("program", attached(cluster));
        Traces(found)
    }

    /// What is new, and what of the network is gone.
    pub fn difference(&self, before: &Traces) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|item| format!("new: {item}"));
        let gone = before.0.difference(&self.0).filter(|item| item.starts_with("setting ") || item.starts_with("network "));
        new.chain(gone.map(|item| format!("gone: {item}"))).collect()
    }
}

/// Files below a directory; those of the kernel's own in a BPF file system do not count.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.push(path.display().to_string());
            found.extend(files(&path));
        } else if path.extension().is_none_or(|extension| extension != "debug") {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Ids of the maps that are pinned. A link keeps its program and a program its maps: once these are gone from the kernel, all is.
pub fn pinned_maps(cluster: &Cluster) -> BTreeSet<u32> {
    let pins = files(&cluster.node.pin_dir()).into_iter().filter(|path| path.contains("/maps-") && !Path::new(path).is_dir());
    pins.map(|path| aya::maps::MapInfo::from_pin(&path).unwrap_or_else(|error| panic!("{path}: {error}")).id()).collect()
}

/// Programs on the node's cgroup and devices, where bpftool is there to ask.
fn attached(cluster: &Cluster) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2").unwrap()[1].to_owned();
    let tree = cluster.in_netns(&format!("bpftool cgroup tree {mount}{}", cluster.node.cgroup_name()));
    let devices = cluster.in_netns("bpftool net show");
    tree.into_iter()
        .filter(|line| line.contains("cgroup_inet"))
        .chain(devices.into_iter().filter(|line| ["tcx", "clsact", "driver id", "generic id"].iter().any(|word| line.contains(word))))
        .collect()
}
