//! A node: a namespace with an uplink to an outside namespace, a cgroup, the dataplane, and pods made through
//! its CNI socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use xebec_dataplane::{Config, Dataplane};

use crate::api::Api;
use crate::net::Netns;

/// What a test may take, with room for a slow machine; success ends the wait at once.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long a connect that must not succeed is waited for.
const REFUSED: Duration = Duration::from_millis(700);

pub const NODE_IP: &str = "192.0.2.1";
pub const OUTSIDE_IP: &str = "192.0.2.2";

/// One test at a time: the process has one place in the cgroup hierarchy.
static ONE: Mutex<()> = Mutex::new(());

pub struct Node {
    pub netns: Netns,
    pub outside: Netns,
    pub api: Api,
    pub config: Config,
    running: Option<Running>,
    dir: tempfile::TempDir,
    home: String,
    /// None: it is beside another one.
    _one: Option<MutexGuard<'static, ()>>,
}

struct Running {
    runtime: tokio::runtime::Runtime,
    dataplane: Arc<Dataplane>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), xebec_dataplane::Error>>,
}

pub struct Pod {
    pub netns: Netns,
    pub name: String,
    pub sandbox: String,
    pub ip: IpAddr,
    pub result: Value,
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts can be read");
    let mount = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f[2] == "cgroup2");
    PathBuf::from(mount.expect("cgroup2 is mounted")[1])
}

/// Where this process is in the cgroup2 hierarchy.
fn own_cgroup() -> String {
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups can be read");
    own.lines().find_map(|l| l.strip_prefix("0::")).expect("a cgroup2 line").to_owned()
}

fn move_to(cgroup: &str) {
    let procs = cgroup2().join(cgroup.trim_start_matches('/')).join("cgroup.procs");
    std::fs::write(&procs, std::process::id().to_string()).unwrap_or_else(|e| panic!("{}: {e}", procs.display()));
}

