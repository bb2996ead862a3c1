//! From facts to what an operator should know: pure.

use super::{Args, Facts};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Good,
    /// Works, but not as well as it could.
    Advice,
    /// Does not work without it.
    Lack,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    pub detail: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

/// Uplinks have their programs by TCX links, which this kernel brought (tcx, commit e420bed02507); pods need none.
const KERNEL_MIN: (u32, u32) = (6, 6);
/// Capabilities of capability.h that the agent uses.
const CAPABILITIES: [(u32, &str); 5] =
    [(1, "CAP_DAC_OVERRIDE"), (12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN")];
const CAP_SYS_RESOURCE: u32 = 24;

fn good(what: &str, detail: impl Into<String>) -> Finding {
    Finding { level: Level::Good, what: what.into(), detail: detail.into(), remedy: String::new() }
}

fn finding(level: Level, what: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { level, what: what.into(), detail: detail.into(), remedy: remedy.into() }
}

/// `6.18.4-foo` is (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The report, most basic things first.
pub fn findings(facts: &Facts, args: &Args) -> Vec<Finding> {
    let mut all = vec![kernel(facts)];
    all.push(match facts.btf {
        true => good("kernel BTF", "/sys/kernel/btf/vmlinux"),
        false => finding(
            Level::Lack,
            "kernel BTF",
            "/sys/kernel/btf/vmlinux is missing",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution kernel is)",
        ),
    });
    all.push(match facts.jit {
        Some(0) => finding(Level::Advice, "BPF JIT", "off: programs are interpreted", "sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => good("BPF JIT", "on"),
        None => good("BPF JIT", "always on"),
    });
    all.extend(facts.programs.iter().map(|(name, supported)| program(name, supported)));
    for name in ["bpf", "overlay"] {
        all.push(match (facts.filesystems.contains(name), name) {
            (true, _) => good(&format!("{name} filesystem"), "known to the kernel"),
            (false, "overlay") => finding(
                Level::Advice,
                "overlay filesystem",
                "unknown to the kernel: images are copied for each container",
                "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
            ),
            (false, _) => finding(Level::Lack, "bpf filesystem", "unknown to the kernel", "use a kernel with CONFIG_BPF_SYSCALL=y"),
        });
    }
    all.push(match &facts.veth {
        None => good("veth in a network namespace", "works"),
        Some(error) => finding(
            Level::Lack,
            "veth in a network namespace",
            error.clone(),
            "run as root; if it still fails, modprobe veth or use a kernel with CONFIG_VETH and CONFIG_NET_NS",
        ),
    });
    all.extend(cgroups(facts));
    all.push(capabilities(facts));
    all.extend(ports(facts));
    all.extend(packages(facts, args));
    all.extend(limits(facts));
    if !facts.other_cni.is_empty() {
        all.push(finding(
            Level::Advice,
            "other CNI configuration",
            format!("/etc/cni/net.d has {}", facts.other_cni.join(", ")),
            "containerd takes the first file by name: move these away if xebec is to be the node's network",
        ));
    }
    if facts.kube_proxy {
        all.push(finding(
            Level::Advice,
            "kube-proxy",
            "its NAT rules are on this host",
            "stop kube-proxy and run `kube-proxy --cleanup`: xebec serves the Services itself",
        ));
    }
    all
}

fn kernel(facts: &Facts) -> Finding {
    let what = "kernel";
    match version(&facts.kernel) {
        None => finding(Level::Lack, what, format!("version {:?} is not understood", facts.kernel), "Linux is needed"),
        Some(v) if v < KERNEL_MIN => finding(
            Level::Lack,
            what,
            format!("{} is older than {}.{}", facts.kernel, KERNEL_MIN.0, KERNEL_MIN.1),
            format!("install a kernel of at least {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
        ),
        Some(_) => good(what, format!("{} {}", facts.kernel, facts.machine)),
    }
}

fn program(name: &str, supported: &Result<bool, String>) -> Finding {
    let what = format!("BPF {name}");
    match supported {
        Ok(true) => good(&what, "loads"),
        Ok(false) => finding(
            Level::Lack,
            &what,
            "the kernel does not know this program type",
            "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF",
        ),
        Err(error) => finding(Level::Lack, &what, error.clone(), "run as root (CAP_BPF and CAP_NET_ADMIN)"),
    }
}

fn cgroups(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![match &facts.cgroup2 {
        Some(path) => good("cgroup2", format!("mounted at {path}")),
        None => finding(
            Level::Lack,
            "cgroup2",
            "not mounted: Services need it for their socket hooks",
            "mount -t cgroup2 none /sys/fs/cgroup/unified (or boot with systemd.unified_cgroup_hierarchy=1)",
        ),
    }];
    for (controller, level) in [("cpu", Level::Lack), ("memory", Level::Lack), ("pids", Level::Advice), ("cpuset", Level::Advice)] {
        let what = format!("cgroup controller {controller}");
        all.push(match facts.controllers.contains(controller) {
            true => good(&what, "there"),
            false => finding(
                level,
                &what,
                "missing: such limits of pods cannot be kept",
                format!("enable it on the kernel command line (cgroup_enable={controller}) or in /sys/fs/cgroup/cgroup.subtree_control"),
            ),
        });
    }
    all
}

fn capabilities(facts: &Facts) -> Finding {
    let has = |bit: u32| facts.capabilities & (1 << bit) != 0;
    let missing: Vec<&str> = CAPABILITIES.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return finding(Level::Lack, "capabilities", format!("missing {}", missing.join(", ")), "run as root");
    }
    if !has(CAP_SYS_RESOURCE) {
        return finding(
            Level::Advice,
            "capabilities",
            "no CAP_SYS_RESOURCE: oom_score_adj cannot be lowered",
            "containerd is configured with restrict_oom_score_adj; grant the capability to let critical pods be killed last",
        );
    }
    good("capabilities", "all")
}

fn ports(facts: &Facts) -> Vec<Finding> {
    if facts.taken.is_empty() {
        return vec![good("ports", "free")];
    }
    let use_of = |port: u16| match port {
        6443 => "the API server",
        10250 => "the kubelet API",
        _ => "VXLAN between nodes",
    };
    let level = |port: u16| if port == 8472 { Level::Advice } else { Level::Lack };
    facts
        .taken
        .iter()
        .map(|(proto, port, error)| {
            finding(
                level(*port),
                &format!("port {port}/{proto}"),
                format!("{error}; it is for {}", use_of(*port)),
                format!("find its owner with `ss -lnp '( sport = :{port} )'` and stop it"),
            )
        })
        .collect()
}

fn packages(facts: &Facts, args: &Args) -> Vec<Finding> {
    let mut wanted = vec![("containerd", "containerd"), ("containerd-shim-runc-v2", "containerd"), ("runc", "runc")];
    if args.server && args.store == "etcd" {
        wanted.push(("etcd", "etcd-server"));
    }
    wanted
        .into_iter()
        .map(|(program, package)| match facts.programs_on_path.contains(program) {
            true => good(program, "installed"),
            false => finding(
                Level::Lack,
                program,
                "not found",
                format!("apt-get install {package} (Debian, Ubuntu), or the package of that name of your distribution"),
            ),
        })
        .collect()
}

fn limits(facts: &Facts) -> Vec<Finding> {
    let least = [("fs.inotify.max_user_instances", 512_u64), ("fs.inotify.max_user_watches", 65_536), ("user.max_net_namespaces", 512)];
    least
        .into_iter()
        .filter_map(|(name, least)| {
            let value = *facts.sysctls.get(name)?;
            (value < least)
                .then(|| finding(Level::Advice, name, format!("{value} is little for many pods"), format!("sysctl -w {name}={least}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args { server: true, address: "0.0.0.0".parse().unwrap(), store: "embedded".into() }
    }

    fn healthy() -> Facts {
        Facts {
            kernel: "6.18.4-generic".into(),
            machine: "x86_64".into(),
            btf: true,
            jit: Some(1),
            filesystems: ["bpf", "overlay"].map(String::from).into(),
            cgroup2: Some("/sys/fs/cgroup".into()),
            controllers: ["cpu", "memory", "pids", "cpuset"].map(String::from).into(),
            capabilities: u64::MAX,
            programs: [("cgroup_sock_addr", Ok(true))].into(),
            veth: None,
            taken: Vec::new(),
            programs_on_path: ["containerd", "containerd-shim-runc-v2", "runc"].into(),
            ..Facts::default()
        }
    }

    fn levels(facts: &Facts, args: &Args) -> Vec<(Level, String)> {
        findings(facts, args).into_iter().filter(|f| f.level != Level::Good).map(|f| (f.level, f.what)).collect()
    }

    #[test]
    fn a_healthy_host_has_nothing_to_change() {
        assert_eq!(levels(&healthy(), &args()), []);
    }

    #[test]
    fn each_lack_is_named_with_a_remedy() {
        let spoil: [(fn(&mut Facts), &str); 9] = [
            (|f| f.kernel = "6.1.0-30-amd64".into(), "kernel"),
            (|f| f.btf = false, "kernel BTF"),
            (|f| f.filesystems.retain(|n| n != "bpf"), "bpf filesystem"),
            (|f| f.cgroup2 = None, "cgroup2"),
            (|f| f.controllers.retain(|n| n != "memory"), "cgroup controller memory"),
            (|f| f.capabilities = 0, "capabilities"),
            (|f| f.veth = Some("Operation not permitted".into()), "veth in a network namespace"),
            (|f| f.taken.push(("tcp", 6443, "Address in use".into())), "port 6443/tcp"),
            (|f| f.programs_on_path.retain(|n| *n != "runc"), "runc"),
        ];
        for (break_it, what) in spoil {
            let mut facts = healthy();
            break_it(&mut facts);
            assert_eq!(levels(&facts, &args()), [(Level::Lack, what.to_string())]);
            assert!(findings(&facts, &args()).iter().all(|f| (f.level == Level::Good) == f.remedy.is_empty()));
        }
    }

    #[test]
    fn what_only_costs_comfort_is_advice() {
        let mut facts = healthy();
        facts.capabilities &= !(1 << CAP_SYS_RESOURCE);
        facts.sysctls.insert("fs.inotify.max_user_instances", 128);
        assert!(levels(&facts, &args()).iter().all(|(level, _)| *level == Level::Advice));
        assert_eq!(levels(&facts, &args()).len(), 2);
    }

    #[test]
    fn etcd_is_wanted_only_by_a_server_that_uses_it() {
        let etcd = Args { store: "etcd".into(), ..args() };
        assert_eq!(levels(&healthy(), &etcd), [(Level::Lack, "etcd".to_string())]);
        assert_eq!(levels(&healthy(), &Args { server: false, ..etcd }), []);
    }
}
