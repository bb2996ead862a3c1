//! What is read off the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{TcpListener, UdpSocket},
    path::Path,
};

use super::Args;

/// Everything the findings are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`
    pub kernel: String,
    pub machine: String,
    /// `/sys/kernel/btf/vmlinux` is there.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`; `None` if the kernel has no such knob.
    pub jit: Option<u32>,
    /// Names in `/proc/filesystems`, and of those whose module can be loaded.
    pub filesystems: BTreeSet<String>,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<String>,
    /// Controllers of cgroup2 and of every mounted v1 hierarchy.
    pub controllers: BTreeSet<String>,
    /// `CapEff` of this process.
    pub capabilities: u64,
    /// BPF program types by name, and whether the kernel loads them.
    pub programs: BTreeMap<&'static str, Result<bool, String>>,
    /// What creating a veth pair in a namespace of its own said; `None` is success.
    pub veth: Option<String>,
    /// Ports something else has: (protocol, port, error).
    pub taken: Vec<(&'static str, u16, String)>,
    /// Programs on PATH.
    pub programs_on_path: BTreeSet<&'static str>,
    /// `/proc/sys` values by name.
    pub sysctls: BTreeMap<&'static str, u64>,
    /// Configurations of other CNI plugins in /etc/cni/net.d.
    pub other_cni: Vec<String>,
    /// kube-proxy's rules are there.
    pub kube_proxy: bool,
}

/// Where to look besides PATH: a service's PATH is often shorter than an administrator's.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const SYSCTLS: [&str; 3] = ["fs.inotify.max_user_instances", "fs.inotify.max_user_watches", "user.max_net_namespaces"];

impl Facts {
    /// Reads the host. Opens ports for a moment, and makes a network namespace that ends with the call.
    pub fn gather(args: &Args) -> Facts {
        let mounts = read("/proc/self/mounts");
        let cgroup2 =
            mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&"cgroup2")).map(|f| f[1].to_string());
        let uname = nix::sys::utsname::uname();
        let text = |s: Result<&std::ffi::OsStr, ()>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Facts {
            kernel: text(uname.as_ref().map(|u| u.release()).map_err(|_| ())),
            machine: text(uname.as_ref().map(|u| u.machine()).map_err(|_| ())),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            jit: read("/proc/sys/net/core/bpf_jit_enable").trim().parse().ok(),
            filesystems: filesystems(&read("/proc/filesystems")),
            controllers: controllers(&mounts, cgroup2.as_deref()),
            cgroup2,
            capabilities: capabilities(&read("/proc/self/status")),
            programs: programs(),
            veth: veth().err(),
            taken: taken(args),
            programs_on_path: ["containerd", "containerd-shim-runc-v2", "runc", "etcd"].into_iter().filter(|p| on_path(p)).collect(),
            sysctls: SYSCTLS
                .into_iter()
                .filter_map(|name| Some((name, read(&format!("/proc/sys/{}", name.replace('.', "/"))).trim().parse().ok()?)))
                .collect(),
            other_cni: other_cni(),
            kube_proxy: read("/proc/net/ip_tables_names").lines().any(|t| t == "nat") && kube_proxy_chains(),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn filesystems(proc_filesystems: &str) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = proc_filesystems.lines().filter_map(|l| l.split_whitespace().last()).map(str::to_string).collect();
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let modules = read(&format!("/lib/modules/{release}/modules.dep"));
    for name in ["overlay"] {
        if modules.lines().any(|l| l.split(':').next().is_some_and(|f| f.contains(&format!("/{name}.ko")))) {
            found.insert(name.to_string());
        }
    }
    found
}

fn controllers(mounts: &str, cgroup2: Option<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for fields in mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()) {
        if fields.get(2) == Some(&"cgroup") {
            found.extend(fields[3].split(',').map(str::to_string));
        }
    }
    if let Some(root) = cgroup2 {
        found.extend(read(&format!("{root}/cgroup.controllers")).split_whitespace().map(str::to_string));
    }
    found
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(line.trim(), 16).unwrap_or_default()
}

fn programs() -> BTreeMap<&'static str, Result<bool, String>> {
    use aya::programs::ProgramType;
    [("cgroup_sock_addr", ProgramType::CgroupSockAddr), ("classifier (tc)", ProgramType::SchedClassifier)]
        .into_iter()
        .map(|(name, kind)| (name, aya::sys::is_program_supported(kind).map_err(|e| e.to_string())))
        .collect()
}

/// Creates a veth pair in a network namespace that dies with the thread.
fn veth() -> Result<(), String> {
    let attempt = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| format!("network namespace: {e}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            handle.link().add(rtnetlink::LinkVeth::new("xbccheck0", "xbccheck1").build()).execute().await.map_err(|e| e.to_string())
        })
    };
    std::thread::spawn(attempt).join().map_err(|_| "the attempt ended in a panic".to_string())?
}

fn taken(args: &Args) -> Vec<(&'static str, u16, String)> {
    let mut found = Vec::new();
    let server: &[u16] = if args.server { &[6443] } else { &[] };
    for port in server.iter().chain(&[10250]) {
        if let Err(error) = TcpListener::bind((args.address, *port)) {
            found.push(("tcp", *port, error.to_string()));
        }
    }
    // The port VXLAN will need between nodes.
    if let Err(error) = UdpSocket::bind((args.address, 8472)) {
        found.push(("udp", 8472, error.to_string()));
    }
    found
}

fn on_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(PLACES).any(|dir| Path::new(dir).join(program).is_file())
}

fn other_cni() -> Vec<String> {
    let entries = fs::read_dir("/etc/cni/net.d").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.contains("xebec")).collect();
    names.retain(|n| [".conf", ".conflist", ".json"].iter().any(|end| n.ends_with(end)));
    names.sort();
    names
}

/// Asks `iptables-save`, if it is there, for the chain kube-proxy always makes.
fn kube_proxy_chains() -> bool {
    let Ok(output) = std::process::Command::new("iptables-save").args(["-t", "nat"]).output() else { return false };
    String::from_utf8_lossy(&output.stdout).contains(":KUBE-SERVICES ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_both_versions_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup2 /nowhere cgroup2 rw 0 0\n";
        let found = controllers(mounts, Some("/nowhere"));
        assert!(found.contains("cpu") && found.contains("cpuacct") && !found.contains("memory"));
    }

    #[test]
    fn effective_capabilities_are_read() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(capabilities(""), 0);
    }
}
