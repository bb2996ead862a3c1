//! An agent whose maps have another layout takes over from the one before, newer or older, under traffic.

use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::json;
use xebec_dataplane::Layout;
use xebec_tests::bench::dataplane::agent::next_layout;

use crate::connects::Connects;
use crate::node::{NODE_IP, Node, ask, ask_on, at, eventually, serve};

const CLUSTER_IP: &str = "10.96.0.10";
/// Some of each kind; the bench `restart` has a hundred, under many more connections.
const ROUNDS: u32 = 8;

/// One connection from outside that asks and is answered for as long as the file is there; ends with an error if it breaks.
pub struct FromOutside {
    child: Child,
    file: PathBuf,
}

impl FromOutside {
    pub fn start(node: &Node, ip: IpAddr, port: u16) -> FromOutside {
        let file = node.state_dir().join(format!("outside-asks-{port}"));
        std::fs::write(&file, "").expect("a file");
        let script = format!(
            "exec 3<>/dev/tcp/{ip}/{port} || exit 1; while [ -e {} ]; do printf x >&3 && read -t 5 line <&3 || exit 2; sleep 0.01; done",
            file.display()
        );
        FromOutside { child: node.spawn_outside(Command::new("bash").args(["-c", &script])), file }
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub fn end(mut self) -> bool {
        std::fs::remove_file(&self.file).expect("the file is there");
        self.child.wait().expect("a child").success()
    }
}

impl Drop for FromOutside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn map_dirs(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(&node.config.pin_dir).expect("the pins").flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with("maps-v")).collect();
    names.sort();
    names
}

#[test]
fn upgrades_rollbacks_and_kills_break_no_connection() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({"app": "web"}), json!([])));
    serve(&server.netns, "web", 8080);
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]});
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &node_port);
    node.policy(
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8080}]}]}),
    );
    eventually("the Service answers", || {
        ask(&client.netns, at(CLUSTER_IP, 80)).is_ok() && node.ask_from_outside(at(NODE_IP, 30080)).is_ok()
    });
    let mut established: Vec<TcpStream> = (0..8)
        .map(|_| {
            let stream = client.netns.run(|| TcpStream::connect(at(CLUSTER_IP, 80))).expect("the Service answers");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            stream
        })
        .collect();
    let mut outside = FromOutside::start(&node, NODE_IP.parse().expect("an address"), 30080);
    let connects = Connects::start(&client, at(CLUSTER_IP, 80));
    let layouts = [Layout::default(), next_layout()];
    for round in 0..ROUNDS {
        // Upgrade, rollback, and now and then a restart of the same version.
        node.stop(round % 2 == 0);
        if round % 3 != 2 {
            node.config.layout = layouts[usize::from(node.config.layout == layouts[0])].clone();
        }
        node.start();
        eventually("only the own maps are left", || map_dirs(&node) == [format!("maps-v{}", node.config.layout.number)]);
        connects.go_on(5);
        for (index, stream) in established.iter_mut().enumerate() {
            assert!(ask_on(stream).is_ok(), "connection {index} in round {round}");
        }
        assert!(outside.lives(), "the connection from outside in round {round}");
        assert!(node.ask_from_outside(at(NODE_IP, 30080)).is_ok(), "a new one from outside in round {round}");
    }
    connects.end_without_failure();
    assert!(outside.end(), "the connection from outside lived to its end");
    // The last agent still follows the API, and policies that come now meet old connections too.
    node.policy("web", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    eventually("new connections are denied", || ask(&client.netns, at(CLUSTER_IP, 80)).is_err());
    eventually("and old ones", || {
        established[0].set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        established[0].write_all(b"x").is_ok() && ask_on(&mut established[0]).is_err()
    });
}

#[test]
fn an_upgrade_without_the_api_leaves_the_programs_of_the_old_version_running() {
    let mut node = Node::new();
    node.start();
    let (client, server) = (node.pod("client", json!({}), json!([])), node.pod("web", json!({}), json!([])));
    serve(&server.netns, "web", 8080);
    node.service("web", CLUSTER_IP, 80, "TCP", 8080, &[&server], &json!({}));
    eventually("the Service answers", || ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    let before = Layout::default().number;
    node.stop(true);
    node.api.set_away(true);
    node.config.layout = next_layout();
    node.start_unready();
    for _ in 0..20 {
        assert!(ask(&client.netns, at(CLUSTER_IP, 80)).is_ok(), "the old programs go on");
    }
    assert_eq!(map_dirs(&node), [format!("maps-v{before}"), format!("maps-v{}", before + 1)], "both have their maps");
    // Killed before it took over: the old version comes back and finds everything as it left it.
    node.stop(true);
    node.config.layout = Layout::default();
    node.api.set_away(false);
    node.start();
    assert!(ask(&client.netns, at(CLUSTER_IP, 80)).is_ok());
    eventually("what was prepared is gone", || map_dirs(&node) == [format!("maps-v{before}")]);
}
