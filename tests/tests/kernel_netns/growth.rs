//! Maps of other sizes: they grow by themselves while connections live and begin; where they may not, a Service that does not fit is
//! refused whole and told of, a map of another size takes it after a restart, and neither growth nor the way back breaks a connection.

use std::collections::BTreeMap;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use xebec_dataplane::Layout;
use xebec_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, Endpoint, Flow, FlowKey, Given, Nat, Port, SockFrontend, SockKey, Tuple, direction,
};

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

/// One in which the oldest entry makes room.
fn lru<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> HashMap<MapData, K, V> {
    Map::LruHashMap(MapData::from_pin(pin(node, name)).expect("the pinned map")).try_into().expect("a hash map")
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

/// New flows of a pod: datagrams from one socket to these ports of another pod.
fn spray(socket: &UdpSocket, to: &Pod, ports: std::ops::Range<u16>) {
    for port in ports {
        // Nobody listens there. What is refused shows in the counters.
        let _ = socket.send_to(b"x", at(to.ip, port));
    }
}

fn dropped(node: &Node, reason: &str) -> u64 {
    node.dataplane().status().drops.get(reason).copied().unwrap_or(0)
}

#[test]
fn a_burst_of_flows_finds_larger_maps_before_the_next_sweep() {
    const PLACES: u16 = 8192;
    let mut node = Node::new();
    node.config.first_entries = first(&[("FLOWS", PLACES.into())]);
    node.start();
    let (client, server) = isolated(&node);
    let mut outside = FromOutside::start(&node, NODE_IP.parse().expect("an address"), 30080);
    let mut stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let socket = client.netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");

    // The map was swept as the agent started, and is not before half a minute has passed. More than three quarters of it, but not
    // all: each datagram is a flow of both pods.
    spray(&socket, &server, 10_000..10_000 + PLACES * 7 / 16);
    eventually("it has grown", || fill(&node, "FLOWS").1 >= u64::from(2 * PLACES));
    assert_eq!(dropped(&node, "flow_table_full"), 0, "before one was refused");
    assert!(fill(&node, "FLOWS").0 >= u64::from(PLACES) * 3 / 4, "real counts");

    // Far more at once than there is room for: it grows as often as it must, and those that live go on.
    let mut round = 0;
    eventually("all have room", || {
        round += 1;
        spray(&socket, &server, 20_000..60_000);
        let before = dropped(&node, "flow_table_full");
        spray(&socket, &server, 20_000..60_000);
        dropped(&node, "flow_table_full") == before
    });
    assert!(fill(&node, "FLOWS").1 >= 80_000, "after {round} rounds");
    assert!(ask_on(&mut stream).is_ok(), "the connection lives");
    assert!(outside.lives() && outside.end(), "so does the one from outside");
    assert!(node.dataplane().status().errors.is_empty());
}

#[test]
fn what_sockets_asked_for_goes_with_them_and_moves_to_larger_maps_till_then() {
    const PLACES: u32 = 4096;
    let mut node = Node::new();
    node.config.first_entries = first(&[("SOCK_REVERSE", PLACES), ("GIVEN", PLACES), ("AFFINITY", PLACES), ("COUNTED", PLACES)]);
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({"sessionAffinity": "ClientIP"}));
    node.service("dns", "10.96.0.11", 53, "UDP", 8080, &[&server], &json!({}));
    let datagram = |to| {
        client.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            socket.send_to(b"x", to).and_then(|_| socket.recv_from(&mut [0; 64])).map(|(_, from)| (socket, from))
        })
    };
    let dns = at("10.96.0.11", 53);
    eventually("both answer", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && datagram(dns).is_ok());

    let (socks, given) =
        (|node: &Node| lru::<SockKey, SockFrontend>(node, "SOCK_REVERSE"), |node: &Node| lru::<SockKey, Given>(node, "GIVEN"));
    let counts = |node: &Node| (socks(node).keys().flatten().count(), given(node).keys().flatten().count());
    // What was closed above has left nothing.
    eventually("nothing is left", || counts(&node) == (0, 0));
    let stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    let connected = client.netns.run(|| UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect(dns).map(|()| s))).expect("a socket");
    let (sender, from) = datagram(dns).expect("an answer");
    assert_eq!(from, dns, "the Service's address");
    assert_eq!(counts(&node), (4, 1), "two that are connected, one that is not and where it has sent to, one that was given a backend");

    // Of other sockets and clients enough to crowd the maps, and clients whose time is over.
    let most = PLACES * 4 / 5;
    let backend = Addr::v4([198, 51, 100, 8]);
    let sock = |n: u32| SockKey::new((1 << 40) + u64::from(n), backend, Port::new(7));
    let client_of = |n: u32| AffinityKey::address(Addr::v4([198, 51, (n >> 8) as u8, n as u8]), 1_000_000);
    {
        let (mut socks, mut given) = (socks(&node), given(&node));
        let mut affinity = lru::<AffinityKey, Affinity>(&node, "AFFINITY");
        let mut counted = hash::<u64, u32>(&node, "COUNTED");
        for n in 0..most {
            socks.insert(sock(n), SockFrontend::new(backend, Port::new(n as u16), 9), 0).expect("room");
            given.insert(sock(n), Given::new(backend, Port::new(n as u16), 9), 0).expect("room");
            affinity.insert(client_of(n), Affinity::new(9, if n % 8 == 0 { 1 } else { 1 << 62 }), 0).expect("room");
            counted.insert(sock(n).cookie, 9, 0).expect("room");
        }
    }
    node.stop(true);
    node.start();
    eventually("maps have grown", || ["SOCK_REVERSE", "GIVEN", "COUNTED"].iter().all(|name| fill(&node, name).1 >= u64::from(2 * PLACES)));
    assert_eq!(fill(&node, "AFFINITY"), (u64::from(most - most.div_ceil(8)) + 1, PLACES.into()), "clients whose time is over are gone");
    assert_eq!((fill(&node, "SOCK_REVERSE").0, fill(&node, "COUNTED").0), (u64::from(most) + 4, most.into()), "real counts");
    let (now, given_now) = (socks(&node), given(&node));
    let is_there = |n: &u32| now.get(&sock(*n), 0).is_ok_and(|f| f.port == Port::new(*n as u16)) && given_now.get(&sock(*n), 0).is_ok();
    assert_eq!((0..most).filter(|n| !is_there(n)).count(), 0, "all have moved");
    assert_eq!(client.netns.run(|| stream.peer_addr()).expect("a peer"), at(CLUSTER_IP, 80));
    assert_eq!(client.netns.run(|| connected.peer_addr()).expect("a peer"), dns);

    drop((stream, connected, sender));
    let others = (most as usize, most as usize);
    eventually("those that are closed are gone", || counts(&node) == others);
}

