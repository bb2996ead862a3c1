//! What is asked and what comes back.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use xebec_tests::cluster::{Cluster, IMAGE, until};

use crate::agent::Agent;
use crate::upstream::Upstream;
use crate::{in_pod, try_in_pod};

const PODS: [&str; 4] = ["server", "glibc", "host", "own"];

fn get(cluster: &Cluster, what: &str, path: &str) -> String {
    cluster.kubectl(&["get", "-o", &format!("jsonpath={path}"), "pod", what])
}

/// IPv4 addresses of a name by libc's resolver.
fn by_libc(cluster: &Cluster, name: &str) -> BTreeSet<String> {
    let said = in_pod(cluster, "glibc", &format!("/usr/bin/getent ahostsv4 {name}"));
    said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Addresses of a name by busybox's, behind the two lines that name the server.
fn by_busybox(cluster: &Cluster, pod: &str, name: &str) -> BTreeSet<String> {
    let said = in_pod(cluster, pod, &format!("/bin/busybox nslookup -type=a {name}"));
    let answer = said.split("\n\n").skip(1).collect::<Vec<_>>().join("\n");
    answer.lines().filter_map(|line| line.strip_prefix("Address: ")).map(|a| a.trim().to_owned()).collect()
}

fn set<const N: usize>(addresses: [&str; N]) -> BTreeSet<String> {
    addresses.map(str::to_owned).into()
}

pub fn the_service_is_told(cluster: &Cluster) {
    assert!(cluster.kubectl(&["cluster-info"]).contains("services/kube-dns:dns/proxy"), "{}", cluster.kubectl(&["cluster-info"]));
    let address = cluster.kubectl(&["get", "service", "kube-dns", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_eq!(address, "10.96.0.10");
}

pub fn resolver_configurations(cluster: &Cluster) {
    let read = |pod: &str| in_pod(cluster, pod, "cat /etc/resolv.conf");
    for pod in ["server", "host"] {
        let text = read(pod);
        assert!(text.contains("nameserver 10.96.0.10\n") && text.contains("options ndots:5"), "{pod}: {text}");
        assert!(text.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{pod}: {text}");
    }
    assert_eq!(read("own"), "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:1 edns0\n");
}

/// Short and long names, from pods of both nodes, on the node's network and on their own.
pub fn names_of_the_cluster(cluster: &Cluster) {
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "WEB.default.svc.cluster.local."] {
        assert_eq!(by_libc(cluster, name), set(["10.96.7.7"]), "{name}");
    }
    for pod in PODS {
        assert_eq!(by_busybox(cluster, pod, "web.default.svc.cluster.local"), set(["10.96.7.7"]), "{pod}");
        assert_eq!(in_pod(cluster, pod, "/bin/busybox wget -q -O - http://web"), "hello\n", "{pod}");
    }
    let (cat, dog) = (get(cluster, "cat", "{.status.podIP}"), get(cluster, "dog", "{.status.podIP}"));
    assert_eq!(by_libc(cluster, "pets"), set([&*cat, &*dog]));
    assert_eq!(by_libc(cluster, "cat.pets"), set([&*cat]));
    assert_eq!(by_busybox(cluster, "cat", "dog.pets.default.svc.cluster.local"), set([&*dog]));
    assert_eq!(by_libc(cluster, "inner"), set(["10.96.7.7"]));
    let dashed = format!("{}.default.pod.cluster.local", cat.replace('.', "-"));
    assert_eq!(by_libc(cluster, &dashed), set([&*cat]));
    // A pod that is not ready is there for those who ask for such.
    let shy = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shy", "labels": {"app": "shy"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": IMAGE, "command": ["sleep", "100000"],
                "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1},
            }],
        },
    });
    cluster.apply(&shy.to_string());
    until("the pod has an address", || !get(cluster, "shy", "{.status.podIP}").is_empty());
    until("it is found", || {
        by_busybox_or_nothing(cluster, "shy.default.svc.cluster.local") == set([&*get(cluster, "shy", "{.status.podIP}")])
    });
    let unknown = try_in_pod(cluster, "server", "/bin/busybox nslookup -type=a nobody.default.svc.cluster.local");
    assert!(String::from_utf8_lossy(&unknown.stdout).contains("NXDOMAIN"), "{unknown:?}");
}

fn by_busybox_or_nothing(cluster: &Cluster, name: &str) -> BTreeSet<String> {
    let found = try_in_pod(cluster, "server", &format!("/bin/busybox nslookup -type=a {name}"));
    if found.status.success() { by_busybox(cluster, "server", name) } else { BTreeSet::new() }
}

pub fn records_of_all_kinds(cluster: &Cluster) {
    let ask = |kind: &str, name: &str| in_pod(cluster, "server", &format!("/bin/busybox nslookup -type={kind} {name}"));
    let services = ask("srv", "_http._tcp.web.default.svc.cluster.local");
    assert!(services.contains("0 100 80 web.default.svc.cluster.local"), "{services}");
    let services = ask("srv", "_http._tcp.pets.default.svc.cluster.local");
    assert!(services.contains("0 50 8080 cat.pets.default.svc.cluster.local"), "{services}");
    assert!(services.contains("0 50 8080 dog.pets.default.svc.cluster.local"), "{services}");
    let cat = get(cluster, "cat", "{.status.podIP}");
    let reverse = |address: &str| in_pod(cluster, "server", &format!("/bin/busybox nslookup {address}"));
    assert!(reverse("10.96.7.7").contains("name = web.default.svc.cluster.local"));
    assert!(reverse(&cat).contains("name = cat.pets.default.svc.cluster.local"));
    assert!(ask("txt", "dns-version.cluster.local").contains("\"1.1.0\""));
    assert!(ask("ns", "cluster.local").contains("kube-dns.kube-system.svc.cluster.local"));
}

