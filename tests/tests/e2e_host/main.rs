//! `xebec up` and `xebec down` on a machine with systemd and a network of its own.

mod machine;
mod sudo;

use std::{fs, path::Path, process::Command};

use machine::{ADDRESS, Machine};
use xebec_tests::cluster::{args, until};
use xtask::{image, up::Store, workspace};

const XEBEC: &str = "/var/lib/xebec/bin/xebec";
const STATUS: [&str; 4] = [XEBEC, "status", "--kubeconfig", "/var/lib/xebec/server/admin.kubeconfig"];

#[test]
fn a_host_becomes_a_node_and_is_itself_again() {
    let state = workspace::target().join("e2e-host");
    let _ = fs::remove_dir_all(&state);
    install_programs(&state);
    let machine = Machine::boot(&state);
    let before = machine.ok(&["sh", "-c", TRACES]);
    machine.ok(&[XEBEC, "check"]);
    machine.ok(&[XEBEC, "up", "--node-name", "box"]);
    for unit in ["server", "containerd", "agent"] {
        machine.ok(&["systemctl", "is-active", &format!("xebec-{unit}.service")]);
        machine.ok(&["systemctl", "is-enabled", &format!("xebec-{unit}.service")]);
    }
    machine.ok(&STATUS);
    sudo::gives_the_user_a_kubeconfig_of_their_own(&machine);

    machine.ok(&[XEBEC, "image", "import", "/var/lib/xebec/bin/busybox.tar"]);
    machine.kubectl(&["apply", "-f", "/var/lib/xebec/bin/demo.yaml"]);
    machine.kubectl(&["-n", "demo", "wait", "--for=condition=Available", "deployment/web", "--timeout=120s"]);
    let outside = || Command::new("timeout").args(["5", "busybox", "wget", "-qO-", &format!("http://{ADDRESS}:30080/")]).output().unwrap();
    until("the NodePort answers from outside", || outside().stdout.starts_with(b"web-"));
    let service = machine.kubectl(&["-n", "demo", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    // As any service of the host would ask, in a unit of its own.
    let answer = machine.ok(&["systemd-run", "--pipe", "--wait", "-q", "busybox", "wget", "-qO-", &format!("http://{service}/")]);
    assert!(answer.starts_with("web-"), "{answer}");

    let containers = containers(&machine);
    machine.ok(&[XEBEC, "up", "--node-name", "box"]);
    machine.ok(&["systemctl", "restart", "xebec-agent.service", "xebec-containerd.service", "xebec-server.service"]);
    until("the node is ready again", || machine.run(&STATUS).status.success());
    assert_eq!(self::containers(&machine), containers, "restarts of the parts disturb no container");
    until("the NodePort answers after the restarts", || outside().stdout.starts_with(b"web-"));

    machine.ok(&[XEBEC, "down"]);
    assert_eq!(difference(&before, &machine.ok(&["sh", "-c", TRACES])), Vec::<String>::new());
    assert!(state.join("server/state.redb").exists(), "the state survives");

    machine.ok(&[XEBEC, "up", "--node-name", "box"]);
    machine.kubectl(&["get", "namespace", "demo"]);
    until("the pods are back", || outside().stdout.starts_with(b"web-"));
    sudo::ok(&machine, &format!("{XEBEC} down --purge"));
    sudo::has_no_copies(&machine);
    assert_eq!(difference(&before, &machine.ok(&["sh", "-c", TRACES])), Vec::<String>::new());
    assert!(!state.join("server").exists(), "--purge forgets the cluster");
    drop(machine);
    fs::remove_dir_all(&state).unwrap();
}

/// What a node could leave: programs that run, mounts, devices, routes, settings, units, cgroups, BPF pins.
const TRACES: &str = "ps axo comm | grep -E 'xebec|containerd' ; ls /sys/fs/bpf /etc/systemd/system | grep xebec; ip -br addr; ip route; ip rule; \
    cut -d' ' -f5 /proc/self/mountinfo | grep -v -e '^/sys/fs/bpf$' -e /proc/ | sort; find /sys/fs/cgroup -name 'kubepods*' -o -name '*xebec*'; ls -d /run/xebec; \
    sysctl -a 2>/dev/null | grep -E '^net[.](ipv4|ipv6|core)' | grep -v -e neigh -e random";

/// Lines that came (`+`) and went (`-`).
fn difference(before: &str, after: &str) -> Vec<String> {
    let missing = |from: &str, of: &str, sign: char| {
        from.lines().filter(|line| !of.lines().any(|other| other == *line)).map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
    };
    [missing(after, before, '+'), missing(before, after, '-')].concat()
}

/// Container ids of the pods, by name.
fn containers(machine: &Machine) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    machine.kubectl(&["-n", "demo", "get", "pods", "-o", path])
}

/// Everything the machine needs that it cannot fetch.
fn install_programs(state: &Path) {
    let bin = state.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let built = args("host", Store::Embedded).profile.binaries();
    for (from, to) in [(&built.xebec, "xebec"), (&built.cni, "xebec-cni")] {
        fs::copy(from, bin.join(to)).unwrap();
    }
    fs::copy(workspace::root().join("deploy/demo.yaml"), bin.join("demo.yaml")).unwrap();
    fs::copy(image::make().unwrap().busybox, bin.join("busybox.tar")).unwrap();
}
