//! A node's own link goes down and up again, with which the kernel forgets routes: connections that stood live on.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
};

use nix::sched::{CloneFlags, setns};
use xebec_tests::cluster::{Cluster, IMAGE, PATIENCE, until};

use crate::pods;

const NODE_PORT: u16 = 30191;

/// Sends back what it is sent, on node 2.
fn echo(cluster: &Cluster) {
    let node = &cluster.node(2).name;
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: echo, labels: {{app: echo}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: {IMAGE}, command: [busybox, nc, -ll, -p, '9000', -e, cat], readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec:
  type: NodePort
  selector: {{app: echo}}
  ports: [{{port: 90, targetPort: 9000, nodePort: {NODE_PORT}}}]
"
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/echo", "--timeout=120s"]);
}

/// A connection that must live on.
struct Connection {
    what: &'static str,
    stream: TcpStream,
}

impl Connection {
    /// From a process in a network namespace; none: from outside the nodes.
    fn open(what: &'static str, netns: Option<PathBuf>, to: SocketAddr) -> Connection {
        let connect = move || {
            if let Some(netns) = netns {
                setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            }
            let mut stream = None;
            until(&format!("{what} is connected"), || {
                stream = TcpStream::connect_timeout(&to, std::time::Duration::from_secs(3)).ok();
                stream.is_some()
            });
            stream.unwrap()
        };
        // Entering a namespace is the thread's, which ends here.
        let stream = std::thread::spawn(connect).join().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut connection = Connection { what, stream };
        connection.lives();
        connection
    }

    /// What is sent comes back, sooner or later.
    #[track_caller]
    fn lives(&mut self) {
        self.send();
        self.receive();
    }

    #[track_caller]
    fn send(&mut self) {
        self.stream.write_all(b"x").unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    #[track_caller]
    fn receive(&mut self) {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }
}

/// Down and up as a cable does it; what a network daemon would do after that is done too.
fn flap(cluster: &Cluster, number: u8) {
    let default = cluster.on_node(number, "ip", &["route", "show", "default"]);
    cluster.on_node(number, "ip", &["link", "set", "eth0", "down"]);
    cluster.on_node(number, "ip", &["link", "set", "eth0", "up"]);
    for line in default.lines() {
        let route: Vec<&str> = line.split_whitespace().filter(|word| *word != "linkdown").collect();
        cluster.on_node(number, "ip", &[&["route", "replace"], &route[..]].concat());
    }
}

#[test]
fn connections_outlive_a_link_that_flaps() {
    let cluster = Cluster::of_nodes("flap", 3);
    echo(&cluster);
    let vip: IpAddr = pods::get(&cluster, "service", "echo")["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let pod: IpAddr = pods::get(&cluster, "pod", "echo")["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let netns = |number: u8| Some(cluster.node(number).netns());
    let node_port = |number: u8| SocketAddr::new(cluster.node_ip(number), NODE_PORT);
    let open = || {
        vec![
            Connection::open("from outside through another node", None, node_port(1)),
            Connection::open("from outside to the pod's node", None, node_port(2)),
            Connection::open("from a node to the Service", netns(3), SocketAddr::new(vip, 90)),
            Connection::open("from a node to the pod", netns(1), SocketAddr::new(pod, 9000)),
        ]
    };
    let mut connections = open();
    let routes = |number: u8| {
        let text = cluster.on_node(number, "ip", &["route", "show", "proto", "120"]);
        text.lines().map(|line| line.replace("linkdown", "").trim().to_owned()).collect::<Vec<_>>()
    };
    // The pod's node, then the one that translates.
    for number in [2, 1] {
        let before = routes(number);
        assert_eq!(before.len(), 2, "one to each other node's pods: {before:?}");
        for _ in 0..5 {
            flap(&cluster, number);
            connections.iter_mut().for_each(Connection::send);
        }
        connections.iter_mut().for_each(|connection| (0..5).for_each(|_| connection.receive()));
        until("the routes are back", || routes(number) == before);
        connections.iter_mut().for_each(Connection::lives);
    }
    // Down for a while: routes and programs are put right without news of the link's end.
    cluster.on_node(2, "ip", &["link", "set", "eth0", "down"]);
    connections.iter_mut().for_each(Connection::send);
    std::thread::sleep(std::time::Duration::from_secs(3));
    flap(&cluster, 2);
    connections.iter_mut().for_each(Connection::receive);
    connections.iter_mut().for_each(Connection::lives);
    open().iter_mut().for_each(Connection::lives);
    for node in &cluster.up.nodes {
        cluster.kubectl(&["wait", &format!("node/{}", node.name), "--for=condition=Ready", "--timeout=120s"]);
    }
}
