//! Every kind of Service on three nodes and in both families: from pods, from nodes, from outside; TCP and UDP; whose address
//! the server sees.

mod client;
mod inside;
mod outside;
mod world;

use serde_json::json;
use world::World;
use xebec_tests::cluster::Cluster;

#[test]
fn every_service_type_from_everywhere() {
    let mut world = World::new();
    inside::cluster_ips(&world);
    inside::headless_and_names(&world);
    inside::without_selector(&world);
    inside::affinity(&world);
    inside::hairpin(&world);
    inside::local_only(&world);
    outside::node_ports(&world);
    outside::direct_return(&world);
    outside::mistakes_are_told_once(&world);
    outside::host_port(&world);
    outside::external_ips(&world);
    outside::nobody_there(&world);
    outside::source_ranges(&world);
    // Pods move and an agent dies here.
    outside::local_balancer(&world);
    outside::everything_direct(&mut world);
}

/// The whole of a Service's spec but for what `spec` says otherwise.
fn service(cluster: &Cluster, name: &str, app: &str, spec: serde_json::Value) {
    let mut whole = json!({"selector": {"app": app}, "ipFamilyPolicy": "PreferDualStack", "ports": world::ports()});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    world::apply(cluster, &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": whole}));
}
