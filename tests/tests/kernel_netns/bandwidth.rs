//! Bandwidth limits from a pod's annotations, counted in bytes.

use std::net::UdpSocket;
use std::time::Instant;

use serde_json::{Value, json};

use crate::node::{Node, OUTSIDE_IP, Pod, at, eventually};

/// 10,000 bytes a second.
const LIMIT: &str = "80k";
/// Bytes of a packet that is sent, its headers included.
const PACKET: u64 = 1000 + 8 + 20 + 14;
/// The bucket.
const BURST: u64 = 256 << 10;

fn annotate(node: &Node, pod: &Pod, annotations: &Value) {
    let ip = pod.ip.to_string();
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "uid": format!("uid-{}", pod.name), "annotations": annotations},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }));
}

/// Packets that pods have sent, and packets that were too many.
fn counts(node: &Node) -> (u64, u64) {
    let status = node.dataplane().status();
    let of = |counts: &std::collections::BTreeMap<String, u64>, name| counts.get(name).copied().unwrap_or(0);
    (of(&status.forwards, "from_pod"), of(&status.drops, "bandwidth"))
}

fn send(socket: &UdpSocket, packets: u64) {
    for _ in 0..packets {
        // Whether anybody is there shows in the counters.
        let _ = socket.send_to(&[0; 1000], at(OUTSIDE_IP, 9));
    }
}

#[test]
fn a_pod_sends_no_more_than_its_annotation_says_and_as_it_likes_without() {
    let mut node = Node::new();
    node.start();
    let pod = node.pod("client", json!({}), json!([]));
    let socket = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    send(&socket, 1000);
    assert_eq!(counts(&node).1, 0, "without an annotation nothing is too much");

    annotate(&node, &pod, &json!({"kubernetes.io/egress-bandwidth": LIMIT}));
    eventually("the bucket is empty", || {
        send(&socket, 100);
        counts(&node).1 > 0
    });
    // From here on a full bucket at most, and what flows into it meanwhile.
    let (begun, before) = (Instant::now(), counts(&node));
    send(&socket, 4000);
    let after = counts(&node);
    let most = BURST + 10_000 * (begun.elapsed().as_secs() + 1);
    // A few packets are not the socket's: neighbours are looked for all the time.
    let passed = (after.0 - before.0).saturating_sub(20) * PACKET;
    assert!(passed <= most, "{passed} bytes passed, {most} may");
    assert!(after.1 > before.1, "the rest is counted");

    annotate(&node, &pod, &json!({}));
    eventually("the limit is gone", || {
        let before = counts(&node);
        send(&socket, 1000);
        let after = counts(&node);
        after.1 == before.1 && after.0 > before.0
    });
}