#[test]
fn limits_of_pods_and_counts_of_services_have_room_for_all() {
    let mut node = Node::new();
    node.config.first_entries = first(&[("LIMITS", 2), ("SERVICE_COUNTS", 2)]);
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    web(&node, &server);
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    let served = |name: &str| node.dataplane().status().services.iter().find(|s| s.name == name).map_or(0, |s| s.flows);
    let before = served("web");
    assert!(before > 0);
    for number in 20..24 {
        node.service(&format!("more-{number}"), &format!("10.96.0.{number}"), 80, "TCP", 8080, &[&server], &json!({}));
        eventually("it answers", || ask(&client.netns, at(format!("10.96.0.{number}"), 80)).is_ok());
    }
    assert!((20..24).all(|number| served(&format!("more-{number}")) > 0), "all are counted");
    assert_eq!(served("web"), before, "what was counted moves along");
    assert!(fill(&node, "SERVICE_COUNTS").1 > 2);

    for pod in [&client, &server] {
        crate::bandwidth::annotate(&node, pod, &json!({"kubernetes.io/egress-bandwidth": "1G", "kubernetes.io/ingress-bandwidth": "1G"}));
    }
    eventually("limits have room", || fill(&node, "LIMITS") == (4, 4));
    assert!(node.dataplane().status().errors.is_empty() && ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    crate::bandwidth::annotate(&node, &server, &json!({}));
    eventually("those that nobody asks for are gone", || fill(&node, "LIMITS").0 == 2);
}
