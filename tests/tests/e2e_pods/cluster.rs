//! A cluster of the test's own, brought up and taken down by the command users have.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take; nothing is tested for speed here.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running cluster; dropping it takes it down and removes its state.
pub struct Cluster {
    name: String,
}

impl Cluster {
    pub fn up(name: &str) -> Cluster {
        let cluster = Cluster { name: name.to_owned() };
        // An earlier run may have been cut off.
        cluster.xtask(&["down", "--purge"]);
        cluster.bring_up();
        cluster
    }

    /// Starts what does not run.
    pub fn bring_up(&self) {
        assert!(self.xtask(&["up", "--no-demo", "--no-build"]), "the cluster does not come up");
    }

    fn xtask(&self, args: &[&str]) -> bool {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(root()).args(["run", "--quiet", "--package", "xtask", "--"]).args(args).args(["--name", &self.name]);
        command.status().unwrap().success()
    }

    pub fn state_dir(&self) -> PathBuf {
        root().join("target").join(&self.name)
    }

    pub fn kill_agent(&self) {
        let pid = std::fs::read_to_string(format!("/run/xebec-{}/agent.pid", self.name)).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.split_whitespace().next().unwrap().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
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
        assert!(output.status.success(), "kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
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
        command.arg("--kubeconfig").arg(self.state_dir().join("kubeconfig"));
        // A cache of its own: others may have asked a different cluster at the same address.
        command.arg("--cache-dir").arg(self.state_dir().join("kubectl-cache")).args(args).env_remove("KUBECONFIG");
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.state_dir().join("logs/agent.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of agent.log\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        let ended = self.xtask(&["down", "--purge"]);
        assert!(ended || std::thread::panicking(), "the cluster left traces");
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
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
