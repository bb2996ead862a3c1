//! What `xebec flows` is told, of real packets.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use xebec_dataplane::inspect;

use crate::node::{DEADLINE, Node, OUTSIDE_IP, ask, at, eventually, serve};

/// An asker that follows.
struct Follower(BufReader<UnixStream>);

impl Follower {
    fn new(node: &Node, question: &Value) -> Follower {
        let mut stream = UnixStream::connect(inspect::path(&node.config.cni_socket)).expect("the agent listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        writeln!(stream, "{question}").expect("the question is sent");
        Follower(BufReader::new(stream))
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line).expect("a line in time") == 0 {
            return None;
        }
        let told: Value = serde_json::from_str(&line).expect("JSON");
        Some(told["result"].clone())
    }

    /// The first that fits.
    fn until(&mut self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let told = self.next().unwrap_or_else(|| panic!("the agent went away before {what}"));
            if fits(&told["flow"]) {
                return told["flow"].clone();
            }
        }
    }
}

#[test]
fn drops_and_flows_are_told_with_names() {
    let mut node = Node::new();
    node.start();
    let client = node.pod("client", json!({"app": "client"}), json!([]));
    let [web, shut] = ["web", "shut"].map(|name| node.pod(name, json!({"app": name}), json!([])));
    for pod in [&web, &shut] {
        serve(&pod.netns, &pod.name, 8080);
    }
    node.policy(
        "shut",
        json!({"podSelector": {"matchLabels": {"app": "shut"}}, "policyTypes": ["Ingress"], "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}]}),
    );
    node.policy(
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}, {"ports": [{"port": 8080}]}]}),
    );
    node.service("web", "10.96.0.10", 80, "TCP", 8080, &[&web], &json!({}));
    node.service("empty", "10.96.0.11", 80, "TCP", 8080, &[], &json!({}));
    eventually("Services and policies are in force", || {
        let refused = ask(&client.netns, at("10.96.0.11", 80)).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
        refused && ask(&client.netns, at("10.96.0.10", 80)).is_ok() && ask(&client.netns, at(shut.ip, 8080)).is_err()
    });

    // Drops are remembered without anybody having followed. What the programs told is read a moment later.
    let past = |filter: Value| {
        let mut follower = Follower::new(&node, &json!({"ask": "flows", "last": 1, "filter": filter}));
        let told = follower.next();
        assert!(told.is_none() || follower.next().is_none(), "one was asked for");
        told.map(|t| t["flow"].clone())
    };
    let denial = json!({"reason": "policy_ingress", "pod": "shut"});
    eventually("the drop is remembered", || past(denial.clone()).is_some());
    let drop = past(denial).expect("just seen");
    assert_eq!((&drop["verdict"], &drop["protocol"]), (&json!("dropped"), &json!("tcp")), "{drop}");
    assert_eq!((&drop["source"]["pod"], &drop["destination"]["pod"]), (&json!("default/client"), &json!("default/shut")), "{drop}");
    assert_eq!(drop["destination"]["port"], 8080, "{drop}");
    let said = &drop["policies"][0];
    assert_eq!((&said["pod"], &said["allowed"], &said["rule"]), (&json!("default/shut"), &json!(false), &json!(null)), "{drop}");
    assert!(said["policies"][0].as_str().is_some_and(|p| p.starts_with("default/shut ")), "{drop}");
    // A connect that is refused sends no packet.
    let refusal = json!({"reason": "no_backend", "service": "default/empty"});
    eventually("the refusal is remembered", || past(refusal.clone()).is_some());
    let refused = past(refusal).expect("just seen");
    assert_eq!((&refused["at"], &refused["source"]["pod"]), (&json!("socket"), &json!("default/client")), "{refused}");
    assert_eq!(past(json!({"verdict": "forwarded"})), None, "new flows are told to who follows, and nobody does");

    let mut follower = Follower::new(&node, &json!({"ask": "flows", "follow": true, "filter": {"verdict": "forwarded", "pod": "client"}}));
    let mut other = Follower::new(&node, &json!({"ask": "flows", "follow": true, "filter": {"reason": "policy_ingress"}}));
    let are_told = AtomicBool::new(false);
    let (flow, drop) = std::thread::scope(|scope| {
        // Until the programs know of the followers nothing new is told, and nobody is told what was before: the client keeps
        // asking until both have heard.
        scope.spawn(|| {
            eventually("flows are told", || {
                let _ = ask(&client.netns, at("10.96.0.10", 80));
                let _ = ask(&client.netns, at(shut.ip, 8080));
                are_told.load(Ordering::Relaxed)
            });
        });
        let told = (follower.until("a flow", |flow| flow["service"]["name"] == "default/web"), other.until("a drop", |_| true));
        are_told.store(true, Ordering::Relaxed);
        told
    });
    assert_eq!(drop["reason"], "policy_ingress", "each follower has a filter of its own");
    assert!(past(json!({"verdict": "forwarded", "service": "web"})).is_some(), "what is told is remembered");
    assert_eq!((&flow["source"]["pod"], &flow["destination"]["pod"]), (&json!("default/client"), &json!("default/web")), "{flow}");
    assert_eq!((&flow["service"]["address"], &flow["service"]["atPort"]), (&json!("10.96.0.10"), &json!(80)), "{flow}");
    let said = &flow["policies"][0];
    assert_eq!((&said["allowed"], &said["rule"]), (&json!(true), &json!("spec.ingress[1]")), "{flow}");

    // Services count what they were asked for.
    let services = || Follower::new(&node, &json!({"ask": "status"})).next().expect("a status")["services"].clone();
    let of = |name: &str| services().as_array().and_then(|all| all.iter().find(|s| s["name"] == name).cloned());
    assert!(of("web").expect("was asked for")["flows"].as_u64() >= Some(1));
    assert_eq!(of("empty").expect("was asked for")["flows"], 0);
    assert!(of("empty").expect("was asked for")["refused"].as_u64() >= Some(1));
    // And when the last follower has gone, new flows are told no more.
    drop_all([follower, other]);
    eventually("nothing new is told", || {
        let newest = || past(json!({"verdict": "forwarded"})).map(|flow| flow["time"].clone());
        let before = newest();
        let _ = ask(&client.netns, at("10.96.0.10", 80));
        std::thread::sleep(Duration::from_millis(50));
        newest() == before
    });
}

