//! What the agent tells of itself on its socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use xebec_dataplane::inspect;

use crate::node::{Node, ask, at, eventually, serve};

fn question(node: &Node, question: &str) -> Value {
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
    assert_eq!(frontends["entries"], 1, "{frontends}");
    let sync = &status["sync"];
    assert!(sync["writes"].as_u64() > Some(0) && sync["lastSeconds"].as_f64() > Some(0.0), "{sync}");
    assert!(status["forwards"]["socket"].as_u64() > Some(0), "{status}");

    let nonsense = question(&node, "what?");
    assert!(nonsense["error"].as_str().is_some_and(|e| e.contains("question")), "{nonsense}");
}
