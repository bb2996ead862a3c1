//! Policy is in force before a pod's first packet, both ways: nothing leaks, nothing is wrongly denied, also for pods
//! whose labels nobody has seen before.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::net::Netns;
use crate::node::{DEADLINE, Node, at};

/// The bench `policy` has a thousand.
const PODS: usize = 40;
const AT_ONCE: usize = 4;
const PACKETS: usize = 20;
/// Datagrams that are allowed arrive well within; those that are not never do.
const SETTLE: Duration = Duration::from_millis(500);

/// Who has been heard, one entry a datagram.
type Heard = Arc<Mutex<Vec<IpAddr>>>;

/// Hears datagrams until `stop`.
fn hear(netns: &Netns, stop: &Arc<AtomicBool>) -> Heard {
    let heard = Heard::default();
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:9000")).expect("a UDP port");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let (to, stop) = (heard.clone(), stop.clone());
    netns.spawn(move || {
        let mut buffer = [0; 16];
        while !stop.load(Ordering::SeqCst) {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                to.lock().expect("not poisoned").push(from.ip());
            }
        }
    });
    heard
}

/// Everything is shut but for one rule: `app: friend` may send to `app: server`. Each pod sends to the server as soon as ADD
/// has returned; every second one is a friend, and each has a label of its own, so
/// that no peer can know its identity beforehand.
#[test]
fn no_packet_of_a_new_pod_leaks_or_is_wrongly_denied() {
    let mut node = Node::new();
    node.start();
    node.policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    node.policy(
        "server",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"protocol": "UDP", "port": 9000}]}],
        }),
    );
    node.policy(
        "friend",
        json!({
            "podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}],
        }),
    );
    // Strangers may send, and nobody hears them.
    node.policy("stranger", json!({"podSelector": {"matchLabels": {"app": "stranger"}}, "policyTypes": ["Egress"], "egress": [{}]}));
    let stop = Arc::new(AtomicBool::new(false));
    let server = node.pod("server", json!({"app": "server"}), json!([]));
    let shut = node.pod("shut", json!({"app": "shut"}), json!([]));
    let (heard, shut_heard) = (hear(&server.netns, &stop), hear(&shut.netns, &stop));
    let to: [SocketAddr; 2] = [at(server.ip, 9000), at(shut.ip, 9000)];
    let app = |n: usize| if n.is_multiple_of(2) { "friend" } else { "stranger" };

    let numbers: Vec<usize> = (0..PODS).collect();
    let node_ref = &node;
    let pods: Vec<(usize, crate::node::Pod)> = std::thread::scope(|scope| {
        let threads: Vec<_> = numbers
            .chunks(PODS / AT_ONCE)
            .map(|chunk| {
                scope.spawn(move || {
                    let made = chunk.iter().map(|n| {
                        let pod = node_ref.pod(&format!("pod{n}"), json!({"app": app(*n), "number": n.to_string()}), json!([]));
                        // At once, to the one that may be heard and to the one that hears nobody.
                        pod.netns.run(|| {
                            let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP port");
                            for _ in 0..PACKETS {
                                // What egress policy drops may be an error here: it counts by not being heard.
                                let _ = to.iter().map(|to| socket.send_to(b"x", to)).collect::<Vec<_>>();
                            }
                        });
                        (*n, pod)
                    });
                    made.collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let friends = PODS / 2;
    let end = Instant::now() + DEADLINE;
    while heard.lock().expect("not poisoned").len() < friends * PACKETS && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(SETTLE);
    stop.store(true, Ordering::SeqCst);
    let heard = heard.lock().expect("not poisoned").clone();
    let of = |ip: IpAddr| heard.iter().filter(|h| **h == ip).count();
    for (n, pod) in &pods {
        let expected = if app(*n) == "friend" { PACKETS } else { 0 };
        assert_eq!(of(pod.ip), expected, "pod{n}, a {}, {}", app(*n), pod.ip);
    }
    assert_eq!(heard.len(), friends * PACKETS, "nobody else was heard");
    assert_eq!(*shut_heard.lock().expect("not poisoned"), Vec::<IpAddr>::new(), "the one that is shut hears nobody");
}
