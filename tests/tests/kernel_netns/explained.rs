//! `xebec why` for UDP, IPv6 and ClusterNetworkPolicies: what it says is what real packets meet.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, Pod, ask, at, eventually, serve};
use crate::seeing::question;

const CLUSTER_IP: &str = "10.96.0.10";
const CLUSTER_IP6: &str = "fd00:96::10";

fn v6(pod: &Pod) -> String {
    pod.result["ips"][1]["address"].as_str().expect("an IPv6 address").trim_end_matches("/128").to_owned()
}

fn why(node: &Node, source: &str, destination: &str, protocol: &str, port: u16) -> Value {
    let asked = json!({"ask": "why", "source": source, "destination": destination, "protocol": protocol, "port": port});
    let answer = question(node, &asked.to_string());
    assert!(answer["error"].is_null(), "{asked}: {answer}");
    answer["result"].clone()
}

/// Whether a datagram is answered.
fn reaches(pod: &Pod, to: SocketAddr) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    pod.netns.run(|| {
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket.send_to(b"x", to).is_ok() && socket.recv_from(&mut [0; 64]).is_ok()
    })
}

/// A node with both families, a Service for UDP and one for TCP at the same addresses, and policies of all kinds.
fn node() -> (Node, [Pod; 3]) {
    let mut node = Node::new();
    node.api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "spec": {"podCIDRs": ["10.244.7.0/24", "fd00:7::/64"]}}));
    node.netns.ip("addr add 2001:db8::1/64 dev up0 nodad");
    let labeled = |app: &str| json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}});
    // There is one from the start: the definition is there when the agent asks for it.
    node.cluster_policy(
        "gate",
        json!({"tier": "Admin", "priority": 5, "subject": labeled("server"), "ingress": [
            {"action": "Pass", "from": [labeled("friend")]},
            {"action": "Deny", "from": [labeled("other")], "protocols": [{"udp": {"destinationPort": {"number": 8080}}}]},
            {"action": "Accept", "from": [labeled("other")]},
        ]}),
    );
    node.start();
    let pods = ["server", "friend", "other"].map(|name| node.pod(name, json!({"app": name}), json!([])));
    serve(&pods[0].netns, "server", 8080);
    node.policy(
        "server",
        json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 8080, "protocol": "UDP"}]}]}),
    );
    for (name, protocol) in [("udp", "UDP"), ("tcp", "TCP")] {
        let ips = json!({"clusterIPs": [CLUSTER_IP, CLUSTER_IP6], "ports": [{"port": 53, "targetPort": 8080, "protocol": protocol}]});
        node.service(name, CLUSTER_IP, 53, protocol, 8080, &[&pods[0]], &ips);
        node.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": {"name": format!("{name}-6"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [v6(&pods[0])], "conditions": {"ready": true}, "nodeName": "node-1"}],
            "ports": [{"name": "", "port": 8080, "protocol": protocol}],
        }));
    }
    (node, pods)
}

#[test]
fn udp_and_ipv6_are_explained_as_they_are_and_cluster_policies_are_named() {
    let (node, [server, friend, other]) = node();
    let vips = [CLUSTER_IP, CLUSTER_IP6];
    eventually("Services and policies are in force", || {
        vips.iter().all(|vip| reaches(&friend, at(vip, 53)) && !reaches(&other, at(vip, 53)) && ask(&other.netns, at(vip, 53)).is_ok())
            && ask(&friend.netns, at(server.ip, 8080)).is_err()
    });
    let slices = ["udp-1", "udp-6"];
    let backends = [server.ip.to_string(), format!("[{}]", v6(&server))];
    for ((vip, slice), backend) in vips.into_iter().zip(slices).zip(backends) {
        let allowed = why(&node, "default/friend", vip, "udp", 53);
        assert_eq!(allowed["fate"]["verdict"], "delivered", "{allowed:#}");
        assert_eq!(
            (&allowed["service"]["service"], &allowed["backend"]["pod"]),
            (&json!("default/udp"), &json!("default/server")),
            "{allowed:#}"
        );
        assert_eq!(allowed["backend"]["address"], format!("{backend}:8080"), "{allowed:#}");
        assert_eq!(allowed["backend"]["endpointSlice"], format!("default/{slice}"), "{allowed:#}");
        let said = &allowed["policies"][0];
        assert_eq!((&said["rule"], &said["allowed"]), (&json!("spec.ingress[0]"), &json!(true)), "passed on to the NetworkPolicy: {said}");
        assert!(said["policies"][0].as_str().is_some_and(|p| p.starts_with("default/server (resourceVersion ")), "{said}");

        let denied = why(&node, "default/other", vip, "udp", 53);
        assert_eq!(denied["fate"], json!({"verdict": "dropped", "reason": "policy_ingress"}), "{denied:#}");
        let said = &denied["policies"][0];
        assert_eq!((&said["rule"], &said["allowed"]), (&json!("spec.ingress[1]"), &json!(false)), "{said}");
        assert!(said["policies"][0].as_str().is_some_and(|p| p.starts_with("ClusterNetworkPolicy gate (resourceVersion ")), "{said}");

        let accepted = why(&node, "default/other", vip, "tcp", 53);
        assert_eq!(accepted["fate"]["verdict"], "delivered", "{accepted:#}");
        assert_eq!((&accepted["service"]["service"], &accepted["policies"][0]["rule"]), (&json!("default/tcp"), &json!("spec.ingress[2]")));

        let shut = why(&node, "default/friend", vip, "tcp", 53);
        let said = &shut["policies"][0];
        assert_eq!((&shut["fate"]["reason"], &said["rule"]), (&json!("policy_ingress"), &json!(null)), "no rule allows it: {shut:#}");
        assert!(said["policies"][0].as_str().is_some_and(|p| p.starts_with("default/server ")), "{said}");
    }
}
