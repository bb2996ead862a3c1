//! A node's cgroup on every hierarchy: v1 controllers, cgroup2, or both beside each other.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::Error;

/// How long SIGKILL may take, and an emptied cgroup to be removable.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// The same path on every mounted hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Starts with a slash.
    name: String,
    hierarchies: Vec<PathBuf>,
}

impl Cgroup {
    /// `name` is relative to the roots, e.g. `/xebec`.
    ///
    /// # Errors
    /// If the table of mounts cannot be read.
    pub fn new(name: &str) -> Result<Cgroup, Error> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(Error::io("read", "/proc/self/mounts"))?;
        Ok(Cgroup { name: format!("/{}", name.trim_matches('/')), hierarchies: hierarchies(&mounts) })
    }

    /// The cgroup below this one.
    pub fn child(&self, name: &str) -> Cgroup {
        Cgroup { name: format!("{}/{name}", self.name.trim_end_matches('/')), hierarchies: self.hierarchies.clone() }
    }

    /// Its directory on each hierarchy.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|root| root.join(self.name.trim_start_matches('/'))).collect()
    }

    /// Makes the directories. A v1 cpuset takes processes only once it has CPUs and memory nodes, so they are copied down.
    ///
    /// # Errors
    /// If a directory cannot be made.
    pub fn create(&self) -> Result<(), Error> {
        for (root, dir) in self.hierarchies.iter().zip(self.dirs()) {
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
            let below = dir.strip_prefix(root).unwrap_or(Path::new(""));
            let mut parent = root.clone();
            for part in below {
                let child = parent.join(part);
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    copy_if_empty(&parent.join(file), &child.join(file));
                }
                parent = child;
            }
        }
        Ok(())
    }

    /// Files that take a process id (0: the writer) into the cgroup, one a hierarchy.
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.dirs().into_iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The processes in it and below, on any hierarchy.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            walk(&dir, &mut |dir| {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                // 0 stands for a process of another PID namespace, which cannot be named from here.
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            });
        }
        pids
    }

    /// Kills everything in it, however fast it forks.
    ///
    /// # Errors
    /// [`Error::Unkillable`].
    pub fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Unkillable { cgroup: self.name.clone(), pids: pids.into_iter().collect() });
            }
            for pid in pids {
                // Gone by now: that is what is wanted.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            // A v1 freezer holds its processes even against SIGKILL.
            for dir in self.dirs() {
                walk(&dir, &mut |dir| drop(fs::write(dir.join("freezer.state"), "THAWED")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the directories; no error if they are not there.
    ///
    /// # Errors
    /// If one is still in use after a while.
    pub fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        for dir in self.dirs() {
            let mut dirs = Vec::new();
            walk(&dir, &mut |dir| dirs.push(dir.to_owned()));
            // Children come after their parents in the walk.
            for dir in dirs.iter().rev() {
                while let Err(error) = fs::remove_dir(dir) {
                    let busy = error.raw_os_error() == Some(libc::EBUSY);
                    if error.kind() == io::ErrorKind::NotFound {
                        break;
                    }
                    if !busy || Instant::now() > deadline {
                        return Err(Error::Io { what: "remove", path: dir.clone(), source: error });
                    }
                    std::thread::sleep(POLL);
                }
            }
        }
        Ok(())
    }
}

fn copy_if_empty(from: &Path, to: &Path) {
    let blank = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.trim().is_empty());
    if blank(to)
        && let Ok(value) = fs::read_to_string(from)
    {
        // cgroup2 inherits by itself and may refuse.
        let _ = fs::write(to, value);
    }
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    if !dir.is_dir() {
        return;
    }
    visit(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

/// Mount points of cgroup hierarchies, from the text of `/proc/self/mounts`; co-mounted controllers count once.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(path), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
            found.push(PathBuf::from(path));
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_hybrid_and_pure_hosts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(hierarchies(hybrid), [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), [PathBuf::from("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_child_lies_below_on_every_hierarchy() {
        let node = Cgroup { name: "/xebec-a".to_owned(), hierarchies: vec!["/x".into(), "/y".into()] };
        assert_eq!(node.child("system").dirs(), [PathBuf::from("/x/xebec-a/system"), PathBuf::from("/y/xebec-a/system")]);
    }
}
