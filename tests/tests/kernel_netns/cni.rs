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
    for devices in [node.netns.ip(&format!("-d link show {host}")), pod.netns.ip("-d link show eth0")] {
        assert!(devices.contains("numtxqueues 1 numrxqueues 1"), "nobody chooses a queue for each packet: {devices}");
    }
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
fn every_version_gets_its_result_whatever_else_the_configuration_says() {
    let mut node = Node::new();
    node.start();
    for (index, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
        let more = json!({
            "cniVersion": version, "unknown": {"deep": [1, null]}, "prevResult": {"cniVersion": version, "ips": 7}, "ipam": "none",
            "runtimeConfig": {"portMappings": [{"hostPort": -1}], "unknown": true}, "args": {"labels": []},
        });
        let pod = node.pod_with(&format!("p{index}"), json!({}), json!([]), &more);
        assert_eq!(pod.result["cniVersion"], version);
        assert_eq!(pod.result["ips"][0]["version"].as_str(), version.starts_with("0.").then_some("4"), "{version}");
        let path = pod.netns.path().display().to_string();
        node.cni_with("CHECK", &pod.sandbox, &path, &pod.name, &more).unwrap_or_else(|e| panic!("{version}: {e}"));
        node.cni_with("STATUS", "", "", "", &more).unwrap_or_else(|e| panic!("{version}: {e}"));
        node.cni_with("DEL", &pod.sandbox, "", &pod.name, &more).unwrap_or_else(|e| panic!("{version}: {e}"));
    }
    assert_eq!(node.dataplane().status().leases, 0);
}

#[test]
fn gc_removes_what_is_not_listed_and_nothing_of_a_list_that_cannot_be_read() {
    let mut node = Node::new();
    node.start();
    let (kept, stale) = (node.pod("kept", json!({}), json!([])), node.pod("stale", json!({}), json!([])));
    let gc = |list: serde_json::Value| node.cni_with("GC", "", "", "", &json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": list}));
    let good = json!({"containerID": kept.sandbox, "ifname": "eth0"});
    for broken in [json!(null), json!("all"), json!([good, {}]), json!([good, {"containerID": 5, "ifname": "eth0"}]), json!([good, "x"])] {
        assert_eq!(gc(broken.clone()).expect_err("not understood")["code"], 7, "{broken}");
    }
    assert_eq!(node.cni("GC", "", "", "").expect_err("no list")["code"], 7);
    assert_eq!(node.dataplane().status().leases, 2, "nothing was removed");
    gc(json!([good, {"containerID": "unknown", "ifname": "eth0", "more": 1}])).expect("understood");
    assert_eq!(node.dataplane().status().leases, 1);
    let path = |pod: &crate::node::Pod| pod.netns.path().display().to_string();
    node.cni("CHECK", &kept.sandbox, &path(&kept), "kept").expect("still there");
    node.cni("CHECK", &stale.sandbox, &path(&stale), "stale").expect_err("gone");
    assert_eq!(node.cni("EAT", &kept.sandbox, &path(&kept), "kept").expect_err("no such command")["code"], 4);
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
