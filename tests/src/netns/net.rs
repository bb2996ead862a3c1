//! Network namespaces without names: a parked thread keeps each alive, so nothing is left when a test dies.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns, unshare};

/// A namespace with its loopback up; clones share it.
#[derive(Clone)]
pub struct Netns {
    path: PathBuf,
    _keep: mpsc::Sender<()>,
}

impl Default for Netns {
    fn default() -> Netns {
        Netns::new()
    }
}

impl Netns {
    /// # Panics
    /// When this is not root.
    pub fn new() -> Netns {
        let (path_to, path_from) = mpsc::channel();
        let (keep, parked) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            path_to.send(PathBuf::from(path)).expect("the maker waits");
            let _ = parked.recv();
        });
        let netns = Netns { path: path_from.recv().expect("the thread starts"), _keep: keep };
        netns.ip("link set lo up");
        netns
    }

    /// A file that stands for it.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Runs on a fresh thread inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(&self.path).expect("the namespace is alive");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside that outlives the call.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        let file = std::fs::File::open(&self.path).expect("the namespace is alive");
        let (ready_to, ready) = mpsc::channel();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
            ready_to.send(()).expect("the maker waits");
            f();
        });
        ready.recv().expect("the thread starts");
    }

    /// `ip ARGS` inside; panics if it fails.
    pub fn ip(&self, args: &str) -> String {
        self.try_ip(args).unwrap_or_else(|e| panic!("ip {args}: {e}"))
    }

    pub fn try_ip(&self, args: &str) -> io::Result<String> {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let out = self.run(move || Command::new("ip").args(args).output())?;
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
            false => Err(io::Error::other(String::from_utf8_lossy(&out.stderr).into_owned())),
        }
    }

    /// A veth pair to another namespace.
    pub fn join(&self, name: &str, other: &Netns, other_name: &str) {
        let fd = std::fs::File::open(&other.path).expect("the namespace is alive");
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&fd));
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {path}"));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }
}
