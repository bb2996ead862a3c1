//! A node with containerd and a control plane but without a network of its own: the agent that `up` starts has been taken
//! away, as `xebec down --dataplane-only` does.

use std::{net::IpAddr, ops::Deref, path::PathBuf, process::Command};

use serde_json::Value;
use xebec_host::containerd::import_args;
use xebec_tests::cluster::{self, IMAGE};
use xtask::{image, up::Node};

const MANIFEST: &str = include_str!("../../../deploy/daemonset.yaml");

pub struct Cluster {
    pub node: Node,
    /// The manifest with the node's own places in it, since other nodes live on the same file system.
    pub manifest: String,
    /// In place of /var/lib/xebec.
    pub state: PathBuf,
    cluster: cluster::Cluster,
}

impl Deref for Cluster {
    type Target = cluster::Cluster;

    fn deref(&self) -> &cluster::Cluster {
        &self.cluster
    }
}

/// The pod of the DaemonSet.
pub struct AgentPod {
    pub name: String,
    pub ready: bool,
}

impl Cluster {
    pub fn up(name: &str) -> Cluster {
        let cluster = cluster::Cluster::up(name);
        let node = cluster.node(1).clone();
        let state = node.dir.join("only");
        let cluster = Cluster { manifest: manifest(&node, &state), node, state, cluster };
        cluster.take_away_own_agent();
        cluster
    }

    pub fn ip_address(&self) -> IpAddr {
        self.node_ip(1)
    }

    /// The agent ends, and the command for a node whose agent is dead removes the rest.
    fn take_away_own_agent(&self) {
        let (node, dir) = (&self.node, |path: PathBuf| path.display().to_string());
        node.parts().and_then(|parts| Ok(parts.end("agent", "xebec")?)).unwrap_or_else(|error| panic!("{error:#}"));
        let (data, run, pins) = (dir(node.dir.clone()), dir(node.run_dir.clone()), dir(node.pin_dir()));
        let (conf, bin, program) = (dir(node.run_dir.join("cni")), dir(node.run_dir.join("cni-bin")), dir(self.up.binaries.xebec.clone()));
        let words = ["down", "--dataplane-only", "--cgroup-parent", &node.cgroup_name(), "--data-dir", &data, "--run-dir", &run];
        self.on_node(1, &program, &[&words[..], &["--pin-dir", &pins, "--cni-conf-dir", &conf, "--cni-bin-dir", &bin]].concat());
        assert!(!node.pin_dir().exists(), "the pins are gone");
        assert!(!self.on_node(1, "ip", &["-o", "link"]).contains("xbc"));
        // What the cluster's own containerd was given.
        for name in ["xebec-cni", "loopback"] {
            let _ = std::fs::remove_file(node.run_dir.join("cni-bin").join(name));
        }
    }

    /// As a host does at boot.
    pub fn mount_bpffs(&self) {
        let dir = self.node.pin_dir();
        std::fs::create_dir_all(&dir).unwrap();
        nix::mount::mount(Some("bpf"), &dir, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    }

    pub fn import_image(&self) {
        let archive = image::xebec(self.args.profile).unwrap_or_else(|error| panic!("{error:#}"));
        let socket = self.node.containerd(&self.up.binaries).socket();
        let output = Command::new("ctr").args(import_args(&socket, &archive)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the agent says of itself, by lines.
    pub fn status(&self) -> Vec<String> {
        let run_dir = self.node.run_dir.join("only");
        self.in_netns(&format!("{} status --node --run-dir {}", self.up.binaries.xebec.display(), run_dir.display()))
    }

    pub fn agent_pod(&self) -> Option<AgentPod> {
        let output = self.try_kubectl(&["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=xebec", "-o", "json"], "");
        let list: Value = serde_json::from_slice(&output.stdout).ok()?;
        let pod = list["items"].as_array()?.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null()).or(list["items"].get(0))?;
        let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten().any(ready);
        Some(AgentPod { name: pod["metadata"]["name"].as_str()?.to_owned(), ready })
    }

    /// Runs a shell command in a pod that ends with it.
    pub fn one_shot(&self, name: &str, label: &str, script: &str) {
        self.kubectl(&["run", name, "--image", IMAGE, "--restart=Never", "-l", label, "--command", "--", "sh", "-xc", script]);
    }

    pub fn phase(&self, pod: &str) -> String {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"])
    }

    pub fn pod_logs(&self) -> PathBuf {
        self.node.dir.join("kubelet/logs")
    }

    /// Of every pod of that name there was.
    pub fn logs_of(&self, pods: &str) -> String {
        let output = Command::new("sh").arg("-c").arg(format!("cat {}/{pods}*/*/*.log", self.pod_logs().display())).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    /// Lines of what a command prints in the node's namespace; nothing if it is not installed.
    pub fn in_netns(&self, command: &str) -> Vec<String> {
        let output = self.node.command("sh").unwrap().args(["-c", command]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pods in ["kube-system_xebec-", "default_allowed", "default_denied"] {
                let log = self.logs_of(pods);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the end of the log of {pods}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
            eprintln!("--- pods\n{}", String::from_utf8_lossy(&self.try_kubectl(&["get", "pods", "-A", "-o", "wide"], "").stdout));
        }
    }
}

/// The manifest's places, replaced by the node's; XDP, so that there is more to take away; and the cgroup above this node's pods, for others' are on this machine too.
fn manifest(node: &Node, state: &std::path::Path) -> String {
    let places = [
        ("/sys/fs/bpf", node.pin_dir()),
        ("/run/xebec", node.run_dir.join("only")),
        ("/var/lib/xebec", state.to_owned()),
        ("/etc/cni/net.d", node.run_dir.join("cni")),
        ("/opt/cni/bin", node.run_dir.join("cni-bin")),
    ];
    let mut text = MANIFEST.to_owned();
    // Through marks, since a new place may contain an old one.
    for (index, (place, _)) in places.iter().enumerate() {
        assert!(text.contains(place), "the manifest names {place}");
        text = text.replace(place, &format!("@{index}@"));
    }
    for (index, (_, own)) in places.iter().enumerate() {
        text = text.replace(&format!("@{index}@"), &own.display().to_string());
    }
    let flag = "            - --dataplane-only\n";
    // The node's uplink is a veth, on which XDP has to be asked for.
    text.replace(flag, &format!("{flag}            - --cgroup-parent={}\n            - --xdp=all\n", node.cgroup_name()))
}
