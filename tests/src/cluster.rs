//! A cluster for a test, which goes away with it.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xebec_host::process::{pid_file, running};
use xtask::{
    build::Profile,
    down,
    up::{self, IpFamily, LbMode, Node, Routing, Store},
};

/// How long anything may take; nothing is tested for speed here.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The demo image, as manifests name it.
pub const IMAGE: &str = "localhost/xebec/busybox:1";

/// A running cluster; dropping it takes it down and removes its state.
pub struct Cluster {
    pub args: up::Args,
    pub up: up::Cluster,
}

/// What `cargo xtask up --name NAME` is called with.
pub fn args(name: &str, store: Store) -> up::Args {
    let profile = std::env::var("XEBEC_PROFILE").unwrap_or_else(|_| "release".to_owned());
    let profile = Profile::from_str(&profile, true).expect("XEBEC_PROFILE is dev or release");
    up::Args {
        name: format!("e2e-{name}"),
        nodes: None,
        store,
        routing: Routing::Native,
        lb_mode: LbMode::Snat,
        ip_family: IpFamily::Ipv4,
        profile,
        no_demo: true,
        no_build: true,
    }
}

impl Cluster {
    /// Of one node.
    pub fn up(name: &str) -> Cluster {
        Cluster::with(args(name, Store::Embedded))
    }

    /// Of several.
    pub fn of_nodes(name: &str, nodes: u8) -> Cluster {
        Cluster::with(up::Args { nodes: Some(nodes), ..args(name, Store::Embedded) })
    }

    pub fn with(args: up::Args) -> Cluster {
        // An earlier run may have been cut off.
        down(&args.name, true);
        // Taken down also when it does not come up.
        let cut_off = Cleanup(args.name.clone());
        let up = up::bring_up(&args).unwrap_or_else(|error| panic!("{error:#}"));
        std::mem::forget(cut_off);
        Cluster { up, args }
    }

    /// Starts what does not run.
    #[track_caller]
    pub fn bring_up(&self) {
        up::bring_up(&self.args).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Starts all agents anew, with this way from outside to pods of other nodes.
    #[track_caller]
    pub fn set_lb_mode(&mut self, lb_mode: LbMode) {
        self.args.lb_mode = lb_mode;
        (1..=self.up.nodes.len() as u8).for_each(|number| self.kill(number, "agent"));
        self.bring_up();
    }

    /// What survives `down` without `--purge`.
    pub fn state_dir(&self) -> &Path {
        &self.up.layout.dir
    }

    /// The first is 1.
    #[track_caller]
    pub fn node(&self, number: u8) -> &Node {
        self.up.nodes.iter().find(|node| node.number == number).unwrap_or_else(|| panic!("there is no node {number}"))
    }

    pub fn node_ip(&self, number: u8) -> IpAddr {
        self.up.network.primary(number)
    }

    /// In every family, the primary one first.
    pub fn node_ips(&self, number: u8) -> Vec<IpAddr> {
        self.up.network.node(number)
    }

    /// What a program said that runs beside the node's own processes; it must succeed.
    #[track_caller]
    pub fn on_node(&self, number: u8, program: &str, args: &[&str]) -> String {
        let output = self.node(number).command(program).unwrap().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {} on node {number}: {said}", args.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Commands of `ip` in the namespace of the bridge, whose ports are `host`, `node1`, `node2`, …
    #[track_caller]
    pub fn on_wire(&self, args: &[&str]) {
        let output = Command::new("ip").args(["-n", &self.up.layout.wire_name()]).args(args).output().unwrap();
        assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }

    /// Kills a part of a node: `agent`, `server`, `containerd`.
    #[track_caller]
    pub fn kill(&self, number: u8, part: &str) {
        let (pids, program) = (pid_file(&self.node(number).run_dir, part), if part == "containerd" { part } else { "xebec" });
        let pid = running(&pids, program).unwrap_or_else(|| panic!("the {part} of node {number} does not run"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("the killed part is gone", || running(&pids, program).is_none());
    }

    /// What kubectl printed; it must succeed.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        let output = self.try_kubectl(args, input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {said}", args.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whatever comes of it.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.kubectl_command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.as_bytes().to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // kubectl may end before it has read everything.
        let _ = writer.join().unwrap();
        output
    }

    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        // A cache of its own: others may have asked a different cluster at the same address.
        command.arg("--kubeconfig").arg(&self.up.kubeconfig).arg("--cache-dir").arg(self.up.layout.run_dir.join("kubectl-cache"));
        command.args(args).env_remove("KUBECONFIG");
        command
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.kubectl_with(&["apply", "-f", "-"], manifest);
    }

    /// Starts a pod that sleeps, and waits until it runs.
    #[track_caller]
    pub fn sleeper(&self, name: &str, namespace: &str) {
        let script = "trap 'exit 0' TERM; sleep 100000 & wait";
        self.kubectl(&["run", name, "-n", namespace, "--image", IMAGE, "--command", "--", "sh", "-c", script]);
        self.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.up.nodes {
                for part in ["server", "agent", "containerd"] {
                    show_end_of(&node.logs().join(format!("{part}.log")));
                }
            }
        }
        down(&self.args.name, true);
    }
}

fn show_end_of(file: &PathBuf) {
    if let Ok(log) = fs::read_to_string(file) {
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- the end of {}\n{}", file.display(), lines[lines.len().saturating_sub(30)..].join("\n"));
    }
}

/// Takes down by name what has no [`Cluster`] yet.
struct Cleanup(String);

impl Drop for Cleanup {
    fn drop(&mut self) {
        down(&self.0, true);
    }
}

/// Ends a cluster; whatever could not be removed fails the test.
pub fn down(name: &str, purge: bool) {
    let failures = down::take_down(&down::Args { name: name.to_owned(), purge }).unwrap();
    if !std::thread::panicking() {
        assert!(failures.is_empty(), "{failures:?}");
    }
}

/// Polls until it holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
