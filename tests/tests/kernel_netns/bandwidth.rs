//! Bandwidth limits from a pod's annotations and from the runtime, counted in bytes.

use std::net::UdpSocket;
use std::time::Instant;

use serde_json::{Value, json};

use crate::net::Netns;
use crate::node::{Node, OUTSIDE_IP, Pod, at, eventually};

/// 10,000 bytes a second.
const LIMIT: &str = "80k";
/// Bytes of a packet that is sent, its headers included.
const PACKET: u64 = 1000 + 8 + 20 + 14;
/// The bucket.
const BURST: u64 = 256 << 10;

pub fn annotate(node: &Node, pod: &Pod, annotations: &Value) {
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
    assert_limited(&node, &socket);

    annotate(&node, &pod, &json!({}));
    eventually("the limit is gone", || is_free(&node, &socket));
}

/// A full bucket passes at most, and what flows into it meanwhile.
fn assert_limited(node: &Node, socket: &UdpSocket) {
    let (begun, before) = (Instant::now(), counts(node));
    send(socket, 4000);
    let after = counts(node);
    let most = BURST + 10_000 * (begun.elapsed().as_secs() + 1);
    // A few packets are not the socket's: neighbours are looked for all the time.
    let passed = (after.0 - before.0).saturating_sub(20) * PACKET;
    assert!(passed <= most, "{passed} bytes passed, {most} may");
    assert!(after.1 > before.1, "the rest is counted");
}

/// A thousand packets pass, which is four times what a bucket holds.
fn is_free(node: &Node, socket: &UdpSocket) -> bool {
    let before = counts(node);
    send(socket, 1000);
    let after = counts(node);
    after.1 == before.1 && after.0 > before.0
}

#[test]
fn what_the_runtime_asks_for_holds_where_annotations_say_nothing_and_outlives_the_agent() {
    let mut node = Node::new();
    node.start();
    let conflist = node.config.cni_conf_dir.as_ref().expect("set").join("10-xebec.conflist");
    let conflist: Value = serde_json::from_slice(&std::fs::read(conflist).expect("installed")).expect("JSON");
    assert_eq!(conflist["plugins"][0]["capabilities"], json!({"bandwidth": true}), "else no runtime hands it over");
    let asked =
        json!({"runtimeConfig": {"bandwidth": {"egressRate": 80_000, "egressBurst": u32::MAX, "ingressRate": 0, "ingressBurst": 0}}});
    let pod = node.pod_with("client", json!({}), json!([]), &asked);
    let socket = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    assert_limited(&node, &socket);
    node.stop(true);
    node.start();
    assert_limited(&node, &socket);
    annotate(&node, &pod, &json!({"kubernetes.io/egress-bandwidth": "100G"}));
    eventually("the annotation wins", || is_free(&node, &socket));
    annotate(&node, &pod, &json!({}));
    eventually("without it the runtime's limit holds", || !is_free(&node, &socket));
    node.delete_pod(&pod).expect("DEL");

    // A runtime hands on the annotation it was given: that copy goes with it.
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "copy", "namespace": "default", "uid": "uid-copy", "annotations": {"kubernetes.io/egress-bandwidth": LIMIT}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
    }));
    let netns = Netns::new();
    let path = netns.path().display().to_string();
    let result = node.cni_with("ADD", "copy01", &path, "copy", &asked).unwrap_or_else(|e| panic!("ADD: {e}"));
    let address = result["ips"][0]["address"].as_str().expect("an address");
    let ip = address.trim_end_matches("/32").parse().expect("an IPv4 address");
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    assert_limited(&node, &socket);
    let pod = Pod { netns, name: "copy".into(), sandbox: "copy01".into(), ip, result };
    annotate(&node, &pod, &json!({}));
    eventually("the copy is gone too", || is_free(&node, &socket));
    node.delete_pod(&pod).expect("DEL");
}

#[test]
fn limits_that_cannot_be_understood_are_refused_before_anything_is_made() {
    let mut node = Node::new();
    node.start();
    let good = node.pod("good", json!({}), json!([]));
    let (devices, leases) = (node.netns.ip("link show").lines().count(), node.dataplane().status().leases);
    let netns = Netns::new();
    let path = netns.path().display().to_string();
    let wrong = json!({"runtimeConfig": {"bandwidth": {"ingressRate": "much"}}});
    let refused = node.cni_with("ADD", "x1", &path, "good", &wrong).expect_err("no number");
    assert_eq!(refused["code"], 7, "{refused}");
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "bad", "namespace": "default", "uid": "uid-bad", "annotations": {"kubernetes.io/ingress-bandwidth": "2P"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
    }));
    let refused = node.cni("ADD", "x2", &path, "bad").expect_err("no bandwidth");
    let details = refused["details"].as_str().expect("details");
    assert!(refused["code"] == 100 && details.contains("kubernetes.io/ingress-bandwidth is \"2P\""), "{refused}");
    assert_eq!((node.netns.ip("link show").lines().count(), node.dataplane().status().leases), (devices, leases), "nothing is left");
    // One that runs is not stopped for it.
    let socket = good.netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    annotate(&node, &good, &json!({"kubernetes.io/egress-bandwidth": "fast"}));
    let told = || node.api.posts().iter().any(|p| p.ends_with("/namespaces/default/events"));
    eventually("its author is told", told);
    assert!(is_free(&node, &socket));
}
