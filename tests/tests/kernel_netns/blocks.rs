//! Programs at pods' devices by tc blocks: what others take off comes back, agents that know only links come and go, many pods come
//! at once.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use xebec_dataplane::{Layout, PodPrograms};
use xebec_tests::bench::dataplane::agent::next_layout;

use crate::connects::Connects;
use crate::node::{Node, Pod, ask, ask_on, at, eventually, serve};

/// As `tc` reads them.
const BLOCKS: [u32; 2] = [0x7865_6201, 0x7865_6202];
const CLUSTER_IP: &str = "10.96.0.10";

/// `tc ARGS` in the node's namespace; an error if it fails.
fn tc(node: &Node, args: &str) -> Result<String, String> {
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    let out = node.netns.run(move || Command::new("tc").args(args).output()).expect("tc can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

fn host(pod: &Pod) -> &str {
    pod.result["interfaces"][0]["name"].as_str().expect("a host device")
}

fn is_bound(node: &Node, pod: &Pod) -> bool {
    let shown = tc(node, &format!("qdisc show dev {}", host(pod))).expect("the device is there");
    shown.contains("clsact") && BLOCKS.iter().all(|block| shown.contains(&format!("block {block}")))
}

/// How many filters the blocks have; none if there is no such block.
fn filters(node: &Node) -> Vec<usize> {
    let of = |block: &u32| tc(node, &format!("filter show block {block}")).unwrap_or_default().matches(" handle ").count();
    BLOCKS.iter().map(of).collect()
}

fn pinned(node: &Node) -> Vec<String> {
    let links = std::fs::read_dir(node.config.pin_dir.join("links")).expect("a directory").flatten();
    links.map(|l| l.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with("xbc")).collect()
}

fn deny(node: &Node, app: &str) {
    node.policy(app, json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]}));
}

#[test]
fn whatever_somebody_takes_off_a_pod_comes_back() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({"app": "web"}), json!([])));
    serve(&server.netns, "web", 8080);
    deny(&node, "web");
    eventually("denied", || ask(&client.netns, at(server.ip, 8080)).is_err());
    let path = server.netns.path().display().to_string();
    let check = |node: &Node| node.cni("CHECK", &server.sandbox, &path, "web");
    check(&node).expect("all is as ADD left it");
    let device = host(&server);
    for harm in [
        vec![format!("qdisc del dev {device} clsact")],
        vec![format!("filter del block {}", BLOCKS[1])],
        vec![format!("filter del block {}", BLOCKS[0])],
        // Somebody's own, in place of ours.
        vec![format!("qdisc del dev {device} clsact"), format!("qdisc add dev {device} clsact")],
    ] {
        for args in &harm {
            tc(&node, args).unwrap_or_else(|e| panic!("tc {args}: {e}"));
        }
        let wrong = check(&node).expect_err("it is not as ADD left it");
        assert!(wrong["details"].as_str().is_some_and(|d| d.contains("programs")), "{wrong}");
        eventually("it is put right", || check(&node).is_ok());
        assert!(is_bound(&node, &server) && is_bound(&node, &client), "{harm:?}");
        assert_eq!(filters(&node), [1, 1], "{harm:?}");
        assert!(ask(&client.netns, at(server.ip, 8080)).is_err(), "denied after {harm:?}");
    }
    node.delete_pod(&server).expect("DEL");
    assert_eq!(filters(&node), [1, 1], "the other pod still has them");
    node.delete_pod(&client).expect("DEL");
    assert_eq!(filters(&node), [0, 0], "blocks end with the last device");
}

#[test]
fn a_block_that_is_somebody_elses_is_left_alone_and_named() {
    let mut node = Node::new();
    node.start();
    node.netns.ip("link add other0 type veth peer name other1");
    tc(&node, &format!("qdisc add dev other0 ingress_block {} clsact", BLOCKS[0])).expect("a qdisc");
    tc(&node, &format!("filter add block {} prio 1 protocol all u32 match u32 0 0", BLOCKS[0])).expect("a filter");
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late", "namespace": "default", "uid": "uid-late"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Pending"},
    }));
    let netns = xebec_tests::netns::net::Netns::new();
    let add = |node: &Node| node.cni("ADD", "late01", &netns.path().display().to_string(), "late");
    let refused = add(&node).expect_err("the block is taken");
    assert!(refused["details"].as_str().is_some_and(|d| d.contains(&BLOCKS[0].to_string())), "{refused}");
    assert!(!node.netns.ip("link show").contains("xbc"), "nothing is left of it");
    assert_eq!(node.dataplane().status().leases, 0);
    assert!(tc(&node, &format!("filter show block {}", BLOCKS[0])).expect("the block").contains("u32"), "theirs is there");
    node.netns.ip("link del other0");
    add(&node).expect("now it is free");
    node.cni("DEL", "late01", "", "late").expect("DEL");
}

