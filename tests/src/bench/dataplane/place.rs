//! Where a load runs: a pod's network namespace, and the cgroup whose socket hooks it meets.

use std::{fs::File, net::Ipv4Addr, os::unix::process::CommandExt, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::load::Load;
use crate::{bench::inside::Helper, netns::net::Netns};

/// A pod, or what is used like one.
pub struct Place {
    pub netns: Netns,
    pub ip: Ipv4Addr,
    /// The file that takes its processes into the cgroup of its node's socket hooks. No other hierarchy is entered: the share of
    /// the CPU must be that of whom it is measured beside.
    pub procs: Vec<PathBuf>,
}

impl Place {
    /// Starts this program with other arguments there.
    pub fn start(&self, args: &[&str]) -> Result<Helper> {
        Helper::spawn(&mut self.command(args)?)
    }

    /// The same, before everything else on the machine.
    fn start_first(&self, args: &[&str]) -> Result<Helper> {
        let mut command = self.command(args)?;
        first(&mut command);
        Helper::spawn(&mut command)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
        enter(command.args(args), &self.netns, &self.procs)?;
        Ok(command)
    }

    /// Answers every load until dropped.
    pub fn serve(&self) -> Result<Helper> {
        let mut helper = self.start_first(&["load-serve", "::"])?;
        helper.line()?;
        Ok(helper)
    }

    /// The figure of a load from here.
    pub fn measure(&self, load: Load, to: Ipv4Addr, time: Duration) -> Result<f64> {
        let kind = clap::ValueEnum::to_possible_value(&load).context("every load has a name")?;
        let (to, time) = (format!("{to}:{}", load.port()), time.as_secs_f64().to_string());
        let mut helper = self.start_first(&["load", kind.get_name(), &to, &time])?;
        let line = helper.line().with_context(|| format!("{} to {to}", load.name()))?;
        line.parse().with_context(|| format!("the helper said {line:?}"))
    }
}

/// Lets a command run in a namespace and in cgroups, and end with the thread that starts it, however that ends.
pub fn enter(command: &mut Command, netns: &Netns, procs: &[PathBuf]) -> Result<()> {
    let (file, procs) = (File::open(netns.path()).context("the namespace is gone")?, procs.to_vec());
    let enter = move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        // SAFETY: sets one number of this process.
        nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        procs.iter().try_for_each(|file| std::fs::write(file, "0"))
    };
    // SAFETY: only system calls between fork and exec; what they need was made before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Lets a command run before everything else on the machine.
fn first(command: &mut Command) {
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(go_first) };
}

/// From now on this thread runs before everything else on the machine, so that nothing else is measured. A nice value would not
/// do: it is for processes of the same session.
pub fn go_first() -> std::io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads the one value it is given.
    nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) })?;
    Ok(())
}
