//! A next hop that does not answer: who is in a pod is told so, as by a router, and does not wait until it has lost its patience.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use xebec_dataplane::HostRouting;

use crate::node::{Node, at, eventually};

const NODE_V6: &str = "2001:db8::1";
/// Longer than the kernel asks for a neighbour (three times, a second apart), shorter than a connect waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// What comes of a connection from a pod.
fn connects(pod: &crate::node::Pod, to: SocketAddr) -> ErrorKind {
    let outcome = pod.netns.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    outcome.expect_err("nobody is there").kind()
}

#[test]
fn pods_are_told_that_a_next_hop_does_not_answer() {
    for host_routing in [HostRouting::Bpf, HostRouting::Kernel] {
        let mut node = Node::new();
        node.netns.ip(&format!("addr add {NODE_V6}/64 dev up0 nodad"));
        node.outside.ip("addr add 2001:db8::2/64 dev out0 nodad");
        node.config.host_routing = host_routing;
        node.config.node_ips.push(NODE_V6.parse().expect("an address"));
        node.config.cluster_cidrs.push("fd00::/16".parse().expect("a range"));
        // The second is dead.
        for (name, ranges, addresses) in [
            ("node-1", ["10.244.7.0/24", "fd00:7::/64"], ["192.0.2.1", NODE_V6]),
            ("node-2", ["10.244.9.0/24", "fd00:9::/64"], ["192.0.2.77", "2001:db8::77"]),
        ] {
            let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
            node.api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
            }));
        }
        node.start();
        let pod = node.pod("client", json!({}), json!([]));
        let ranges = ["10.244.9.0/24", "fd00:9::/64"];
        eventually("there are routes to the dead node", || {
            ranges
                .iter()
                .all(|range| !node.netns.ip(&format!("{} route show {range}", if range.contains(':') { "-6" } else { "-4" })).is_empty())
        });
        let routed = || node.dataplane().status().forwards.get("routed").copied().unwrap_or(0);
        // A pod of the dead node; an address beside the nodes, which the pod reaches with the node's.
        std::thread::scope(|scope| {
            for to in ["10.244.9.5", "fd00:9::5", "192.0.2.78", "2001:db8::78"] {
                let pod = &pod;
                scope.spawn(move || assert_eq!(connects(pod, at(to, 80)), ErrorKind::HostUnreachable, "{host_routing:?} {to}"));
            }
        });
        assert_eq!(routed() >= 4, host_routing == HostRouting::Bpf, "{} past the stack", routed());
    }
}
