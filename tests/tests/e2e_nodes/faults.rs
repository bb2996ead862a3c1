//! What goes wrong between nodes: traffic elsewhere goes on, and comes back by itself where it cannot.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use xebec_tests::cluster::{Cluster, until};

use crate::pods;

fn ip(cluster: &Cluster, pod: &str) -> IpAddr {
    pods::get(cluster, "pod", pod)["status"]["podIP"].as_str().unwrap().parse().unwrap()
}

/// Requests from a node to a pod of another, one after another, by a process in the node's own network: it needs no API server.
struct Asking {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    bad: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Asking {
    fn start(cluster: &Cluster, from: u8, to: SocketAddr) -> Asking {
        let node = cluster.node(from).clone();
        let (stop, good, bad) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, good, bad) = (stop.clone(), good.clone(), bad.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let url = format!("http://{to}/cgi-bin/who");
                    let mut wget = node.command("busybox").unwrap();
                    let output = wget.args(["timeout", "2", "busybox", "wget", "-q", "-O-", &url]).output().unwrap();
                    if output.status.success() { &good } else { &bad }.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        });
        Asking { stop, good, bad, thread }
    }

    fn failures(&self) -> usize {
        self.bad.load(Ordering::Relaxed)
    }

    /// Waits for so many more answers.
    #[track_caller]
    fn go_on(&self, more: usize) {
        let goal = self.good.load(Ordering::Relaxed) + more;
        until("more requests are answered", || self.good.load(Ordering::Relaxed) >= goal);
    }

    /// Waits until a request fails.
    #[track_caller]
    fn fails(&self) {
        let before = self.failures();
        until("a request fails", || self.failures() > before);
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[test]
fn a_lost_node_and_a_lost_api_server_stop_nobody_else() {
    let cluster = Cluster::of_nodes("faults", 3);
    pods::one_on_each(&cluster);
    let (two, three) = (SocketAddr::new(ip(&cluster, "pod-2"), 8080), SocketAddr::new(ip(&cluster, "pod-3"), 8080));
    let to_two = Asking::start(&cluster, 1, two);
    let to_three = Asking::start(&cluster, 1, three);
    to_two.go_on(10);
    to_three.go_on(10);

    // The node is lost, others are not; it comes back and so does the traffic, without anybody doing anything.
    cluster.on_wire(&["link", "set", "node2", "down"]);
    to_two.fails();
    let failures = to_three.failures();
    to_three.go_on(20);
    cluster.on_wire(&["link", "set", "node2", "up"]);
    to_two.go_on(10);
    for _ in 0..5 {
        cluster.on_wire(&["link", "set", "node2", "down"]);
        cluster.on_wire(&["link", "set", "node2", "up"]);
    }
    to_two.go_on(10);
    cluster.kubectl(&["wait", &format!("node/{}", cluster.node(2).name), "--for=condition=Ready", "--timeout=120s"]);

    // Without an API server everything that was known stays, even if others take it away.
    cluster.kill(1, "server");
    to_three.go_on(20);
    cluster.on_node(1, "ip", &["route", "flush", "proto", "120"]);
    to_two.go_on(20);
    to_three.go_on(20);
    // Nor with all agents gone.
    let before = (to_two.failures(), to_three.failures());
    for number in 1..=3 {
        cluster.kill(number, "agent");
    }
    to_two.go_on(20);
    to_three.go_on(20);
    assert_eq!((to_two.failures(), to_three.failures()), before, "forwarding needs no agent");
    assert!(to_three.failures() - failures <= 3, "only the flushed routes are missed, for a moment");

    cluster.bring_up();
    to_two.go_on(20);
    let before = (to_two.failures(), to_three.failures());
    cluster.kubectl(&["delete", "pod", "pod-3", "--wait"]);
    to_three.fails();
    pods::one_on_each(&cluster);
    assert_ne!(ip(&cluster, "pod-3").to_string(), "");
    to_two.go_on(10);
    assert_eq!(to_two.failures(), before.0, "what others do does not matter");
    to_two.end();
    to_three.end();
}
