//! Pods, nodes and outside talk to each other across nodes, whichever way packets take between them.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use xebec_tests::cluster::{Cluster, args, until};
use xtask::up::{self, IpFamily, Routing, Store};

use crate::pods;

/// Addresses of a pod, the primary one first.
fn ips(cluster: &Cluster, pod: &str) -> Vec<IpAddr> {
    let object = pods::get(cluster, "pod", pod);
    let list = object["status"]["podIPs"].as_array().cloned().unwrap_or_default();
    list.iter().map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect()
}

/// What a pod is told when it asks: who answered, and whom it saw.
fn asked_by_pod(cluster: &Cluster, number: u8, to: SocketAddr) -> Option<(String, IpAddr)> {
    let url = format!("http://{to}/cgi-bin/who");
    let output = cluster.try_kubectl(&["exec", &format!("pod-{number}"), "--", "timeout", "3", "wget", "-q", "-O-", &url], "");
    answer(&String::from_utf8_lossy(&output.stdout))
}

/// The same from outside the nodes.
pub fn asked_by_host(to: SocketAddr) -> Option<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    answer(text.lines().last()?)
}

fn answer(line: &str) -> Option<(String, IpAddr)> {
    let (name, seen) = line.trim().split_once(' ')?;
    let seen: IpAddr = seen.trim_matches(['[', ']']).parse().ok()?;
    Some((name.to_owned(), seen.to_canonical()))
}

/// Asks until each of the three pods has answered.
#[track_caller]
fn all_answer(what: &str, mut ask: impl FnMut() -> Option<(String, IpAddr)>) {
    let mut names = BTreeSet::new();
    until(&format!("every pod has answered {what}; so far {names:?}"), || {
        names.extend(ask().map(|(name, _)| name));
        names.len() == 3
    });
}

/// Services `each` in all families there are, with a NodePort.
fn service(cluster: &Cluster) -> (Vec<IpAddr>, u16) {
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: each}\nspec:\n  type: NodePort\n  ipFamilyPolicy: PreferDualStack\n  \
         selector: {app: each}\n  ports: [{port: 80, targetPort: 8080, nodePort: 30180}]\n",
    );
    let object = pods::get(cluster, "service", "each");
    let list = object["spec"]["clusterIPs"].as_array().unwrap();
    (list.iter().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect(), 30180)
}

/// Everybody reaches everybody in every family.
fn everybody_talks(cluster: &Cluster) {
    pods::one_on_each(cluster);
    let pods_ips: Vec<(u8, Vec<IpAddr>)> = (1..=3).map(|n| (n, ips(cluster, &format!("pod-{n}")))).collect();
    let families = cluster.node_ips(1).len();
    for (from, own) in &pods_ips {
        assert_eq!(own.len(), families, "pod-{from} has {own:?}");
        for (to, theirs) in pods_ips.iter().filter(|(to, _)| to != from) {
            for (mine, address) in own.iter().zip(theirs) {
                let mut last = None;
                until(&format!("pod-{from} reaches pod-{to} at {address}"), || {
                    last = asked_by_pod(cluster, *from, SocketAddr::new(*address, 8080));
                    last.is_some()
                });
                assert_eq!(last, Some((format!("pod-{to}"), *mine)), "pods see each other's own addresses");
            }
        }
    }
    let (cluster_ips, node_port) = service(cluster);
    assert_eq!(cluster_ips.len(), families);
    for ip in cluster_ips {
        all_answer(&format!("a pod at {ip}"), || asked_by_pod(cluster, 1, SocketAddr::new(ip, 80)));
    }
    every_name_server_answers(cluster, families);
    for node in 1..=3 {
        for ip in cluster.node_ips(node) {
            let at = SocketAddr::new(ip, node_port);
            all_answer(&format!("outside at {at}"), || asked_by_host(at));
            // Of this node's own NodePort and of another node's.
            all_answer(&format!("a pod at {at}"), || asked_by_pod(cluster, 2, at));
        }
    }
    // The node's own processes reach pods of other nodes.
    for (number, addresses) in pods_ips.iter().filter(|(number, _)| *number != 1) {
        for address in addresses {
            let url = format!("http://{}/cgi-bin/who", SocketAddr::new(*address, 8080));
            let said = cluster.on_node(1, "busybox", &["wget", "-q", "-O-", &url]);
            let (name, seen) = answer(&said).unwrap_or_else(|| panic!("{said:?}"));
            assert!(name == format!("pod-{number}") && cluster.node_ips(1).contains(&seen), "{said:?}");
        }
    }
}