#[test]
fn the_nodes_own_connects_are_told_where_no_pod_is_at_the_other_end() {
    let mut node = Node::new();
    node.start();
    let web = node.pod("web", json!({}), json!([]));
    serve(&web.netns, "web", 8080);
    serve(&node.outside, "far", 8080);
    node.service("web", "10.96.0.10", 80, "TCP", 8080, &[&web], &json!({}));
    for protocol in ["TCP", "UDP"] {
        let (name, ip) = (format!("far-{}", protocol.to_lowercase()), if protocol == "TCP" { "10.96.0.12" } else { "10.96.0.13" });
        node.service(&name, ip, 80, protocol, 8080, &[], &json!({}));
        node.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [OUTSIDE_IP], "conditions": {"ready": true}, "nodeName": "node-2"}],
            "ports": [{"name": "", "port": 8080, "protocol": protocol}],
        }));
    }
    let connects = |ip: &str| ask(&node.netns, at(ip, 80)).is_ok();
    eventually("all Services are there", || connects("10.96.0.10") && connects("10.96.0.12"));
    // One socket for all: each of its datagrams asks, and only the first is a new flow.
    let datagrams = node.netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    let mut follower = Follower::new(&node, &json!({"ask": "flows", "follow": true, "filter": {"verdict": "forwarded"}}));
    let is_told = AtomicBool::new(false);
    let (far, near, of_pod) = std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("flows are told", || {
                let _ = (connects("10.96.0.12"), connects("10.96.0.10"), ask(&web.netns, at("10.96.0.12", 80)));
                is_told.load(Ordering::Relaxed)
            });
        });
        let of_node = |flow: &Value| flow["service"]["name"] == "default/far-tcp" && flow["source"]["node"] == true;
        let far = follower.until("the node's connect", of_node);
        let near = follower.until("the connect to a pod", |flow| flow["service"]["name"] == "default/web");
        let of_pod = |flow: &Value| flow["service"]["name"] == "default/far-tcp" && flow["source"]["pod"] == "default/web";
        let of_pod = follower.until("the pod's connect", of_pod);
        is_told.store(true, Ordering::Relaxed);
        (far, near, of_pod)
    });
    assert_eq!((&far["at"], &far["source"]["node"], &far["protocol"]), (&json!("socket"), &json!(true), &json!("tcp")), "{far}");
    assert_eq!((&far["destination"]["address"], &far["destination"]["port"]), (&json!(OUTSIDE_IP), &json!(8080)), "{far}");
    assert_eq!((&far["service"]["address"], &far["service"]["atPort"]), (&json!("10.96.0.12"), &json!(80)), "{far}");
    assert_eq!(near["at"], "to_pod", "what a pod's device sees is told there, once: {near}");
    assert_eq!(of_pod["at"], "from_pod", "and what a pod sends is told at its own: {of_pod}");
    for _ in 0..3 {
        datagrams.send_to(b"x", at("10.96.0.13", 80)).expect("sent");
    }
    let _ = connects("10.96.0.12");
    let mut of_udp = 0;
    follower.until("the connect after the datagrams", |flow| {
        // Connects that were under way when the first were told may still come before.
        of_udp += usize::from(flow["service"]["name"] == "default/far-udp");
        of_udp > 0 && flow["service"]["name"] == "default/far-tcp" && flow["source"]["node"] == true
    });
    assert_eq!(of_udp, 1, "a flow is told of once");
}

fn drop_all(followers: [Follower; 2]) {
    drop(followers);
}
