//! The host around a container: its cgroups and pods' network namespaces are seen through a process that lives there.

use std::path::{Path, PathBuf};

use crate::Error;

/// The host's file system, if this process has a mount namespace of its own and may look out of it (hostPID and
/// CAP_SYS_PTRACE): by the host's first process, or where that one is guarded, by the one that started this container.
pub(crate) fn find() -> Option<PathBuf> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let own = namespace("self").ok()?;
    let parent = std::os::unix::process::parent_id().to_string();
    let (pid, other) = ["1", &parent].into_iter().find_map(|pid| Some((pid.to_owned(), namespace(pid).ok()?)))?;
    (other != own).then(|| PathBuf::from(format!("/proc/{pid}/root")))
}

/// The root of the cgroup2 hierarchy that this node's pods are below.
///
/// In a container `/sys/fs/cgroup` may show the container's own part only. That is where the pods are too when they are
/// run from within it; where a kubelet outside runs them (`pods_outside`), socket hooks there would see nobody's sockets.
pub(crate) fn cgroup2(pods_outside: bool) -> Result<PathBuf, Error> {
    let mut partial = None;
    let host = find().filter(|_| pods_outside).and_then(|root| Some((root.parent()?.join("mounts"), root)));
    for (mounts, prefix) in host.into_iter().chain([("/proc/self/mounts".into(), "/".into())]) {
        let Ok(text) = std::fs::read_to_string(mounts) else { continue };
        for mount in mounted(&text) {
            let dir = prefix.join(mount.strip_prefix("/").unwrap_or(&mount));
            match is_root(&dir) {
                Some(true) => return Ok(dir),
                Some(false) => partial = Some(mount),
                None => {}
            }
        }
    }
    Err(Error::Config(match partial {
        Some(mount) if !pods_outside => return Ok(mount),
        Some(mount) => format!(
            "the cgroup2 hierarchy at {} is only a container's part of it, and the host's cannot be seen; socket hooks must be attached at the host's root. Run with hostPID and CAP_SYS_PTRACE, or mount the host's /sys/fs/cgroup",
            mount.display()
        ),
        None => "no cgroup2 hierarchy is mounted here, nor can one of a host around this container be seen; socket hooks need one. On a host: mount -t cgroup2 none /sys/fs/cgroup/unified; in a container: run with hostPID and CAP_SYS_PTRACE".to_owned(),
    }))
}

/// Where cgroup2 is mounted, from the text of a table of mounts.
fn mounted(mounts: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    };
    mounts.lines().filter_map(path).collect()
}

/// Every cgroup but the root has a type. `None`: this is no cgroup directory that can be looked at.
fn is_root(dir: &Path) -> Option<bool> {
    dir.join("cgroup.procs").exists().then(|| !dir.join("cgroup.type").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_on_hybrid_and_pure_hosts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted(hybrid), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(mounted("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"), [PathBuf::from("/sys/fs/cgroup")]);
        assert!(mounted("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n").is_empty());
    }

    #[test]
    fn a_container_s_part_is_told_from_the_root() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(is_root(dir.path()), None);
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(is_root(dir.path()), Some(true));
        std::fs::write(dir.path().join("cgroup.type"), "domain").unwrap();
        assert_eq!(is_root(dir.path()), Some(false));
    }
}