impl Node {
    /// Namespaces, cgroup, a Node object with a podCIDR; nothing runs yet.
    pub fn new() -> Node {
        let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (netns, outside) = (Netns::new(), Netns::new());
        netns.join("up0", &outside, "out0");
        netns.ip(&format!("addr add {NODE_IP}/24 dev up0"));
        netns.ip(&format!("route add default via {OUTSIDE_IP}"));
        outside.ip(&format!("addr add {OUTSIDE_IP}/24 dev out0"));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name = format!("xebec-netns-{}", std::process::id());
        let cgroup = cgroup2().join(&name);
        std::fs::create_dir_all(&cgroup).expect("a cgroup can be made");
        let home = own_cgroup();
        move_to(&name);
        let api = Api::new();
        api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.7.0/24"]}}));
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}}}));
        let mut config = Config::new("node-1", cgroup, dir.path().join("pins"), dir.path().join("state"), dir.path().join("cni.sock"));
        config.node_ips = vec![NODE_IP.parse().expect("an address")];
        config.cni_conf_dir = Some(dir.path().join("net.d"));
        config.cluster_cidrs = vec!["10.244.0.0/16".parse().expect("a range")];
        Node { netns, outside, api, config, running: None, dir, home, _one: Some(one) }
    }

    /// A second node, `node-2`, in a namespace without devices yet; it has the same API server.
    pub fn beside(&self, address: &str) -> Node {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cgroup = cgroup2().join(format!("xebec-netns-{}-2", std::process::id()));
        std::fs::create_dir_all(&cgroup).expect("a cgroup can be made");
        let mut config = Config::new("node-2", cgroup, dir.path().join("pins"), dir.path().join("state"), dir.path().join("cni.sock"));
        config.node_ips = vec![address.parse().expect("an address")];
        config.cni_conf_dir = Some(dir.path().join("net.d"));
        config.cluster_cidrs = self.config.cluster_cidrs.clone();
        let (outside, home) = (self.outside.clone(), own_cgroup());
        Node { netns: Netns::new(), outside, api: self.api.clone(), config, running: None, dir, home, _one: None }
    }

    /// Starts the dataplane in the node's namespace and waits until it is ready.
    pub fn start(&mut self) {
        self.start_unready();
        let running = self.running.as_ref().expect("just started");
        let waiting = running.dataplane.clone();
        let ready = running.runtime.spawn(async move { tokio::time::timeout(DEADLINE, waiting.ready()).await });
        let ready = running.runtime.block_on(ready).expect("ready does not panic");
        assert!(ready.is_ok(), "ready in time: {:?}", running.dataplane.status());
    }

    /// Starts it and waits for nothing.
    pub fn start_unready(&mut self) {
        let runtime = self.netns.run(|| {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).enable_all().build().expect("a runtime")
        });
        let (config, api) = (self.config.clone(), self.api.clone());
        let start = runtime.spawn(async move { Dataplane::start(config, api.client()).await });
        let dataplane = runtime.block_on(start).expect("start does not panic").unwrap_or_else(|e| panic!("the dataplane starts: {e}"));
        let cancel = CancellationToken::new();
        let task = runtime.spawn(dataplane.clone().run(cancel.clone()));
        self.running = Some(Running { runtime, dataplane, cancel, task });
    }

    pub fn dataplane(&self) -> &Arc<Dataplane> {
        &self.running.as_ref().expect("the dataplane runs").dataplane
    }

    /// Ends the agent. With `kill` it gets no chance to do anything, as with SIGKILL.
    pub fn stop(&mut self, kill: bool) {
        let Some(running) = self.running.take() else {
            return;
        };
        if kill {
            running.task.abort();
        } else {
            running.cancel.cancel();
            let _ = running.runtime.block_on(running.task);
        }
        drop(running.dataplane);
        running.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// One CNI call as `xebec-cni` sends it.
    pub fn cni(&self, command: &str, sandbox: &str, netns: &str, pod: &str) -> Result<Value, Value> {
        self.cni_with(command, sandbox, netns, pod, &json!({}))
    }

    /// The same with `more` in the configuration.
    pub fn cni_with(&self, command: &str, sandbox: &str, netns: &str, pod: &str, more: &Value) -> Result<Value, Value> {
        let mut request = json!({
            "command": command, "containerId": sandbox, "netns": netns, "ifname": "eth0", "path": "",
            "args": format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}"),
            "config": {"cniVersion": "1.0.0", "name": "xebec", "type": "xebec-cni"},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            request["config"][key] = value.clone();
        }
        let mut stream = UnixStream::connect(&self.config.cni_socket).expect("the agent listens");
        stream.set_read_timeout(Some(DEADLINE * 2)).expect("a timeout");
        writeln!(stream, "{request}").expect("the agent reads");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("the agent answers");
        let answer: Value = serde_json::from_str(&line).expect("the answer is JSON");
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Creates a pod in the API and its network.
    pub fn pod(&self, name: &str, labels: Value, ports: Value) -> Pod {
        self.pod_with(name, labels, ports, &json!({}))
    }

    /// The same with `more` in the configuration of ADD.
    pub fn pod_with(&self, name: &str, labels: Value, ports: Value, more: &Value) -> Pod {
        self.api.put(self.pod_object(name, &labels, &ports, None));
        let netns = Netns::new();
        let sandbox = format!("{name}0123456789abcdef");
        let result = self.cni_with("ADD", &sandbox, &netns.path().display().to_string(), name, more);
        let result = result.unwrap_or_else(|e| panic!("ADD of {name}: {e}"));
        let address = result["ips"][0]["address"].as_str().expect("an address");
        let ip = address.trim_end_matches("/32").parse().expect("an IPv4 address");
        self.api.put(self.pod_object(name, &labels, &ports, Some(ip)));
        Pod { netns, name: name.into(), sandbox, ip, result }
    }

    fn pod_object(&self, name: &str, labels: &Value, ports: &Value, ip: Option<IpAddr>) -> Value {
        let mut status = json!({"phase": "Running"});
        if let Some(ip) = ip {
            status["podIP"] = json!(ip.to_string());
            status["podIPs"] = json!([{"ip": ip.to_string()}]);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels},
            "spec": {"nodeName": self.config.node_name, "containers": [{"name": "c", "image": "i", "ports": ports}]},
            "status": status,
        })
    }

    pub fn delete_pod(&self, pod: &Pod) -> Result<Value, Value> {
        self.cni("DEL", &pod.sandbox, "", &pod.name)
    }

    /// A Service with these pods as ready endpoints; `extra` is merged into its spec.
    #[expect(clippy::too_many_arguments, reason = "a Service in one line is what the tests read best")]
    pub fn service(&self, name: &str, ip: &str, port: u16, protocol: &str, target: u16, pods: &[&Pod], extra: &Value) {
        let mut spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": port, "protocol": protocol, "targetPort": target}]});
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}));
        self.endpoints(name, protocol, target, pods);
    }

    /// The pods that serve a Service.
    pub fn endpoints(&self, name: &str, protocol: &str, target: u16, pods: &[&Pod]) {
        let endpoints: Vec<Value> =
            pods.iter().map(|p| json!({"addresses": [p.ip.to_string()], "conditions": {"ready": true}, "nodeName": "node-1"})).collect();
        self.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints, "ports": [{"name": "", "port": target, "protocol": protocol}],
        }));
    }

    pub fn policy(&self, name: &str, spec: Value) {
        self.api.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }));
    }

    pub fn cluster_policy(&self, name: &str, spec: Value) {
        self.api.put(json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec,
        }));
    }

    /// Asks from the outside namespace, by a process outside the node's cgroup: no socket hook sees it, as with
    /// another machine.
    pub fn ask_from_outside(&self, to: SocketAddr) -> std::io::Result<(String, String)> {
        let script = format!("exec 3<>/dev/tcp/{}/{} && printf x >&3 && read -t 1 line <&3 && echo \"$line\"", to.ip(), to.port());
        let mut command = Command::new("timeout");
        command.args(["2", "bash", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn_outside(&mut command).wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = || std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned());
        let (name, seen) = answer.trim().split_once(' ').ok_or_else(error)?;
        Ok((name.into(), seen.into()))
    }

    /// Starts a process in the outside namespace and outside the node's cgroup.
    pub fn spawn_outside(&self, command: &mut Command) -> Child {
        let procs = cgroup2().join(self.home.trim_start_matches('/')).join("cgroup.procs");
        // SAFETY: only a write to a file between fork and exec; the path was made before.
        unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
        self.outside.run(|| command.spawn()).expect("a process outside")
    }

    /// Runs with this process where it was before the test: sockets made meanwhile belong to no cgroup of the node.
    pub fn in_home_cgroup<T>(&self, f: impl FnOnce() -> T) -> T {
        move_to(&self.home);
        let result = f();
        move_to(&format!("xebec-netns-{}", std::process::id()));
        result
    }

    /// Where cgroup2 is mounted.
    pub fn cgroup_root(&self) -> PathBuf {
        cgroup2()
    }

    pub fn pin_dir_is_gone(&self) -> bool {
        !self.config.pin_dir.exists()
    }

    pub fn teardown(&self) -> Vec<String> {
        let config = self.config.clone();
        self.netns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(xebec_dataplane::teardown(&config)).iter().map(ToString::to_string).collect()
        })
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(running) = &self.running
        {
            eprintln!("the dataplane at the failure: {:#?}", running.dataplane.status());
        }
        self.stop(true);
        let left = self.teardown();
        move_to(&self.home);
        let removed = std::fs::remove_dir(&self.config.cgroup);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "teardown: {left:?}");
            removed.expect("the cgroup is empty");
        }
    }
}

