//! A machine of its own to install on: systemd as its first process, its own network and file system, this one's kernel.
//!
//! The file system is this machine's, with everything the test writes in memory; only `/var/lib/xebec` is a real
//! directory, mounted there as a disk of its own would be (overlayfs cannot have its layers in memory on top of itself).

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use xebec_tests::cluster::until;

pub const ADDRESS: &str = "10.77.31.2";
const OUTSIDE: &str = "10.77.31.1";
const NAME: &str = "xebec-host";
const CGROUPS: &str = "/sys/fs/cgroup";

/// A booted machine; dropping it pulls the plug.
pub struct Machine {
    nspawn: Child,
    root: PathBuf,
}

impl Machine {
    /// Boots with `state` as the directory at `/var/lib/xebec`.
    pub fn boot(state: &Path) -> Machine {
        let root = state.with_extension("root");
        clean(&root);
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(state).unwrap();
        mount(Some("/"), &root, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let groups: Vec<PathBuf> = hierarchies().iter().map(|hierarchy| make_group(hierarchy)).collect();
        let mut command = Command::new("systemd-nspawn");
        command
            .arg("-D")
            .arg(&root)
            .args(["--volatile=overlay", "--boot", "--network-veth", "--capability=all", "--register=no", "--keep-unit"])
            .args(["--system-call-filter", "@keyring bpf perf_event_open", "--machine", NAME])
            .arg(format!("--bind={}:/var/lib/xebec", state.display()))
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .stdin(Stdio::null())
            .stdout(fs::File::create(state.with_extension("console")).unwrap())
            .stderr(Stdio::null())
            .process_group(0);
        // SAFETY: between fork and exec it only writes to files.
        unsafe {
            command.pre_exec(move || groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), "0")));
        }
        let nspawn = command.spawn().unwrap();
        let machine = Machine { nspawn, root };
        until("the machine has booted", || {
            let state = machine.run(&["systemctl", "is-system-running"]);
            matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded")
        });
        machine.furnish();
        machine
    }

    /// What a container of systemd-nspawn lacks of a machine: addresses, a place for BPF, cgroups it may write to.
    fn furnish(&self) {
        let device = format!("ve-{NAME}");
        ip(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", &device]);
        ip(&["link", "set", &device, "up"]);
        self.ok(&["sh", "-ec", &format!(
            "ip link set lo up; ip addr add {ADDRESS}/24 dev host0; ip link set host0 up; ip route add default via {OUTSIDE}; mkdir -p /sys/fs/bpf\n\
             for dir in /sys/fs/cgroup/*; do\n\
               name=${{dir##*/}}; case $name in unified|systemd) continue;; esac\n\
               if [ -d $dir ] && ! [ -L $dir ] && [ -e $dir/cgroup.procs ]; then umount $dir && mount -t cgroup -o $name cgroup $dir; fi\n\
             done"
        )]);
    }

    /// Runs a program as a root shell on the machine would.
    pub fn run(&self, line: &[&str]) -> Output {
        let Some(init) = self.init() else {
            return Command::new("false").output().unwrap();
        };
        Command::new("nsenter")
            .args(["-t", &init.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"])
            .args(line)
            .output()
            .unwrap()
    }

    #[track_caller]
    pub fn ok(&self, line: &[&str]) -> String {
        let output = self.run(line);
        let said = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        assert!(output.status.success(), "{}: {said}", line.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.ok(&[&["kubectl", "--kubeconfig", "/var/lib/xebec/server/admin.kubeconfig"], args].concat())
    }

    /// systemd's process id, seen from here: the only child of systemd-nspawn.
    fn init(&self) -> Option<i32> {
        let pid = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.run(&["journalctl", "-u", "xebec-*", "--no-pager", "-n", "60"]);
            eprintln!("{}", String::from_utf8_lossy(&log.stdout));
        }
        if let Some(init) = self.init() {
            let _ = nix::sys::signal::kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        let _ = killpg(Pid::from_raw(self.nspawn.id() as i32), Signal::SIGKILL);
        let _ = self.nspawn.wait();
        clean(&self.root);
    }
}

/// Removes what a machine leaves, also one that was cut off.
fn clean(root: &Path) {
    let _ = umount2(root, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(root);
    let _ = fs::remove_dir_all(format!("/run/systemd/nspawn/propagate/{NAME}"));
    for hierarchy in hierarchies() {
        let group = hierarchy.join(NAME);
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = pid.parse().map(|pid| nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
        until("the machine's cgroups are empty", || remove_groups(&group));
    }
}

fn remove_groups(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = pid.parse().map(|pid| nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL));
    }
    !group.exists() || fs::remove_dir(group).is_ok()
}

/// Where cgroups are made: one place, or one a controller.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(CGROUPS).join("cgroup.controllers").exists() {
        return vec![CGROUPS.into()];
    }
    let entries = fs::read_dir(CGROUPS).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists()).collect()
}

fn make_group(hierarchy: &Path) -> PathBuf {
    let group = hierarchy.join(NAME);
    fs::create_dir_all(&group).unwrap();
    // An empty set of a version 1 cpuset takes no process.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
            let _ = fs::write(group.join(file), all.trim());
        }
    }
    group
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}