/// Pods have a name server of each family, and each knows the Service.
fn every_name_server_answers(cluster: &Cluster, families: usize) {
    let config = cluster.kubectl(&["exec", "pod-1", "--", "cat", "/etc/resolv.conf"]);
    let servers: Vec<&str> = config.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    assert_eq!(servers.len(), families, "{config}");
    for server in servers {
        until(&format!("{server} knows the Service"), || {
            let ask = ["exec", "pod-1", "--", "timeout", "3", "nslookup", "each.default.svc.cluster.local", server];
            cluster.try_kubectl(&ask, "").status.success()
        });
    }
}

/// Only pod-1 may reach pod-2, wherever they are.
fn policy_holds_across_nodes(cluster: &Cluster) {
    let at = SocketAddr::new(ips(cluster, "pod-2")[0], 8080);
    cluster.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: two}\nspec:\n  podSelector: {matchLabels: {name: pod-2}}\n  \
         ingress: [{from: [{podSelector: {matchLabels: {name: pod-1}}}]}]\n",
    );
    until("pod-3 is denied", || asked_by_pod(cluster, 3, at).is_none());
    assert!(asked_by_pod(cluster, 1, at).is_some(), "pod-1 is allowed");
    cluster.kubectl(&["delete", "networkpolicy", "two"]);
    until("pod-3 is allowed again", || asked_by_pod(cluster, 3, at).is_some());
}

fn three(name: &str, routing: Routing, ip_family: IpFamily) -> Cluster {
    Cluster::with(up::Args { nodes: Some(3), routing, ip_family, ..args(name, Store::Embedded) })
}

#[test]
fn by_routes_everybody_reaches_everybody() {
    let cluster = three("routes", Routing::Native, IpFamily::Ipv4);
    everybody_talks(&cluster);
    policy_holds_across_nodes(&cluster);
}

#[test]
fn through_the_tunnel_everybody_reaches_everybody_in_both_families() {
    let cluster = three("tunnel", Routing::Vxlan, IpFamily::Dual);
    everybody_talks(&cluster);
    policy_holds_across_nodes(&cluster);
    let mtu = cluster.kubectl(&["exec", "pod-1", "--", "cat", "/sys/class/net/eth0/mtu"]);
    assert_eq!(mtu.trim(), "1450");
}

#[test]
fn by_routes_everybody_reaches_everybody_in_both_families() {
    everybody_talks(&three("dual", Routing::Native, IpFamily::Dual));
}

#[test]
fn a_cluster_of_ipv6_alone_works() {
    everybody_talks(&three("six", Routing::Native, IpFamily::Ipv6));
}

#[test]
fn nodes_tell_their_addresses_and_ranges_of_both_families() {
    let cluster = Cluster::with(up::Args { ip_family: IpFamily::Dual, ..args("families", Store::Embedded) });
    let node = pods::get(&cluster, "node", &cluster.node(1).name);
    let text = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let ranges = text(&node["spec"]["podCIDRs"]);
    assert!(ranges.len() == 2 && ranges[0].contains('.') && ranges[1].contains(':'), "{ranges:?}");
    let addresses: Vec<&str> = node["status"]["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["type"] == "InternalIP")
        .filter_map(|a| a["address"].as_str())
        .collect();
    assert_eq!(addresses, cluster.node_ips(1).iter().map(ToString::to_string).collect::<Vec<_>>());
}
