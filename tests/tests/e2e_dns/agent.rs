//! An agent with other arguments than the cluster's.

use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xebec_host::process::{pid_file, running};
use xebec_tests::cluster::Cluster;

/// Ended when dropped.
pub struct Agent(Child);

impl Agent {
    /// Kills the node's agent and starts one with the same arguments and these.
    pub fn instead(cluster: &Cluster, number: u8, more: &[&str]) -> Agent {
        let node = cluster.node(number);
        let pid = running(&pid_file(&node.run_dir, "agent"), "xebec").expect("the node has an agent");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<String> =
            line.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8(w.to_vec()).unwrap()).collect();
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        cluster.kill(number, "agent");
        let log = std::fs::File::options().append(true).create(true).open(node.logs().join("agent.log")).unwrap();
        let mut command = node.command(program).unwrap();
        Agent(command.args(&words[1..]).args(more).stderr(log).spawn().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