#[test]
fn pods_with_links_keep_them_and_new_ones_share_blocks_and_all_get_links_before_going_back() {
    let mut node = Node::new();
    node.config.pod_programs = PodPrograms::Links;
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({"app": "web"}), json!([])));
    serve(&server.netns, "web", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({}));
    node.policy(
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8080}]}]}),
    );
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    assert_eq!((pinned(&node).len(), filters(&node)), (4, vec![0, 0]), "two links each, as before there were blocks");
    let mut established = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    established.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");

    // The upgrade, with maps of another layout.
    let connects = Connects::start(&client, at(CLUSTER_IP, 80));
    node.stop(true);
    node.config.pod_programs = PodPrograms::Blocks;
    node.config.layout = next_layout();
    node.start();
    connects.go_on(20);
    assert!(ask_on(&mut established).is_ok(), "established before the upgrade");
    assert_eq!(pinned(&node).len(), 4, "a device that is up is not bound");
    let late = node.pod("late", json!({}), json!([]));
    assert!(is_bound(&node, &late) && !is_bound(&node, &server));
    assert_eq!(node.dataplane().status().pods_by_links, 2);
    assert!(ask(&late.netns, at(CLUSTER_IP, 80)).is_ok(), "from blocks to links");
    assert!(ask(&late.netns, at(server.ip, 8081)).is_err(), "denied");
    let mut from_late = late.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    from_late.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");

    // Both kinds change to another layout's programs and back, and again.
    for layout in [Layout::default(), next_layout()] {
        node.stop(true);
        node.config.layout = layout;
        node.start();
        connects.go_on(10);
        assert!(ask_on(&mut established).is_ok() && ask_on(&mut from_late).is_ok());
        assert!(is_bound(&node, &late) && pinned(&node).len() == 4);
    }

    // On the way back to an agent that knows only links.
    node.stop(true);
    node.config.pod_programs = PodPrograms::Links;
    node.start();
    assert_eq!((pinned(&node).len(), filters(&node)), (6, vec![0, 0]));
    assert!(!is_bound(&node, &late));
    connects.go_on(10);
    assert!(ask_on(&mut established).is_ok() && ask_on(&mut from_late).is_ok());
    assert!(ask(&late.netns, at(server.ip, 8081)).is_err(), "still denied");
    connects.end_without_failure();
}

#[test]
fn fifty_pods_at_once_on_each_of_two_nodes_are_judged_from_their_first_packet() {
    const PODS: usize = 50;
    let mut node = Node::new();
    // Of another network namespace of this kernel, with blocks of the same numbers.
    let neighbour = xebec_tests::netns::net::Netns::new();
    neighbour.ip("link add other0 type veth peer name other1");
    let add = ["qdisc", "add", "dev", "other0", "ingress_block", &BLOCKS[0].to_string(), "clsact"].map(str::to_owned);
    assert!(neighbour.run(move || Command::new("tc").args(add).status()).expect("tc can be run").success());
    node.start();
    let server = node.pod("web", json!({"app": "web"}), json!([]));
    serve(&server.netns, "web", 8080);
    node.policy(
        "web",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}],
        }),
    );
    let path = server.netns.path().display().to_string();
    eventually("the server is isolated", || {
        ask(&node.netns, at(server.ip, 8080)).is_ok() && node.cni("CHECK", &server.sandbox, &path, "web").is_ok()
    });
    let pods: Vec<(bool, Pod, bool)> = std::thread::scope(|scope| {
        let node = &node;
        let one = |number: usize| {
            let friend = number.is_multiple_of(2);
            let labels: Value = json!({"friend": if friend { "yes" } else { "no" }, "number": number.to_string()});
            let pod = node.pod(&format!("p{number}"), labels, json!([]));
            let answered = ask(&pod.netns, at(server.ip, 8080)).is_ok();
            (friend, pod, answered)
        };
        let threads: Vec<_> = (0..PODS).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a pod")).collect()
    });
    for (friend, pod, answered) in &pods {
        assert_eq!(friend, answered, "{}", pod.name);
        assert!(is_bound(&node, pod), "{}", pod.name);
    }
    assert_eq!(filters(&node), [1, 1], "one for all");
    std::thread::scope(|scope| {
        for (_, pod, _) in &pods {
            let node = &node;
            scope.spawn(move || node.delete_pod(pod).expect("DEL"));
        }
    });
    assert_eq!(node.dataplane().status().leases, 1);
    assert!(ask(&node.netns, at(server.ip, 8080)).is_ok());
}
