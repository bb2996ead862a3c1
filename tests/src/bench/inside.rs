//! Running a part of the bench where a pod's processes run: in its network namespace and its cgroup.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::processes;

/// Moves this process beside `pid`. Must be called while the process has one thread.
pub fn join(pid: u32) -> Result<()> {
    let cgroup = processes::cgroup2_dir(pid)?.join("cgroup.procs");
    fs::write(&cgroup, std::process::id().to_string()).with_context(|| format!("cannot enter {}", cgroup.display()))?;
    let namespace = format!("/proc/{pid}/ns/net");
    let file = File::open(&namespace).with_context(|| namespace.clone())?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {namespace}"))
}

/// This program, started again beside `pid` (or where it is) with other arguments; ended when dropped.
pub struct Helper {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Helper {
    pub fn start(pid: Option<u32>, arguments: &[&str]) -> Result<Helper> {
        let me = std::env::current_exe().context("this program's own file")?;
        let mut command = Command::new(me);
        if let Some(pid) = pid {
            command.args(["inside", &pid.to_string()]);
        }
        Helper::spawn(command.args(arguments))
    }

    /// The same for a command that is prepared.
    pub fn spawn(command: &mut Command) -> Result<Helper> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start a helper")?;
        let out = child.stdout.take().context("helper without output")?;
        Ok(Helper { child, out: BufReader::new(out) })
    }

    /// Asks it to end.
    pub fn terminate(&self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("the helper has ended")
    }

    /// The next line it prints.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.out.read_line(&mut line).context("helper's output")? == 0 {
            bail!("the helper ended without an answer: {}", self.child.wait()?);
        }
        Ok(line.trim().to_string())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