/// More addresses than a datagram holds: libc comes again by TCP.
pub fn large_answers(cluster: &Cluster) {
    let endpoints: Vec<Value> = (0..200).map(|n| json!({"addresses": [format!("198.51.100.{n}")]})).collect();
    let slices: Vec<Value> = endpoints
        .chunks(100)
        .enumerate()
        .map(|(number, endpoints)| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("many-{number}"), "labels": {"kubernetes.io/service-name": "many"}},
                "ports": [{"name": "http", "port": 80}], "endpoints": endpoints,
            })
        })
        .collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": slices}).to_string());
    until("all of them are found", || {
        let found = try_in_pod(cluster, "glibc", "/usr/bin/getent ahostsv4 many | grep -c STREAM");
        String::from_utf8_lossy(&found.stdout).trim() == "200"
    });
}

/// A pod that may reach nobody may not ask either, until it may reach what people know as cluster DNS.
pub fn policies(cluster: &Cluster) {
    // Both by UDP and TCP, neither of which waits long for an answer that does not come.
    let by_tcp = "printf '\\0\\037\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7cluster\\5local\\0\\0\\6\\0\\1' | timeout 5 nc -w 2 10.96.0.10 53 | grep -q hostmaster";
    let by_udp = "/bin/busybox timeout 5 nslookup -type=a web.default.svc.cluster.local";
    let may = |script: &str| try_in_pod(cluster, "locked", script).status.success();
    assert!(!may(by_udp) && !may(by_tcp), "default deny lets questions pass");
    assert!(try_in_pod(cluster, "own", by_tcp).status.success(), "the same without a policy");
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "names"},
        "spec": {
            "podSelector": {"matchLabels": {"locked": "yes"}},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                }],
                "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
            }],
        },
    });
    cluster.apply(&allow.to_string());
    until("the rule is in force", || may(by_udp));
    assert!(may(by_tcp));
    assert!(!may("timeout 5 wget -q -O - http://web"), "the rest stays denied");
}

/// Another agent, with a server of the outside: it finds its address as the one before left it.
pub fn names_of_others(cluster: &Cluster, upstream: &Upstream) {
    let resolv_conf = cluster.up.layout.run_dir.join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver 10.96.0.10\nnameserver {}\n", upstream.address)).unwrap();
    let agent = Agent::instead(cluster, 1, &["--resolv-conf", &resolv_conf.display().to_string()]);
    until("names are answered again", || !by_busybox_or_nothing(cluster, "web.default.svc.cluster.local").is_empty());
    until("names of others are answered", || by_busybox_or_nothing(cluster, "www.outside.example") == set(["192.0.2.80"]));
    assert_eq!(by_busybox(cluster, "server", "outer.default.svc.cluster.local"), set(["192.0.2.80"]));
    let asked = upstream.asked();
    for _ in 0..3 {
        assert_eq!(by_busybox(cluster, "server", "www.outside.example"), set(["192.0.2.80"]));
    }
    assert_eq!(upstream.asked(), asked, "known by now");
    let missing = try_in_pod(cluster, "server", "/bin/busybox nslookup -type=a missing.outside.example");
    assert!(String::from_utf8_lossy(&missing.stdout).contains("NXDOMAIN"), "{missing:?}");
    let metrics = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics", cluster.node(1).name)]);
    for figure in [
        "xebec_dns_queries_total{",
        "xebec_dns_cache_lookups_total{result=\"hit\"}",
        "xebec_dns_forwards_total{",
        "xebec_dns_serving_addresses 1",
    ] {
        assert!(metrics.contains(figure), "{figure}");
    }
    drop(agent);
    cluster.bring_up();
}

/// Somebody's own name server behind the Service: the nodes step back, and come again when it goes.
pub fn somebody_else_takes_over(cluster: &Cluster) {
    let addresses = || cluster.on_node(2, "ip", &["-o", "addr", "show", "dev", "lo"]);
    assert!(addresses().contains("10.96.0.10"));
    let theirs = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "nodeName": cluster.node(2).name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": IMAGE,
                "command": ["sh", "-c", "mkdir /www; echo theirs > /www/index.html; exec httpd -f -p 53 -h /www"],
            }],
        },
    });
    cluster.apply(&theirs.to_string());
    let patch = json!({"spec": {"selector": {"k8s-app": "kube-dns"}}}).to_string();
    cluster.kubectl(&["patch", "service", "kube-dns", "-n", "kube-system", "--type", "merge", "-p", &patch]);
    // It speaks no DNS, but whose the address is shows all the same.
    until("the other server answers", || {
        try_in_pod(cluster, "server", "/bin/busybox timeout 5 wget -q -O - http://10.96.0.10:53").stdout == b"theirs\n"
    });
    until("the address is the node's no more", || !addresses().contains("10.96.0.10"));
    cluster.kubectl(&["delete", "service", "kube-dns", "-n", "kube-system"]);
    until("the nodes answer again", || by_busybox_or_nothing(cluster, "web.default.svc.cluster.local") == set(["10.96.7.7"]));
}
