//! Maps of other sizes: a Service that does not fit is refused whole and told of, larger maps take it, and neither growth nor
//! the way back breaks a connection.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use xebec_dataplane::Layout;
use xebec_ebpf_abi::{Addr, Backend};

use crate::node::{NODE_IP, Node, ask, ask_on, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";

fn sized(backends: u32) -> Layout {
    Layout::default().sized(BTreeMap::from([("BACKENDS".to_owned(), backends)])).expect("a possible size")
}

/// A Service with more endpoints than the small map takes.
fn large(node: &Node) {
    node.service("large", "10.96.0.20", 80, "TCP", 8080, &[], &json!({}));
    let endpoints: Vec<Value> = (1..=100).map(|n| json!({"addresses": [format!("192.0.2.{n}")]})).collect();
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "large-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "large"}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }));
}

/// Entries and places of a map, as the status tells them.
fn fill(node: &Node, name: &str) -> (u64, u64) {
    let status = node.dataplane().status();
    let map = status.maps.iter().find(|m| m.name == name).expect("the map");
    (map.entries, map.max_entries)
}

fn backends(node: &Node) -> BTreeMap<Addr, u32> {
    let pin = node.config.pin_dir.join(format!("maps-v{}/BACKENDS", node.config.layout.number));
    let map = Map::HashMap(MapData::from_pin(pin).expect("the pinned map"));
    let map: HashMap<MapData, u32, Backend> = map.try_into().expect("backends");
    map.iter().map(|entry| entry.expect("an entry")).map(|(id, b)| (b.addr, id)).collect()
}

#[test]
fn larger_maps_take_what_was_refused_and_break_no_connection() {
    let mut node = Node::new();
    node.config.layout = sized(64);
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &node_port);
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    let mut stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");

    large(&node);
    let refusal = |node: &Node| node.dataplane().status().errors.into_iter().find(|e| e.contains("default/large"));
    eventually("the refusal is told", || refusal(&node).is_some_and(|e| e.contains("BACKENDS would need 101 entries and has 62")));
    assert_eq!((fill(&node, "BACKENDS"), fill(&node, "BACKEND_SLOTS").0), ((1, 64), 1), "nothing of it is there");
    let before = backends(&node);
    assert_eq!(before.len(), 1);

    for (layout, places) in [(sized(1024), Some(1024)), (Layout::default(), None), (sized(256), Some(256))] {
        node.stop(true);
        node.config.layout = layout;
        node.start();
        eventually("what was refused is served", || refusal(&node).is_none() && fill(&node, "BACKENDS").0 == 101);
        assert!(places.is_none_or(|places| fill(&node, "BACKENDS").1 == places));
        let now = backends(&node);
        assert!(now.len() == 101 && before.iter().all(|(addr, id)| now.get(addr) == Some(id)), "backends keep their numbers");
        assert!(ask_on(&mut stream).is_ok(), "the connection lives");
        assert!(ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && node.ask_from_outside(at(NODE_IP, 30080)).is_ok());
    }
}
