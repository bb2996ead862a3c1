//! What the agent tells of itself on its socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use xebec_dataplane::inspect;
use xebec_ebpf_abi::{Affinity, AffinityKey, Config, Flow, FlowKey, Nat, SockFrontend, SockKey, Tuple, map};

use crate::net::Netns;
use crate::node::{Node, Pod, ask, at, eventually, serve};

pub fn question(node: &Node, question: &str) -> Value {
    let mut stream = UnixStream::connect(inspect::path(&node.config.cni_socket)).expect("the agent listens");
    writeln!(stream, "{question}").expect("the question is sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn status_tells_devices_programs_maps_and_lag() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({"app": "web"}), json!([])));
    serve(&server.netns, "web", 8080);
    node.service("web", "10.96.0.10", 80, "TCP", 8080, &[&server], &json!({}));
    eventually("the Service answers", || ask(&client.netns, at("10.96.0.10", 80)).is_ok());

    let mode = std::fs::metadata(inspect::path(&node.config.cni_socket)).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "root's alone");
    let status = &question(&node, r#"{"ask":"status"}"#)["result"];
    assert_eq!((&status["ready"], &status["endpoints"]), (&json!(true), &json!(2)), "{status}");
    let device = status["devices"].as_array().expect("devices").iter().find(|d| d["name"] == "up0").expect("the uplink");
    assert_ne!(device["mode"], "none", "{device}");
    let programs = status["programs"].as_array().expect("programs");
    for name in xebec_ebpf_abi::prog::SOCKET.iter().chain(xebec_ebpf_abi::prog::TC) {
        let program = programs.iter().find(|p| p["name"] == *name).unwrap_or_else(|| panic!("{name} in {programs:?}"));
        let instructions = program["verifiedInstructions"].as_u64().expect("a number");
        assert!((1..=100_000).contains(&instructions), "{program}");
    }
    let frontends = status["maps"].as_array().expect("maps").iter().find(|m| m["name"] == "FRONTENDS").expect("the map");
    // The port, and the address for what is sent to none of its ports.
    assert_eq!(frontends["entries"], 2, "{frontends}");
    let sync = &status["sync"];
    assert!(sync["writes"].as_u64() > Some(0) && sync["lastSeconds"].as_f64() > Some(0.0), "{sync}");
    assert!(status["forwards"]["socket"].as_u64() > Some(0), "{status}");

    let nonsense = question(&node, "what?");
    assert!(nonsense["error"].as_str().is_some_and(|e| e.contains("question")), "{nonsense}");
}

/// Keys of the live tables that packets write.
fn tables(node: &Node) -> BTreeSet<String> {
    fn keys<K: aya::Pod + std::fmt::Debug, V: aya::Pod>(maps: &Path, name: &str) -> Vec<String> {
        let data = MapData::from_pin(maps.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let map: HashMap<MapData, K, V> = HashMap::try_from(Map::LruHashMap(data)).expect("a table of these types");
        map.keys().flatten().map(|key| format!("{name} {key:?}")).collect()
    }
    let maps = node.config.pin_dir.join(format!("maps-v{}", Config::LAYOUT));
    let all = [
        keys::<FlowKey, Flow>(&maps, map::FLOWS),
        keys::<Tuple, Nat>(&maps, map::NAT),
        keys::<AffinityKey, Affinity>(&maps, map::AFFINITY),
        keys::<SockKey, SockFrontend>(&maps, map::SOCK_REVERSE),
    ];
    all.into_iter().flatten().collect()
}

pub fn why(node: &Node, source: &str, destination: &str, port: u16) -> Value {
    let asked = json!({"ask": "why", "source": source, "destination": destination, "protocol": "tcp", "port": port});
    let answer = question(node, &asked.to_string());
    assert!(answer["error"].is_null(), "{asked}: {answer}");
    answer["result"].clone()
}

/// What happened to a connection, in the words of `why`.
fn observed(answer: &std::io::Result<(String, String)>) -> String {
    match answer {
        Ok((name, _)) => format!("delivered to {name}"),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => "refused".into(),
        Err(e) if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => "dropped".into(),
        Err(e) => format!("{e}"),
    }
}

fn foretold(why: &Value, pods: &[&Pod]) -> String {
    match why["fate"]["verdict"].as_str().expect("a verdict") {
        "delivered" => {
            let end = why["arrivesAs"].as_str().and_then(|t| t.rsplit(' ').next()).and_then(|e| e.parse::<SocketAddr>().ok());
            let ip = end.unwrap_or_else(|| panic!("an end in {why}")).ip();
            let pod = pods.iter().find(|p| p.ip == ip).unwrap_or_else(|| panic!("a pod at {ip}"));
            format!("delivered to {}", pod.name)
        }
        other => other.into(),
    }
}

#[test]
fn why_foretells_the_fate_of_real_packets_and_changes_nothing() {
    const PORTS: [u16; 2] = [8080, 9090];
    let mut node = Node::new();
    node.start();
    let names = ["a", "b", "c", "d"];
    let pods: Vec<Pod> = names.iter().map(|name| node.pod(name, json!({"app": name}), json!([]))).collect();
    for pod in &pods {
        PORTS.iter().for_each(|port| serve(&pod.netns, &pod.name, *port));
    }
    for (i, pod) in pods.iter().enumerate() {
        node.service(&format!("svc-{}", pod.name), &format!("10.96.0.1{i}"), 80, "TCP", PORTS[i % 2], &[pod], &json!({}));
    }
    node.service("empty", "10.96.0.20", 80, "TCP", 8080, &[], &json!({}));
    let select = |name: &str| json!({"matchLabels": {"app": name}});
    node.policy(
        "b",
        json!({"podSelector": select("b"), "policyTypes": ["Ingress"], "ingress": [
            {"from": [{"podSelector": select("c")}], "ports": [{"port": 8080}]},
            {"from": [{"podSelector": select("a")}], "ports": [{"port": 9090}]},
        ]}),
    );
    node.policy("c", json!({"podSelector": select("c"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": select("b")}]}]}));
    node.policy("d", json!({"podSelector": select("d"), "policyTypes": ["Ingress"]}));
    let [a, d] = [&pods[0], &pods[3]];
    eventually("Services and policies are in force", || {
        let refused = observed(&ask(&a.netns, at("10.96.0.20", 80))) == "refused";
        refused && ask(&a.netns, at("10.96.0.11", 80)).is_ok() && observed(&ask(&a.netns, at(d.ip, 8080))) == "dropped"
    });

    let sources: Vec<(String, &Netns)> =
        pods.iter().map(|p| (format!("default/{}", p.name), &p.netns)).chain([("node".to_owned(), &node.netns)]).collect();
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let mut roll = |sides: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice % sides as u64) as usize
    };
    let questions: Vec<(usize, SocketAddr)> = (0..200)
        .map(|_| {
            let source = roll(sources.len());
            let to = match roll(9) {
                n @ 0..=3 => at(pods[n].ip, PORTS[roll(2)]),
                n @ 4..=7 => at(format!("10.96.0.1{}", n - 4), 80),
                _ => at("10.96.0.20", 80),
            };
            (source, to)
        })
        .collect();

    let before = tables(&node);
    let answers: Vec<Value> = questions.iter().map(|(from, to)| why(&node, &sources[*from].0, &to.ip().to_string(), to.port())).collect();
    assert_eq!(tables(&node), before, "asking leaves no flow, translation, affinity or socket behind");

    let all: Vec<&Pod> = pods.iter().collect();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for (questions, answers) in questions.chunks(20).zip(answers.chunks(20)) {
        let real: Vec<String> = std::thread::scope(|scope| {
            let asked = questions.iter().map(|(from, to)| {
                let netns = sources[*from].1;
                scope.spawn(move || observed(&ask(netns, *to)))
            });
            let asked: Vec<_> = asked.collect();
            asked.into_iter().map(|a| a.join().expect("a connection")).collect()
        });
        for (((from, to), why), real) in questions.iter().zip(answers).zip(real) {
            assert_eq!(foretold(why, &all), real, "{} to {to}: {why:#}", sources[*from].0);
            *seen.entry(real.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    assert!(["delivered", "dropped", "refused"].iter().all(|fate| seen.contains_key(*fate)), "every fate is among them: {seen:?}");
    names_what_decided(&node);
}

fn names_what_decided(node: &Node) {
    let allowed = why(node, "pod/default/a", "svc/default/svc-b", 80);
    assert_eq!(
        (&allowed["service"]["service"], &allowed["backend"]["endpointSlice"]),
        (&json!("default/svc-b"), &json!("default/svc-b-1"))
    );
    let versions = [&allowed["service"]["resourceVersion"], &allowed["backend"]["resourceVersion"]];
    assert!(versions.iter().all(|v| v.as_str().is_some_and(|v| v.parse::<u64>().is_ok())), "{allowed}");
    let said = &allowed["policies"][0];
    assert_eq!((&said["pod"], &said["direction"], &said["rule"]), (&json!("default/b"), &json!("ingress"), &json!("spec.ingress[1]")));
    assert!(said["policies"][0].as_str().is_some_and(|p| p.starts_with("default/b (resourceVersion ")), "{said}");
    let denied = why(node, "default/a", "default/d", 8080);
    assert_eq!((&denied["fate"]["reason"], &denied["policies"][0]["allowed"]), (&json!("policy_ingress"), &json!(false)), "{denied}");
    let unknown = question(node, r#"{"ask":"why","source":"default/nobody","destination":"node","protocol":"tcp","port":1}"#);
    assert!(unknown["error"].as_str().is_some_and(|e| e.contains("nobody")), "{unknown}");
}