/// Serves TCP and UDP on a port: answers each with the name and the client's address as it sees it.
pub fn serve(netns: &Netns, name: &str, port: u16) {
    let (tcp, udp) = netns.run(|| (TcpListener::bind(("::", port)), UdpSocket::bind(("::", port))));
    let (tcp, udp) = (tcp.expect("a TCP port"), udp.expect("a UDP port"));
    let named = name.to_owned();
    netns.spawn(move || {
        for stream in tcp.incoming().flatten() {
            let name = named.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let Ok(peer) = stream.peer_addr() else { return };
                let mut byte = [0];
                // One answer for each byte, for as long as the client asks.
                while stream.read_exact(&mut byte).is_ok() && writeln!(stream, "{name} {}", peer.ip().to_canonical()).is_ok() {}
            });
        }
    });
    let named = name.to_owned();
    netns.spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{named} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
}

/// Connects, asks once: the server's name and the address it sees.
pub fn ask(netns: &Netns, to: SocketAddr) -> std::io::Result<(String, String)> {
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, REFUSED)?;
        stream.set_read_timeout(Some(REFUSED))?;
        ask_on(&mut stream)
    })
}

pub fn ask_on(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    stream.write_all(b"x")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let (name, seen) = answer.trim().split_once(' ').ok_or_else(|| std::io::Error::other("no answer"))?;
    Ok((name.into(), seen.into()))
}

pub fn at(ip: impl ToString, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_string().parse().expect("an address"), port)
}

/// Polls until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
