//! The agent may die at any time: no container ends, no connection breaks, and everything goes on after its restart.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xebec_host::process::{pid_file, running};
use xtask::up;

use xebec_tests::cluster::{Cluster, until};

/// Connections from the machine to the NodePort, one after another.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: SocketAddr) -> Load {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, good) = (stop.clone(), good.clone());
            move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match request(address) {
                        Ok(()) => drop(good.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                failures
            }
        });
        Load { stop, good, thread }
    }

    /// Waits until so many more requests were answered.
    fn go_on(&self, more: usize) {
        let goal = self.good.load(Ordering::Relaxed) + more;
        until("more requests are answered", || self.good.load(Ordering::Relaxed) >= goal);
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn request(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("200 OK") {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("answered {answer:?}"))),
    }
}

/// Container ids and restart counts of every pod.
fn containers(cluster: &Cluster) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    cluster.kubectl(&["get", "pods", "-A", "-o", path])
}

#[test]
fn killing_the_agent_breaks_no_connection_and_ends_no_container() {
    let cluster = Cluster::up("restart");
    up::demo(&cluster.up).unwrap();
    // What the demo checked from is being deleted; only what stays is to be compared.
    until("only the Deployment's pods are left", || containers(&cluster).lines().count() == 3);
    let before = containers(&cluster);
    let load = Load::start(SocketAddr::from((cluster.up.node_ip(), 30080)));
    load.go_on(50);

    // A connection that was there before the agent died lives on.
    let mut exec = cluster.kubectl_command(&["exec", "-i", "-n", "demo", "deploy/web", "--", "true"]);
    assert!(exec.status().unwrap().success());
    let pids = pid_file(&cluster.up.layout.run_dir, "agent");
    let pid = running(&pids, "xebec").expect("the agent runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("the agent is gone", || running(&pids, "xebec").is_none());
    load.go_on(100);
    up::bring_up(&cluster.args).unwrap();
    until("the agent runs again", || running(&pids, "xebec").is_some());
    load.go_on(100);
    let failures = load.end();
    assert!(failures.is_empty(), "{failures:?}");

    // The new agent knows the old containers: it can stop one and run another.
    assert_eq!(containers(&cluster), before);
    let pod = before.split(' ').next().unwrap();
    cluster.kubectl(&["delete", "pod", "-n", "demo", pod, "--timeout=120s"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "-n", "demo", "--timeout=120s"]);
    up::demo(&cluster.up).unwrap();
}

#[test]
fn killing_the_server_ends_no_container_and_no_service() {
    let cluster = Cluster::up("serverkill");
    up::demo(&cluster.up).unwrap();
    until("only the Deployment's pods are left", || containers(&cluster).lines().count() == 3);
    let before = containers(&cluster);
    let load = Load::start(SocketAddr::from((cluster.up.node_ip(), 30080)));
    load.go_on(20);
    let pids = pid_file(&cluster.up.layout.run_dir, "server");
    let pid = running(&pids, "xebec").expect("the server runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    load.go_on(50);
    up::bring_up(&cluster.args).unwrap();
    load.go_on(20);
    assert!(load.end().is_empty());
    assert_eq!(containers(&cluster), before);
    up::demo(&cluster.up).unwrap();
}
