//! A node's parts as background processes, where no service manager keeps them.

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Error,
    cgroup::Cgroup,
    process::{self, Daemon, pid_file, running},
};

/// How long a part may take to end on SIGTERM, or to make a file.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Where parts run and what they leave.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Process ids: PART.pid.
    pub run_dir: PathBuf,
    /// Outputs: PART.log.
    pub logs: PathBuf,
    pub cgroup: Cgroup,
    /// A network namespace's file; `None`: the caller's.
    pub netns: Option<PathBuf>,
}

/// What became of [`Parts::ensure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    WasRunning,
    Started,
}

impl Parts {
    /// Starts a part unless it runs; one that runs a file that was replaced since is started again.
    /// `shown` is the process's name once it runs.
    ///
    /// # Errors
    /// If it cannot be started, or the old one not be ended.
    pub fn ensure(&self, part: &str, shown: &str, program: &Path, args: Vec<OsString>) -> Result<Ensured, Error> {
        let pids = pid_file(&self.run_dir, part);
        if let Some(pid) = running(&pids, shown) {
            if !is_outdated(pid) {
                return Ok(Ensured::WasRunning);
            }
            self.end(part, shown)?;
        }
        // Logging as the caller has it.
        let env = std::env::var_os("RUST_LOG").map(|filter| ("RUST_LOG".into(), filter)).into_iter().collect();
        let log = self.log(part);
        let pid = process::start(Daemon { program, args, env, log: &log, cgroup: &self.cgroup, netns: self.netns.as_deref() })?;
        fs::write(&pids, pid.to_string()).map_err(Error::io("write", pids))?;
        Ok(Ensured::Started)
    }

    /// Where a part's output goes.
    pub fn log(&self, part: &str) -> PathBuf {
        self.logs.join(format!("{part}.log"))
    }

    /// Waits until a part has made a file, or listens on a socket.
    ///
    /// # Errors
    /// If the part ends or takes too long; with the end of its log.
    pub fn wait_for(&self, part: &str, file: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(file) {
            let pid = fs::read_to_string(pid_file(&self.run_dir, part)).unwrap_or_default();
            let how = match is_gone(pid.trim()) {
                true => "has ended",
                false if Instant::now() > deadline => "takes too long",
                false => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            let log = self.log(part);
            return Err(Error::Part { part: part.to_owned(), how, tail: tail(&log), log });
        }
        Ok(())
    }

    /// Ends a part with SIGTERM and waits until it is gone; no error if it does not run.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end(&self, part: &str, shown: &str) -> Result<(), Error> {
        let Some(pid) = running(&pid_file(&self.run_dir, part), shown) else { return Ok(()) };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while !is_gone(&pid.to_string()) {
            if Instant::now() > deadline {
                let log = self.log(part);
                return Err(Error::Part { part: part.to_owned(), how: "does not end on SIGTERM", tail: tail(&log), log });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Whether a file is there; of a socket, whether somebody listens: its file comes first, and may be left from before.
fn is_there(file: &Path) -> bool {
    match fs::metadata(file) {
        Ok(found) if found.file_type().is_socket() => UnixStream::connect(file).is_ok(),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Whether a process runs a file that was replaced since.
fn is_outdated(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().ends_with(" (deleted)"))
}

/// Ended, even if nobody has waited for it yet.
fn is_gone(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_there_once_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("file"), dir.path().join("socket"));
        assert!(!is_there(&file) && !is_there(&socket));
        fs::write(&file, "").unwrap();
        assert!(is_there(&file));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(is_there(&socket));
        drop(listener);
        assert!(socket.exists() && !is_there(&socket), "the file alone answers nobody");
    }
}
