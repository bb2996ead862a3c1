//! An agent and an object whose maps really are others: a value of a map of Services and one of the map of flows have a field more.
//! It takes over and gives back while connections live and begin.

use std::net::TcpStream;
use std::time::Duration;

use aya::maps::MapInfo;
use tokio_util::sync::CancellationToken;
use xebec_dataplane_next::{Config, Dataplane, Layout};
use xebec_ebpf_abi::{Backend, Flow};

use crate::connects::{Connects, Opened};
use crate::growth::{isolated, pin};
use crate::node::{DEADLINE, NODE_IP, Node, ask_on, at, eventually};
use crate::upgrade::{FromOutside, map_dirs};

const CLUSTER_IP: &str = "10.96.0.10";

/// The next version's agent on a node.
struct Next {
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<Result<(), xebec_dataplane_next::Error>>,
}

impl Next {
    fn start(node: &Node) -> Next {
        let now = &node.config;
        let mut config =
            Config::new(now.node_name.clone(), now.cgroup.clone(), now.pin_dir.clone(), now.state_dir.clone(), now.cni_socket.clone());
        config.node_ips.clone_from(&now.node_ips);
        config.cni_conf_dir.clone_from(&now.cni_conf_dir);
        config.cluster_cidrs.clone_from(&now.cluster_cidrs);
        let api = node.api.clone();
        let runtime =
            node.netns.run(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"));
        let start = runtime.spawn(async move { Dataplane::start(config, api.client()).await });
        let dataplane = runtime.block_on(start).expect("start does not panic").unwrap_or_else(|e| panic!("the next version starts: {e}"));
        let task = runtime.spawn(dataplane.clone().run(CancellationToken::new()));
        let ready = runtime.spawn(async move { tokio::time::timeout(DEADLINE, dataplane.ready()).await.is_ok() });
        assert!(runtime.block_on(ready).expect("ready does not panic"), "ready in time");
        Next { runtime, task }
    }

    /// As with SIGKILL.
    fn kill(self) {
        self.task.abort();
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

/// Bytes of the values of a map of a layout.
fn value_bytes(node: &Node, layout: u32, name: &str) -> usize {
    let pin = node.config.pin_dir.join(format!("maps-v{layout}/{name}"));
    MapInfo::from_pin(pin).expect("the pinned map").value_size() as usize
}

#[test]
fn a_version_with_longer_values_takes_over_and_gives_back_and_breaks_no_connection() {
    let mut node = Node::new();
    node.config.first_entries = [("FLOWS".to_owned(), 65536)].into();
    node.start();
    let (client, server) = isolated(&node);
    let mut stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut outside = FromOutside::start(&node, NODE_IP.parse().expect("an address"), 30080);
    let connects = Connects::start(&client, at(CLUSTER_IP, 80));
    let mut opened = Opened::start(&client, &server, 9000);
    let (this, next) = (node.config.layout.number, Layout::default().number);
    let (flow, backend) = (size_of::<Flow>(), size_of::<Backend>());
    let backends = crate::growth::backends(&node);
    for round in 0..3 {
        opened.go_on(5);
        node.stop(round % 2 == 0);
        let agent = Next::start(&node);
        eventually("only the next version's maps are left", || map_dirs(&node) == [format!("maps-v{next}")]);
        assert_eq!((value_bytes(&node, next, "FLOWS"), value_bytes(&node, next, "BACKENDS")), (flow + 8, backend + 4));
        let places = MapInfo::from_pin(node.config.pin_dir.join(format!("maps-v{next}/FLOWS"))).expect("the map").max_entries();
        assert_eq!(places, 65536, "as large as it was");
        opened.go_on(5);
        connects.go_on(5);
        assert!(ask_on(&mut stream).is_ok() && outside.lives(), "the upgrade in round {round}");
        opened.assert_that_the_server_reaches_all();
        agent.kill();
        node.start();
        eventually("only this version's maps are left", || map_dirs(&node) == [format!("maps-v{this}")]);
        assert_eq!((value_bytes(&node, this, "FLOWS"), value_bytes(&node, this, "BACKENDS")), (flow, backend));
        assert!(pin(&node, "FLOWS").exists());
        assert_eq!(crate::growth::backends(&node), backends, "backends keep their numbers");
        connects.go_on(5);
        assert!(ask_on(&mut stream).is_ok() && outside.lives(), "the rollback in round {round}");
        opened.assert_that_the_server_reaches_all();
    }
    opened.stop();
    opened.assert_that_the_server_reaches_all();
    connects.end_without_failure();
    assert!(outside.end(), "the connection from outside lived to its end");
}
