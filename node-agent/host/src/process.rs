//! Starting the parts of a node in the background, in its cgroup and network namespace.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Error, cgroup::Cgroup};

/// A program that outlives its starter.
#[derive(Debug)]
pub struct Daemon<'a> {
    pub program: &'a Path,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// Both outputs are appended here.
    pub log: &'a Path,
    pub cgroup: &'a Cgroup,
    /// A network namespace's file; `None`: the caller's.
    pub netns: Option<&'a Path>,
}

/// Starts it in a session of its own. Its process id.
///
/// # Errors
/// If the log, the namespace or the cgroup cannot be opened, or the program not be run.
pub fn start(daemon: Daemon<'_>) -> Result<i32, Error> {
    let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("open", path));
    let log = open(daemon.log)?;
    let errors = log.try_clone().map_err(Error::io("open", daemon.log))?;
    let mut command = Command::new(daemon.program);
    command.args(daemon.args).envs(daemon.env).stdin(Stdio::null()).stdout(log).stderr(errors);
    place(&mut command, Some(daemon.cgroup), daemon.netns)?;
    // SAFETY: the closure makes one system call.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut child = command.spawn().map_err(|source| Error::Start { program: daemon.program.display().to_string(), source })?;
    let pid = child.id() as i32;
    // A starter that lives on (a test, `xebec up`) must not keep the ended process as a zombie.
    std::thread::spawn(move || child.wait());
    Ok(pid)
}

/// Makes a command start in a cgroup and in the network namespace whose file is given; `None`: the caller's.
///
/// # Errors
/// If the cgroup or the namespace cannot be opened.
pub fn place(command: &mut Command, cgroup: Option<&Cgroup>, netns: Option<&Path>) -> Result<(), Error> {
    // Everything that allocates happens before the fork; after it only system calls may.
    let mut procs = Vec::new();
    for path in cgroup.map(Cgroup::procs_files).unwrap_or_default() {
        procs.push(OpenOptions::new().write(true).open(&path).map_err(Error::io("open", path))?);
    }
    let netns = netns.map(|path| File::open(path).map_err(Error::io("open", path))).transpose()?;
    // SAFETY: the closure makes system calls alone, on descriptors opened before the fork.
    unsafe {
        command.pre_exec(move || {
            for mut file in &procs {
                file.write_all(b"0")?;
            }
            if let Some(netns) = &netns
                && libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}

/// Where a part's process id is written.
pub fn pid_file(run_dir: &Path, part: &str) -> PathBuf {
    run_dir.join(format!("{part}.pid"))
}

/// The process id in a file, if that process still runs `program` (ids are reused).
pub fn running(pid_file: &Path, program: &str) -> Option<i32> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let zombie = rest.trim_start().starts_with('Z');
    // The kernel keeps 15 bytes of a name.
    (name == &program[..program.len().min(15)] && !zombie).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_counts_only_with_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let file = pid_file(dir.path(), "part");
        assert_eq!(running(&file, "sleep"), None);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&file, child.id().to_string()).unwrap();
        assert_eq!(running(&file, "sleep"), Some(child.id() as i32));
        assert_eq!(running(&file, "other"), None);
        child.kill().unwrap();
        // Not waited for yet: a zombie does not run.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while running(&file, "sleep").is_some() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
