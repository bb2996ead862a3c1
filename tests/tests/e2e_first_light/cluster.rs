//! A cluster for a test, which goes away with it.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use xtask::{
    build::Profile,
    down,
    up::{self, Store},
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
    up::Args { name: format!("e2e-{name}"), store, profile, no_demo: true, no_build: true }
}

impl Cluster {
    pub fn up(name: &str) -> Cluster {
        Cluster::with(args(name, Store::Embedded))
    }

    pub fn with(args: up::Args) -> Cluster {
        // An earlier run may have been cut off.
        down(&args.name, true);
        Cluster { up: up::bring_up(&args).unwrap_or_else(|error| panic!("{error:#}")), args }
    }

    /// What kubectl printed; it must succeed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// The same with something on its standard input.
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

    pub fn apply(&self, manifest: &str) {
        self.kubectl_with(&["apply", "-f", "-"], manifest);
    }

    /// Starts a pod that sleeps, and waits until it runs.
    pub fn sleeper(&self, name: &str, namespace: &str) {
        let script = "trap 'exit 0' TERM; sleep 100000 & wait";
        self.kubectl(&["run", name, "-n", namespace, "--image", IMAGE, "--command", "--", "sh", "-c", script]);
        self.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for part in ["server", "agent", "containerd"] {
                let log = std::fs::read_to_string(self.up.layout.logs().join(format!("{part}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the end of {part}.log\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        down(&self.args.name, true);
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
