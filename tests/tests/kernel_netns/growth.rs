//! Maps of other sizes: they grow by themselves while connections live and begin; where they may not, a Service that does not fit is
//! refused whole and told of, a map of another size takes it after a restart, and neither growth nor the way back breaks a connection.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use xebec_dataplane::Layout;
use xebec_ebpf_abi::{Addr, Backend, Endpoint, Flow, FlowKey, Nat, Port, Tuple, direction};

use crate::connects::{Connects, Opened};
use crate::node::{NODE_IP, Node, Pod, ask, ask_on, at, eventually, serve};
use crate::upgrade::FromOutside;

const CLUSTER_IP: &str = "10.96.0.10";

fn sized(backends: u32) -> Layout {
    Layout::default().sized(BTreeMap::from([("BACKENDS".to_owned(), backends)])).expect("a possible size")
}

/// A Service with more endpoints than the small map takes.
fn large(node: &Node) {
    large_as(node, "large", 20);
}

fn large_as(node: &Node, name: &str, number: u8) {
    node.service(name, &format!("10.96.0.{number}"), 80, "TCP", 8080, &[], &json!({}));
    let endpoints: Vec<Value> = (1..=100).map(|n| json!({"addresses": [format!("192.0.{number}.{n}")]})).collect();
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }));
}

/// What maps are made with.
fn first(entries: &[(&str, u32)]) -> BTreeMap<String, u32> {
    entries.iter().map(|(name, entries)| ((*name).to_owned(), *entries)).collect()
}

/// How often a map has grown since the agent started.
fn growths(node: &Node, name: &str) -> u64 {
    node.dataplane().status().maps.iter().find(|m| m.name == name).expect("the map").growths
}

pub fn pin(node: &Node, name: &str) -> std::path::PathBuf {
    node.config.pin_dir.join(format!("maps-v{}/{name}", node.config.layout.number))
}

fn hash<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> HashMap<MapData, K, V> {
    Map::HashMap(MapData::from_pin(pin(node, name)).expect("the pinned map")).try_into().expect("a hash map")
}

/// A Service with one pod, also on a NodePort.
pub fn web(node: &Node, server: &Pod) {
    serve(&server.netns, "web", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[server], &node_port);
}

/// A client of that Service, and its server. What reaches the client must be an answer: a flow that is lost is one that the server
/// cannot continue.
pub fn isolated(node: &Node) -> (Pod, Pod) {
    let (client, server) = (node.pod("client", json!({"app": "client"}), json!([])), node.pod("web", json!({}), json!([])));
    node.policy("client", json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"]}));
    web(node, &server);
    eventually("the Service answers", || {
        ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && node.ask_from_outside(at(NODE_IP, 30080)).is_ok()
    });
    eventually("the client is isolated", || ask(&server.netns, at(client.ip, 1)).is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut));
    (client, server)
}

/// Entries and places of a map, as the status tells them.
fn fill(node: &Node, name: &str) -> (u64, u64) {
    let status = node.dataplane().status();
    let map = status.maps.iter().find(|m| m.name == name).expect("the map");
    (map.entries, map.max_entries)
}

pub fn backends(node: &Node) -> BTreeMap<Addr, u32> {
    let map: HashMap<MapData, u32, Backend> = hash(node, "BACKENDS");
    map.iter().map(|entry| entry.expect("an entry")).map(|(id, b)| (b.addr, id)).collect()
}

