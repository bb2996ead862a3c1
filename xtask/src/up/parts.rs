//! The processes of a node: etcd if wanted, server, containerd, agent.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xebec_host::{
    containerd::import_args,
    process::{self, Daemon, pid_file, running},
};

use super::{Layout, Store, etcd, network::Network};
use crate::{build::Binaries, image::Archives, sh};

/// What every part's start needs.
pub(super) struct Parts<'a> {
    pub layout: &'a Layout,
    pub binaries: &'a Binaries,
    pub network: &'a Network,
    pub store: Store,
}

/// How long a part may take to end on SIGTERM, or to make a file.
const PATIENCE: Duration = Duration::from_secs(30);

impl Parts<'_> {
    /// Starts what does not run, and what runs an older build.
    pub fn start(&self, images: &Archives) -> Result<()> {
        let (layout, xebec) = (self.layout, &self.binaries.xebec);
        let containerd = layout.containerd(self.binaries);
        let containerd_started = self.part("containerd", "containerd", || {
            let mut args: Vec<OsString> = vec!["containerd".into()];
            for (flag, value) in [("--root", &containerd.root), ("--run-dir", &layout.run_dir), ("--cni-bin-dir", &containerd.cni_bin_dir)] {
                args.extend([flag.into(), value.into()]);
            }
            Ok(args)
        })?;
        if self.store == Store::Etcd {
            etcd::start(self)?;
        }
        self.part("server", "xebec", || {
            let mut args: Vec<OsString> = vec!["server".into(), "--data-dir".into(), layout.server_dir().into()];
            args.extend(["--bind".into(), "0.0.0.0:6443".into()]);
            args.extend(["--advertise-address".into(), self.network.node.to_string().into()]);
            if self.store == Store::Etcd {
                args.extend(etcd::server_args(layout));
            }
            Ok(args)
        })?;
        self.wait_for("server", &layout.server_dir().join("admin.kubeconfig"))?;
        let node_kubeconfig = layout.agent_dir().join("pki/kubeconfig");
        if !node_kubeconfig.exists() {
            let mut command = sh::cmd(xebec, ["kubeconfig", "--data-dir"]);
            command.arg(layout.server_dir()).args(["--server", &format!("https://{}:6443", self.network.node)]);
            command.args(["--node", &layout.node_name(), "--node-ip", &self.network.node.to_string(), "--out"]).arg(&node_kubeconfig);
            sh::quiet(&mut command)?;
        }
        self.part("agent", "xebec", || {
            let mut args: Vec<OsString> = vec!["agent".into(), "--node-name".into(), layout.node_name().into()];
            args.extend(["--node-ip".into(), self.network.node.to_string().into()]);
            for (flag, value) in [
                ("--kubeconfig", &node_kubeconfig),
                ("--data-dir", &layout.agent_dir()),
                ("--run-dir", &layout.run_dir),
                ("--pin-dir", &layout.pin_dir()),
            ] {
                args.extend([flag.into(), value.into()]);
            }
            args.extend(["--cgroup-parent".into(), layout.cgroup_name().into()]);
            Ok(args)
        })?;
        if containerd_started || !imported(layout, images) {
            self.wait_for("containerd", &containerd.socket())?;
            self.import(images, &containerd.socket())?;
        }
        Ok(())
    }

    /// Starts a part unless it runs. Whether it was started.
    pub fn part(&self, part: &str, program: &str, args: impl FnOnce() -> Result<Vec<OsString>>) -> Result<bool> {
        self.program(part, program, &self.binaries.xebec, args)
    }

    /// [`Parts::part`] for a program that is not ours. `shown` is the process's name once it runs.
    pub fn program(&self, part: &str, shown: &str, file: &Path, args: impl FnOnce() -> Result<Vec<OsString>>) -> Result<bool> {
        let pids = pid_file(&self.layout.run_dir, part);
        if let Some(pid) = running(&pids, shown) {
            if !is_outdated(pid) {
                return Ok(false);
            }
            sh::step(format_args!("restarting {part}: its program was built anew"));
            end(pid)?;
        }
        let cgroup = self.layout.cgroup()?.child("system");
        let log = self.layout.logs().join(format!("{part}.log"));
        let (args, netns) = (args()?, self.layout.netns());
        let env = log_filter();
        let pid = process::start(Daemon { program: file, args, env, log: &log, cgroup: &cgroup, netns: Some(&netns) })?;
        fs::write(&pids, pid.to_string()).with_context(|| format!("cannot write {}", pids.display()))?;
        Ok(true)
    }

    /// Waits until a part has made a file; it must not end meanwhile.
    pub fn wait_for(&self, part: &str, file: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let log = self.layout.logs().join(format!("{part}.log"));
        let pids = pid_file(&self.layout.run_dir, part);
        while !file.exists() {
            let pid = fs::read_to_string(&pids).unwrap_or_default();
            let ended = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).map_or(true, |stat| stat.contains(") Z "));
            if ended || Instant::now() > deadline {
                let how = if ended { "has ended" } else { "takes too long" };
                bail!("{part} {how}; the end of {}:\n{}", log.display(), tail(&log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn import(&self, images: &Archives, socket: &Path) -> Result<()> {
        if imported(self.layout, images) {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if Instant::now() > deadline {
                bail!("containerd does not answer; the end of its log:\n{}", tail(&self.layout.logs().join("containerd.log")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for archive in [&images.pause, &images.busybox] {
            sh::quiet(&mut sh::cmd("ctr", import_args(socket, archive)))?;
        }
        fs::write(stamp(self.layout), fingerprint(images)).context("cannot write in the cluster's directory")?;
        Ok(())
    }
}

/// Logging as the caller has it.
fn log_filter() -> Vec<(OsString, OsString)> {
    std::env::var_os("RUST_LOG").map(|filter| ("RUST_LOG".into(), filter)).into_iter().collect()
}

/// Whether a process runs a file that was replaced since.
fn is_outdated(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().ends_with(" (deleted)"))
}

/// Ends a process and waits until it is gone.
pub(crate) fn end(pid: i32) -> Result<()> {
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        if Instant::now() > deadline {
            bail!("process {pid} does not end on SIGTERM");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn stamp(layout: &Layout) -> std::path::PathBuf {
    layout.dir.join("images-imported")
}

fn imported(layout: &Layout, images: &Archives) -> bool {
    layout.dir.join("containerd").is_dir() && fs::read(stamp(layout)).is_ok_and(|known| known == fingerprint(images))
}

/// The archives' own hash: a changed image is imported again.
fn fingerprint(images: &Archives) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for archive in [&images.pause, &images.busybox] {
        hash.update(fs::read(archive).unwrap_or_default());
    }
    hash.finalize().to_vec()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
