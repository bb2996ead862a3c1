//! Processes: what `/proc` tells of others, and where this one runs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Resident memory in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")).with_context(|| format!("process {pid} has no VmRSS: it has ended"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// Where cgroup2 is mounted.
pub fn cgroup2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    fields.find(|f| f.get(2) == Some(&"cgroup2")).map(|f| PathBuf::from(f[1])).context("cgroup2 is not mounted")
}

/// The directory of a process in the cgroup2 hierarchy.
pub fn cgroup2_dir(pid: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).with_context(|| format!("process {pid}"))?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::")).with_context(|| format!("process {pid} is in no cgroup2"))?;
    Ok(cgroup2_root()?.join(path.trim_start_matches('/')))
}

/// Every process with this name (`/proc/PID/comm`).
pub fn named(comm: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm)).collect()
}

/// The command line of a process, words separated by spaces.
pub fn command_line(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/cmdline")).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).unwrap_or_default()
}

/// From now on this thread, and those it starts, stay on the first CPU.
pub fn stay() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus)).context("cannot stay on the first CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let me = std::process::id();
        assert!(resident_mib(me).unwrap() > 0.5);
        assert!(command_line(me).contains("xebec"));
        assert!(resident_mib(u32::MAX).is_err());
    }
}