#[test]
fn larger_maps_take_what_was_refused_and_break_no_connection() {
    let mut node = Node::new();
    node.config.layout = sized(64);
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    web(&node, &server);
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

#[test]
fn maps_grow_by_themselves_and_break_no_connection() {
    let mut node = Node::new();
    node.config.first_entries = first(&[("BACKENDS", 64), ("BACKEND_SLOTS", 64), ("CONNECTIONS", 64), ("IPCACHE", 8)]);
    node.config.max_map_entries = 4096;
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    web(&node, &server);
    eventually("the Service answers", || {
        ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && node.ask_from_outside(at(NODE_IP, 30080)).is_ok()
    });
    let mut stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut outside = FromOutside::start(&node, NODE_IP.parse().expect("an address"), 30080);
    let connects = Connects::start(&client, at(CLUSTER_IP, 80));
    connects.go_on(5);
    let before = backends(&node);

    large(&node);
    eventually("it is served", || fill(&node, "BACKENDS") == (101, 128) && fill(&node, "BACKEND_SLOTS") == (101, 128));
    assert_eq!((growths(&node, "BACKENDS"), growths(&node, "FRONTENDS")), (1, 0), "only what had to");
    assert!(before.iter().all(|(addr, id)| backends(&node).get(addr) == Some(id)), "backends keep their numbers");
    // Pods' addresses need entries too.
    let _pods: Vec<Pod> = (0..8).map(|n| node.pod(&format!("more-{n}"), json!({}), json!([]))).collect();
    eventually("identities fit", || fill(&node, "IPCACHE").1 > 8 && node.dataplane().status().errors.is_empty());
    connects.go_on(5);
    assert!(ask_on(&mut stream).is_ok(), "the connection lives");
    assert!(outside.lives(), "the connection from outside lives");

    // What is known to come is made room for at once, not step by step; the sizes outlive the agent.
    node.stop(true);
    for number in 21..41 {
        large_as(&node, &format!("large-{number}"), number);
    }
    node.start();
    eventually("all are served", || fill(&node, "BACKENDS") == (2101, 4096));
    assert_eq!(growths(&node, "BACKENDS"), 1);
    node.stop(true);
    node.start();
    assert_eq!((fill(&node, "BACKENDS").1, growths(&node, "BACKENDS")), (4096, 0), "sizes outlive the agent");
    // A device that comes now gets the programs that run now.
    let late = node.pod("late", json!({}), json!([]));
    assert!(ask(&late.netns, at(CLUSTER_IP, 80)).is_ok());

    // As large as they may be: the next is refused.
    for number in 41..63 {
        large_as(&node, &format!("large-{number}"), number);
    }
    let refused = |node: &Node| node.dataplane().status().errors.iter().filter(|e| e.contains("does not fit")).count();
    eventually("who does not fit is told", || refused(&node) > 0);
    assert!(fill(&node, "BACKENDS").0 <= 4096 && fill(&node, "BACKENDS").1 == 4096);
    connects.go_on(5);
    assert!(ask_on(&mut stream).is_ok() && outside.lives());
    connects.end_without_failure();
    assert!(outside.end());
}

#[test]
fn flows_and_translations_move_to_larger_maps_while_they_begin_and_none_is_lost() {
    const PLACES: u32 = 16384;
    const LATE: u64 = 1 << 62;
    let mut node = Node::new();
    node.config.first_entries = first(&[("FLOWS", PLACES), ("NAT", PLACES)]);
    node.start();
    let (client, server) = isolated(&node);

    // Live ones enough to crowd the maps, of the server's.
    let endpoints: HashMap<MapData, Addr, Endpoint> = hash(&node, "ENDPOINTS");
    let endpoint = endpoints.iter().flatten().map(|(_, e)| e.id).max().expect("an endpoint");
    let tuple =
        |n: u32| Tuple::new(Addr::v4([198, 51, 100, 7]), Port::new((n & 0xffff) as u16), Addr::v4([198, 51, 100, 8]), Port::new(7), 17);
    let remote = Addr::v4([198, 51, 100, 8]);
    let key = |n: u32| FlowKey::new(endpoint, Port::new((n & 0xffff) as u16), remote, Port::new(7), 17);
    let flow = |n: u32| (key(n), Flow::new(direction::EGRESS, 0, n, LATE));
    let nat = |n: u32| (tuple(n), Nat::new(tuple(n).reversed(), 0, n, 0, LATE));
    let (mut flows, mut nats) = (hash::<FlowKey, Flow>(&node, "FLOWS"), hash::<Tuple, Nat>(&node, "NAT"));
    let most = PLACES * 3 / 4;
    for n in 0..most {
        let ((flow_key, flow), (nat_key, nat)) = (flow(n), nat(n));
        flows.insert(flow_key, flow, 0).expect("room");
        nats.insert(nat_key, nat, 0).expect("room");
    }
    drop((flows, nats));
    let mut outside = FromOutside::start(&node, NODE_IP.parse().expect("an address"), 30080);
    let mut opened = Opened::start(&client, &server, 9000);
    // The first sweep after a start finds them.
    node.stop(true);
    node.start();
    eventually("the maps have grown", || fill(&node, "FLOWS").1 == u64::from(2 * PLACES) && fill(&node, "NAT").1 == u64::from(2 * PLACES));
    opened.go_on(20);
    opened.stop();
    assert!(outside.lives(), "the connection from outside");
    assert!(outside.end(), "lived to its end");

    let (flows, nats) = (hash::<FlowKey, Flow>(&node, "FLOWS"), hash::<Tuple, Nat>(&node, "NAT"));
    let missing =
        (0..most).filter(|n| flows.get(&flow(*n).0, 0).ok() != Some(flow(*n).1) || nats.get(&nat(*n).0, 0).ok() != Some(nat(*n).1));
    assert_eq!(missing.count(), 0, "all that was there has moved");
    opened.assert_that_the_server_reaches_all();
    let begun = flows.keys().flatten().filter(|key| key.remote_port.get() == 9000).count();
    assert_eq!(begun, opened.count(), "the client's of every connection, whenever it began");
}

#[test]
fn an_agent_that_was_killed_while_a_map_grew_finishes_it() {
    let mut node = Node::new();
    node.config.first_entries = first(&[("FLOWS", 64)]);
    node.start();
    let (client, server) = (node.pod("client", json!({"app": "client"}), json!([])), node.pod("web", json!({}), json!([])));
    web(&node, &server);
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    let mut stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    node.stop(true);
    // As it is left: a larger map beside the other, with a flow that began on it.
    let dir = node.config.pin_dir.join(format!("growing-v{}", node.config.layout.number));
    std::fs::create_dir(&dir).expect("a directory");
    let larger = dir.join("FLOWS");
    let maps = pin(&node, "");
    let mut loader = aya::EbpfLoader::new();
    loader.default_map_pin_directory(&maps).map_pin_path("FLOWS", larger.clone()).map_max_entries("FLOWS", 256);
    drop(loader.load_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/prebuilt/xebec.bpf.o")).expect("the object"));
    let key = {
        let old: HashMap<MapData, FlowKey, Flow> = hash(&node, "FLOWS");
        let (key, _) = old.iter().flatten().next().expect("a flow");
        let mut new: HashMap<MapData, FlowKey, Flow> =
            Map::HashMap(MapData::from_pin(&larger).expect("the larger map")).try_into().expect("a hash map");
        let key = FlowKey::new(key.endpoint, Port::new(7), Addr::v4([198, 51, 100, 8]), Port::new(7), 17);
        new.insert(key, Flow::new(direction::EGRESS, 0, 0, 1 << 62), 0).expect("room");
        key
    };
    node.start();
    assert!(!dir.exists(), "nothing is left over");
    assert_eq!(fill(&node, "FLOWS").1, 256);
    let flows: HashMap<MapData, FlowKey, Flow> = hash(&node, "FLOWS");
    assert!(flows.get(&key, 0).is_ok(), "what was written to the larger map is there");
    assert!(ask_on(&mut stream).is_ok(), "the connection lives");
    assert!(ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
}
