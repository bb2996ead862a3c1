//! What a cluster could leave on the machine. Only what is this cluster's, or nobody's, counts: others may run beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use xtask::up::Layout;

/// The machine as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    namespaces: BTreeSet<String>,
    links_and_routes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    processes: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
    sysctls: BTreeMap<String, String>,
}

impl Traces {
    /// What there is of this cluster, and of none that is named like ours.
    pub fn of(layout: &Layout) -> Traces {
        let own = layout.first().name;
        let others = |text: &str| text.contains("xebec-") || text.contains("/target/");
        let relevant = |text: &str| {
            text.contains(&own) || text.contains(&layout.device()) || text.contains(&format!("/target/{}/", layout.name)) || !others(text)
        };
        let keep = |items: Vec<String>| items.into_iter().filter(|item| relevant(item)).collect::<BTreeSet<_>>();
        Traces {
            namespaces: keep(names("/run/netns")),
            links_and_routes: keep([ip(&["-o", "link"]), ip(&["-o", "address"]), ip(&["route", "show", "table", "all"])].concat()),
            mounts: keep(mounts()),
            processes: processes(layout),
            cgroups: keep(cgroups()),
            files: keep([files_in_run(), stale_shim_sockets(), names("/opt"), names("/etc/cni/net.d")].concat()),
            sysctls: sysctls(),
        }
    }
}

impl Traces {
    /// What is there now and was not; of the network and the sysctls also what is no longer there.
    pub fn difference(&self, before: &Traces) -> Vec<String> {
        let lists = |traces: &Traces| {
            let Traces { namespaces, links_and_routes, mounts, processes, cgroups, files, sysctls } = traces;
            let mut all: BTreeSet<String> = BTreeSet::new();
            for (what, list) in [
                ("namespace", namespaces),
                ("network", links_and_routes),
                ("mount", mounts),
                ("process", processes),
                ("cgroup", cgroups),
                ("file", files),
            ] {
                all.extend(list.iter().map(|item| format!("{what} {item}")));
            }
            all.extend(sysctls.iter().map(|(name, value)| format!("sysctl {name} = {}", value.trim())));
            all
        };
        let (now, then) = (lists(self), lists(before));
        let new = now.difference(&then).map(|item| format!("new: {item}"));
        let gone = then.difference(&now).filter(|item| item.starts_with("network ") || item.starts_with("sysctl "));
        new.chain(gone.map(|item| format!("gone: {item}"))).collect()
    }
}

fn names(dir: &str) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// Without the directories that every containerd and every namespace share.
fn files_in_run() -> Vec<String> {
    names("/run").into_iter().filter(|path| !["/run/containerd", "/run/netns"].contains(&path.as_str())).collect()
}

/// Sockets that nobody listens on any more.
fn stale_shim_sockets() -> Vec<String> {
    let open = fs::read_to_string("/proc/net/unix").unwrap();
    names("/run/containerd/s").into_iter().filter(|path| !open.contains(path)).collect()
}

fn ip(args: &[&str]) -> Vec<String> {
    let output = Command::new("ip").args(args).output().unwrap();
    // Counters and lifetimes change by themselves.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.contains("cache")).map(|line| line.split(" valid_lft").next().unwrap_or_default().to_owned()).collect()
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// Processes of the cluster, by what they are called with and by their cgroup.
fn processes(layout: &Layout) -> BTreeSet<String> {
    let own = layout.first().name;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (line, cgroup) = (read("cmdline").replace('\0', " "), read("cgroup"));
        if line.contains(&own) || cgroup.contains(&format!("/{own}/")) || cgroup.contains(&format!("/{own}.")) {
            found.insert(line);
        }
    }
    found
}

fn cgroups() -> Vec<String> {
    let roots = fs::read_to_string("/proc/self/mounts").unwrap();
    let roots = roots.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| path.to_owned())
    });
    roots.flat_map(|root| names(&root)).filter(|path| Path::new(path).is_dir()).collect()
}

/// Settings a network component is tempted to change.
fn sysctls() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let dirs = [
        "net/core",
        "net/ipv4",
        "net/ipv4/conf/all",
        "net/ipv4/conf/default",
        "net/ipv6/conf/all",
        "net/ipv6/conf/default",
        "vm",
        "fs/inotify",
    ];
    for dir in dirs {
        for file in names(&format!("/proc/sys/{dir}")) {
            if let Ok(value) = fs::read_to_string(&file) {
                found.insert(file, value);
            }
        }
    }
    found
}

/// Waits until everything is as before: the kernel takes some things away a moment later.
#[track_caller]
pub fn nothing_is_left(layout: &Layout, before: &Traces) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = Traces::of(layout).difference(before);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "down left: {left:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Ids of the maps a cluster's nodes have pinned. A link keeps its program and a program its maps, so once these maps are gone
/// from the kernel, everything is.
pub fn pinned_maps(layout: &Layout) -> BTreeSet<u32> {
    let pins = layout.nodes_with_traces().into_iter().flat_map(|node| names(&node.pin_dir().display().to_string()));
    pins.filter(|dir| dir.contains("/maps-"))
        .flat_map(|dir| names(&dir))
        .map(|path| aya::maps::MapInfo::from_pin(&path).unwrap_or_else(|error| panic!("{path}: {error}")).id())
        .collect()
}

/// Those of the ids that are still loaded.
pub fn still_loaded(maps: &BTreeSet<u32>) -> Vec<u32> {
    aya::maps::loaded_maps().flatten().map(|info| info.id()).filter(|id| maps.contains(id)).collect()
}
