//! Pod cgroups on every hierarchy: hybrid v1 and pure v2, driver cgroupfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::resources::PodCgroup;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// v1 controllers; `None` for cgroup2.
    controllers: Option<Vec<String>>,
}

/// The node's cgroup tree below its `kubepods`.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// cgroup path of `kubepods`, starting with a slash.
    kubepods: String,
}

impl Cgroups {
    /// Finds the hierarchies and makes `kubepods` with its QoS classes.
    pub fn new(parent: &str) -> io::Result<Cgroups> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let kubepods = format!("{}/kubepods", parent.trim_end_matches('/'));
        let cgroups = Cgroups { hierarchies: parse_hierarchies(&table), kubepods };
        if cgroups.hierarchies.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy is mounted"));
        }
        for class in ["", "/burstable", "/besteffort"] {
            cgroups.make(&format!("{}{class}", cgroups.kubepods))?;
        }
        cgroups.set_shares(&format!("{}/besteffort", cgroups.kubepods), 2)?;
        Ok(cgroups)
    }

    pub fn kubepods(&self) -> &str {
        &self.kubepods
    }

    /// Makes a pod's cgroup (`burstable/pod<uid>`) and sets its limits.
    pub fn create_pod(&self, relative: &str, limits: PodCgroup) -> io::Result<()> {
        let path = format!("{}/{relative}", self.kubepods);
        self.make(&path)?;
        self.set_shares(&path, limits.cpu_shares)?;
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.dir(&path);
            if hierarchy.has("cpu") {
                match hierarchy.controllers {
                    Some(_) => {
                        set(&dir, "cpu.cfs_period_us", &crate::resources::CPU_PERIOD.to_string())?;
                        set(&dir, "cpu.cfs_quota_us", &(if limits.cpu_quota > 0 { limits.cpu_quota } else { -1 }).to_string())?;
                    }
                    None => {
                        let quota = if limits.cpu_quota > 0 { limits.cpu_quota.to_string() } else { "max".into() };
                        set(&dir, "cpu.max", &format!("{quota} {}", crate::resources::CPU_PERIOD))?;
                    }
                }
            }
            if hierarchy.has("memory") {
                match hierarchy.controllers {
                    Some(_) => {
                        set(&dir, "memory.limit_in_bytes", &(if limits.memory_limit > 0 { limits.memory_limit } else { -1 }).to_string())?
                    }
                    None => {
                        set(&dir, "memory.max", &if limits.memory_limit > 0 { limits.memory_limit.to_string() } else { "max".into() })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The share of all burstable pods together.
    pub fn set_burstable_shares(&self, shares: i64) -> io::Result<()> {
        self.set_shares(&format!("{}/burstable", self.kubepods), shares)
    }

    /// Removes a pod's cgroups and what is left below them. Processes in it make it fail.
    pub fn remove_pod(&self, relative: &str) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.dir(&format!("{}/{relative}", self.kubepods)))?;
        }
        Ok(())
    }

    /// Pod cgroups that exist, relative to `kubepods`.
    pub fn pods(&self) -> Vec<String> {
        let mut found = Vec::new();
        for hierarchy in &self.hierarchies {
            for class in ["", "burstable/", "besteffort/"] {
                let dir = hierarchy.dir(&format!("{}/{class}", self.kubepods));
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if name.starts_with("pod") && entry.path().is_dir() {
                        found.push(format!("{class}{name}"));
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    fn set_shares(&self, path: &str, shares: i64) -> io::Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|h| h.has("cpu")) {
            let dir = hierarchy.dir(path);
            match hierarchy.controllers {
                Some(_) => set(&dir, "cpu.shares", &shares.to_string())?,
                None => set(&dir, "cpu.weight", &weight(shares).to_string())?,
            }
        }
        Ok(())
    }

    fn make(&self, path: &str) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let mut dir = hierarchy.mount.clone();
            for part in path.split('/').filter(|p| !p.is_empty()) {
                if hierarchy.controllers.is_none() {
                    enable_controllers(&dir);
                }
                let parent = dir.clone();
                dir.push(part);
                match fs::create_dir(&dir) {
                    Ok(()) if hierarchy.has("cpuset") && hierarchy.controllers.is_some() => inherit_cpuset(&parent, &dir)?,
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display()))),
                }
            }
        }
        Ok(())
    }
}

impl Hierarchy {
    fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
    fn has(&self, controller: &str) -> bool {
        match &self.controllers {
            Some(list) => list.iter().any(|c| c == controller),
            None => fs::read_to_string(self.mount.join("cgroup.controllers")).is_ok_and(|c| c.split_whitespace().any(|c| c == controller)),
        }
    }
}

/// cgroup v2's weight for v1's shares: 2..262144 to 1..10000, as runc converts them.
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// Whatever the parent offers; what cannot be enabled (processes in an inner node) is left alone.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace().filter(|c| ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"].contains(c)) {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A new v1 cpuset is empty and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file)).unwrap_or_default();
        if !value.trim().is_empty() {
            set(dir, file, value.trim())?;
        }
    }
    Ok(())
}

fn set(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    match fs::write(&path, value) {
        // A kernel without CFS bandwidth or swap accounting lacks the file.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        Ok(()) => Ok(()),
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display()))),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Hierarchies from mountinfo, each once.
fn parse_hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(root), Some(mount)) = (left.split(' ').nth(3), left.split(' ').nth(4)) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        if root != "/" {
            continue;
        }
        let controllers = match kind {
            "cgroup2" => None,
            "cgroup" => Some(options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "none")).map(str::to_owned).collect()),
            _ => continue,
        };
        let hierarchy = Hierarchy { mount: PathBuf::from(mount), controllers };
        if !found.iter().any(|h| h.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 25 0:28 /sub /x rw - cgroup cgroup rw,memory\n\
                      33 25 0:29 / /proc rw - proc proc rw\n\
                      34 25 0:27 / /again rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = parse_hierarchies(hybrid);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].controllers, None);
        assert_eq!(found[1].controllers.as_deref(), Some(&["cpu".to_owned(), "cpuacct".to_owned()][..]));
    }

    #[test]
    fn weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
