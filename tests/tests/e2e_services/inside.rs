//! Services as pods and nodes use them.

use std::{collections::BTreeSet, io::ErrorKind, net::IpAddr};

use serde_json::json;
use xebec_tests::cluster::until;

use crate::{
    client::{by_tcp, by_udp, from_node, from_pod, in_container, inside, tcp, udp},
    service,
    world::{OTHER_PORT, PORT, TARGET, UDP_PORT, World, all_answer, apply, seen_by},
};

const A: &[&str] = &["a1", "a2"];

pub fn cluster_ips(world: &World) {
    let cluster = &world.cluster;
    let client = world.uid("client");
    for (vip, own) in world.cluster_ips("a").into_iter().zip(world.pod_ips("client")) {
        all_answer("pod to ClusterIP", A, || from_pod(&client, &by_tcp(vip, PORT)));
        all_answer("pod to the other port", &["a1-other", "a2-other"], || from_pod(&client, &by_tcp(vip, OTHER_PORT)));
        all_answer("pod to ClusterIP, UDP", A, || from_pod(&client, &by_udp(vip, UDP_PORT)));
        // Whom the socket hooks do not see.
        all_answer("pod's packets to ClusterIP", A, || inside(&client, move || tcp(vip, PORT)));
        all_answer("pod's packets to ClusterIP, UDP", A, || inside(&client, move || udp(vip, UDP_PORT)));
        let seen = seen_by("an answer", || from_pod(&client, &by_tcp(vip, PORT)));
        assert_eq!(seen, own, "pods see each other's own address");
        assert_eq!(seen_by("an answer", || inside(&client, move || udp(vip, UDP_PORT))), own);
        for node in 1..=3 {
            all_answer("node to ClusterIP", A, || from_node(cluster, node, &by_tcp(vip, PORT)));
            all_answer("node to ClusterIP, UDP", A, || from_node(cluster, node, &by_udp(vip, UDP_PORT)));
        }
        // A port that is none of its own.
        let refused = inside(&client, move || tcp(vip, 4444)).expect_err("nobody is there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
}

/// Addresses of a name, as a pod's resolver is told.
fn addresses(world: &World, kind: &str, name: &str) -> BTreeSet<IpAddr> {
    let said = world.cluster.kubectl(&["exec", "client", "--", "nslookup", &format!("-type={kind}"), name]);
    said.split("\n\n").skip(1).flat_map(str::lines).filter_map(|line| line.strip_prefix("Address: ")?.trim().parse().ok()).collect()
}

pub fn headless_and_names(world: &World) {
    let cluster = &world.cluster;
    service(cluster, "headless", "a", json!({"clusterIP": "None"}));
    let pods: Vec<Vec<IpAddr>> = A.iter().map(|name| world.pod_ips(name)).collect();
    for (family, kind) in ["a", "aaaa"].into_iter().enumerate() {
        let want: BTreeSet<IpAddr> = pods.iter().map(|ips| ips[family]).collect();
        until("the headless Service's name leads to its pods", || addresses(world, kind, "headless.default.svc.cluster.local") == want);
    }
    let wget = |name: &str, port: u16| format!("timeout 3 wget -q -O - http://{name}:{port}/cgi-bin/who");
    assert!(A.contains(&&*in_container(cluster, "client", &wget("headless", TARGET)).expect("an answer").0));
    apply(
        cluster,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere"}, "spec": {
            "type": "ExternalName", "externalName": "a.default.svc.cluster.local"}}),
    );
    all_answer("by another name", A, || in_container(cluster, "client", &wget("elsewhere", PORT)));
}

pub fn without_selector(world: &World) {
    let (cluster, client) = (&world.cluster, world.uid("client"));
    let a1 = world.pod_ips("a1");
    apply(
        cluster,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "manual"}, "spec": {
            "ipFamilyPolicy": "PreferDualStack", "ports": [{"name": "tcp", "port": PORT, "targetPort": TARGET}]}}),
    );
    // One family by Endpoints, which are mirrored, the other by a slice.
    apply(
        cluster,
        &json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "manual"}, "subsets": [
            {"addresses": [{"ip": a1[0]}], "ports": [{"name": "tcp", "port": TARGET}]}]}),
    );
    apply(
        cluster,
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": {"name": "manual-six", "labels": {"kubernetes.io/service-name": "manual"}},
            "endpoints": [{"addresses": [a1[1]]}], "ports": [{"name": "tcp", "port": TARGET}]}),
    );
    let vips = world.cluster_ips("manual");
    for &vip in &vips {
        all_answer("without a selector", &["a1"], || from_pod(&client, &by_tcp(vip, PORT)));
    }
    cluster.kubectl(&["delete", "service", "manual"]);
    for &vip in &vips {
        until("the address is nobody's", || from_pod(&client, &by_tcp(vip, PORT)).is_err());
    }
}

pub fn affinity(world: &World) {
    let cluster = &world.cluster;
    let spec = json!({"type": "NodePort", "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 3600}}});
    service(cluster, "sticky", "a", spec);
    let (client, port) = (world.uid("client"), world.node_port("sticky", "tcp"));
    for (vip, node) in world.cluster_ips("sticky").into_iter().zip(cluster.node_ips(1)) {
        let stays = |what: &str, ask: &mut dyn FnMut() -> crate::client::Answer| {
            let mut first = None;
            until(what, || {
                first = ask().ok();
                first.is_some()
            });
            let first = first.expect("it has answered").0;
            for _ in 0..10 {
                assert_eq!(ask().expect("an answer").0, first, "{what}");
            }
        };
        stays("a pod stays with its server", &mut || from_pod(&client, &by_tcp(vip, PORT)));
        stays("packets of a pod do", &mut || inside(&client, move || tcp(vip, PORT)));
        stays("a node does", &mut || from_node(cluster, 3, &by_tcp(vip, PORT)));
        stays("one outside does", &mut || tcp(node, port));
    }
}

/// A pod reaches itself through its Service.
pub fn hairpin(world: &World) {
    let b2 = world.uid("b2");
    for vip in world.cluster_ips("b") {
        all_answer("itself", &["b2"], || from_pod(&b2, &by_tcp(vip, PORT)));
        all_answer("itself, by packets", &["b2"], || inside(&b2, move || tcp(vip, PORT)));
        all_answer("itself, by datagrams", &["b2"], || inside(&b2, move || udp(vip, UDP_PORT)));
    }
}

pub fn local_only(world: &World) {
    let cluster = &world.cluster;
    service(cluster, "here", "b", json!({"internalTrafficPolicy": "Local"}));
    let (a2, client) = (world.uid("a2"), world.uid("client"));
    for vip in world.cluster_ips("here") {
        all_answer("the node with the endpoint", &["b2"], || from_node(cluster, 2, &by_tcp(vip, PORT)));
        all_answer("a pod there", &["b2"], || from_pod(&a2, &by_tcp(vip, PORT)));
        assert!(from_node(cluster, 1, &by_tcp(vip, PORT)).is_err(), "the endpoint is elsewhere");
        assert!(from_pod(&client, &by_tcp(vip, PORT)).is_err(), "the endpoint is elsewhere");
    }
}
