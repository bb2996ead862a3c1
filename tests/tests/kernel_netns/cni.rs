//! CNI calls against real namespaces.

use serde_json::json;

use crate::net::Netns;
use crate::node::{Node, ask, at, eventually, serve};

#[test]
fn add_check_del_leave_what_they_say() {
    let mut node = Node::new();
    assert!(!node.config.cni_conf_dir.as_ref().expect("set").join("10-xebec.conflist").exists());
    node.start();
    assert!(node.config.cni_conf_dir.as_ref().expect("set").join("10-xebec.conflist").exists(), "installed when ready");
    let pod = node.pod("web", json!({}), json!([]));
    assert_eq!(pod.result["cniVersion"], "1.0.0");
    assert_eq!(pod.result["interfaces"][1]["name"], "eth0");
    assert_eq!(pod.result["routes"][0]["dst"], "0.0.0.0/0");
    let host = pod.result["interfaces"][0]["name"].as_str().expect("a host device").to_owned();
    assert!(node.netns.ip("route show").contains(&format!("{} dev {host} proto kernel", pod.ip)));
    assert!(pod.netns.ip("route show").contains("default via 169.254.1.1 dev eth0"));
    let path = pod.netns.path().display().to_string();
    node.cni("CHECK", &pod.sandbox, &path, "web").expect("all is as ADD left it");
    // A second ADD is refused and disturbs nothing.
    assert_eq!(node.cni("ADD", &pod.sandbox, &path, "web").expect_err("there is a device")["code"], 100);
    node.cni("CHECK", &pod.sandbox, &path, "web").expect("still");
    node.netns.ip(&format!("route del {}", pod.ip));
    let wrong = node.cni("CHECK", &pod.sandbox, &path, "web").expect_err("the route is missing");
    assert!(wrong["details"].as_str().expect("details").contains("no route"), "{wrong}");

    assert_eq!(node.dataplane().status().leases, 1);
    node.delete_pod(&pod).expect("DEL");
    node.delete_pod(&pod).expect("DEL again");
    assert!(!node.netns.ip("link show").contains(&host));
    assert!(!pod.netns.ip("link show").contains("eth0"));
    let status = node.dataplane().status();
    assert_eq!((status.leases, status.endpoints), (0, 0));
    assert!(std::fs::read_dir(node.state_dir().join("sandboxes")).expect("a directory").next().is_none());
    let mut links = std::fs::read_dir(node.config.pin_dir.join("links")).expect("a directory").flatten();
    assert!(!links.any(|l| l.file_name().to_string_lossy().starts_with("xbc")));
    assert!(node.cni("CHECK", &pod.sandbox, &path, "web").is_err());
}

#[test]
fn calls_that_cannot_succeed_say_why_and_leave_nothing() {
    let mut node = Node::new();
    node.start();
    let netns = Netns::new();
    let path = netns.path().display().to_string();
    let before = node.netns.ip("link show");
    let gone = node.cni("ADD", "gone01", &path, "gone").expect_err("no such pod");
    assert_eq!((gone["code"].as_u64(), gone["msg"].as_str()), (Some(100), Some("the pod is gone")));
    let _other = node.pod("other", json!({}), json!([]));
    assert_eq!(node.cni("ADD", "x1", "/nonexistent", "other").expect_err("no namespace")["code"], 4);
    assert_eq!(node.cni("ADD", "../x", &path, "other").expect_err("no id")["code"], 4);
    // The pod's namespace has an eth0 already: the pair cannot be made, and nothing of it stays.
    netns.ip("link add eth0 type veth peer name other0");
    let leases = node.dataplane().status().leases;
    assert_eq!(node.cni("ADD", "x2", &path, "other").expect_err("eth0 is taken")["code"], 100);
    assert_eq!(node.dataplane().status().leases, leases);
    assert_eq!(node.netns.ip("link show").lines().count(), before.lines().count() + 2, "only the good pod's device");
    // The API is away and the pod is not known: try again later.
    node.api.set_away(true);
    assert_eq!(node.cni("ADD", "x3", &path, "unseen").expect_err("the API is away")["code"], 11);
    node.api.set_away(false);
    // A deleted namespace: DEL still succeeds.
    node.cni("DEL", "x2", "", "other").expect("nothing to do");
}

#[test]
fn a_full_range_is_named_and_freed_addresses_are_leased_again() {
    let mut node = Node::new();
    node.api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.7.0/30"]}}));
    node.start();
    let (a, b) = (node.pod("a", json!({}), json!([])), node.pod("b", json!({}), json!([])));
    serve(&b.netns, "b", 8080);
    assert!(ask(&a.netns, at(b.ip, 8080)).is_ok());
    node.api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c", "namespace": "default", "uid": "uid-c"}, "spec": {"containers": []}}));
    let netns = Netns::new();
    let full = node.cni("ADD", "c1", &netns.path().display().to_string(), "c").expect_err("no address left");
    assert!(full["details"].as_str().expect("details").contains("10.244.7.0/30"), "{full}");
    node.delete_pod(&a).expect("DEL");
    let c = node.pod("c", json!({}), json!([]));
    assert_eq!(c.ip, a.ip);
    eventually("the new pod is reached", || ask(&c.netns, at(b.ip, 8080)).is_ok());
}
