//! Nodes to measure on: the real agent, `xebec agent --dataplane-only`, in a namespace and a cgroup of its own, against an API in
//! memory.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use xebec_ebpf_abi::{Config, Frontend, FrontendKey, map};
use xebec_host::cgroup::Cgroup;

use super::place::{Place, enter};
use crate::{
    bench::processes,
    netns::{api::Api, net::Netns},
};

/// How long anything may take before the bench gives up.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// From now on mounts are seen by this process and its children only, so that nothing pinned outlives them. Call it while the
/// process has one thread.
pub fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace; run as root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("cannot make mounts private")
}

/// Polls until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !holds()? {
        ensure!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The API of one or more nodes.
pub struct Cluster {
    pub api: Api,
    xebec: PathBuf,
    runtime: Runtime,
}

impl Cluster {
    pub fn new(xebec: &Path) -> Result<Cluster> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let api = Api::new();
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}}}));
        Ok(Cluster { api, xebec: xebec.to_owned(), runtime })
    }

    /// Tells of a node of which no more than the API says is there.
    pub fn announce(&self, number: u8) {
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(number)}, "spec": {"podCIDRs": [pod_range(number)]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": node_ip(number).to_string()}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
    }

    /// Starts a node, whose uplink `up0` is there and has no address yet.
    pub fn node(&self, number: u8, netns: Netns) -> Result<Node> {
        self.announce(number);
        netns.ip(&format!("addr add {}/24 dev up0", node_ip(number)));
        let listener = netns.run(|| std::net::TcpListener::bind("127.0.0.1:0")).context("no port for the API")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let api = self.api.clone();
        self.runtime.spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => api.serve(listener).await,
                Err(error) => eprintln!("the API is not served: {error}"),
            }
        });
        Node::start(self, number, netns, address)
    }

    /// A Service with the ports of all loads, and its one endpoint.
    pub fn service(&self, name: &str, ip: Ipv4Addr, ports: &[u16], backend: Ipv4Addr, node: u8) {
        let port = |port: &u16| json!({"name": format!("p{port}"), "port": port, "targetPort": port, "protocol": "TCP"});
        let ports: Vec<Value> = ports.iter().map(port).collect();
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIP": ip.to_string(), "clusterIPs": [ip.to_string()], "ports": ports},
        }));
        let target = |port: &Value| json!({"name": port["name"], "port": port["targetPort"], "protocol": "TCP"});
        self.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [backend.to_string()], "conditions": {"ready": true}, "nodeName": node_name(node)}],
            "ports": ports.iter().map(target).collect::<Vec<Value>>(),
        }));
    }
}

/// The name of a node, from 1.
pub fn node_name(number: u8) -> String {
    format!("bench-{number}")
}

/// Its address on the segment that nodes share.
pub fn node_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// The range of its pods, of 2,046 addresses.
pub fn pod_range(number: u8) -> String {
    format!("10.244.{}.0/21", number * 8)
}

/// A node with its agent; dropping it takes all of it away.
pub struct Node {
    pub netns: Netns,
    pub number: u8,
    pub api: Api,
    agent: Agent,
}

impl Node {
    fn start(cluster: &Cluster, number: u8, netns: Netns, api: SocketAddr) -> Result<Node> {
        let mut agent = Agent::prepare(&cluster.xebec, number, api)?;
        agent.start(&netns)?;
        Ok(Node { netns, number, api: cluster.api.clone(), agent })
    }

    /// A pod with its network, once the agent has made that; and how long the call took that made it.
    pub fn pod(&self, name: &str, labels: &Value) -> Result<Place> {
        self.api.put(pod_object(name, labels, self.number, None));
        let netns = Netns::new();
        let begin = Instant::now();
        let result = loop {
            match self.cni("ADD", name, &netns) {
                Ok(result) => break result,
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.context(format!("no network for pod {name}"))),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let ip = address(&result)?;
        self.api.put(pod_object(name, labels, self.number, Some(ip)));
        Ok(Place { netns, ip, procs: vec![self.agent.socket_cgroup.clone()] })
    }

    /// One CNI call as `xebec-cni` sends it.
    pub fn cni(&self, command: &str, pod: &str, netns: &Netns) -> Result<Value> {
        let request = json!({
            "command": command, "containerId": format!("{pod}0123456789abcdef"), "netns": netns.path().display().to_string(), "ifname": "eth0", "path": "",
            "args": format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}"),
            "config": {"cniVersion": "1.0.0", "name": "xebec", "type": "xebec-cni"},
        });
        let mut stream = UnixStream::connect(self.agent.path("run/cni.sock")).context("the agent does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the agent's answer")?;
        match answer.get("error") {
            Some(error) => bail!("{error}"),
            None => Ok(answer["result"].clone()),
        }
    }

    /// How many frontends programs see.
    pub fn frontends(&self) -> Result<usize> {
        let pin = self.agent.path("bpf").join(format!("maps-v{}", Config::LAYOUT)).join(map::FRONTENDS);
        let frontends: HashMap<MapData, FrontendKey, Frontend> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
        Ok(frontends.keys().count())
    }
}

/// The address that an ADD gave.
pub fn address(result: &Value) -> Result<Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str().context("ADD without an address")?;
    text.trim_end_matches("/32").parse().with_context(|| format!("{text} is no address"))
}

/// A pod as the API has it.
pub fn pod_object(name: &str, labels: &Value, node: u8, ip: Option<Ipv4Addr>) -> Value {
    let ip = ip.map(|ip| ip.to_string());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels},
        "spec": {"nodeName": node_name(node), "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": ip.iter().map(|ip| json!({"ip": ip})).collect::<Vec<Value>>()},
    })
}

impl Drop for Node {
    fn drop(&mut self) {
        self.agent.end(&self.netns);
    }
}

/// The agent's process and its places.
struct Agent {
    xebec: PathBuf,
    number: u8,
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    /// Takes processes into the cgroup of the socket hooks.
    socket_cgroup: PathBuf,
    name: String,
    child: Option<Child>,
}

impl Agent {
    fn prepare(xebec: &Path, number: u8, api: SocketAddr) -> Result<Agent> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("/xebec-bench-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        let cgroup = Cgroup::new(&name)?;
        cgroup.create()?;
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{api}\"}}}}]\nusers: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        );
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).context("cannot write a kubeconfig")?;
        let socket_cgroup = processes::cgroup2_root()?.join(&name[1..]).join("cgroup.procs");
        Ok(Agent { xebec: xebec.to_owned(), number, dir, cgroup, socket_cgroup, name, child: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self, command: &mut Command, data_dir: &str) {
        command.args(["--dataplane-only", "--cgroup-parent", &self.name]).arg("--data-dir").arg(self.path(data_dir));
        command.arg("--run-dir").arg(self.path("run")).arg("--pin-dir").arg(self.path("bpf")).arg("--cni-conf-dir").arg(self.path("net.d"));
    }

    fn start(&mut self, netns: &Netns) -> Result<()> {
        let mut command = Command::new(&self.xebec);
        command.args(["agent", "--node-name", &node_name(self.number), "--node-ip", &node_ip(self.number).to_string()]);
        command.args(["--bind", "127.0.0.1:10249"]);
        self.places(&mut command, "data/agent");
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::null());
        enter(&mut command, netns, &self.cgroup.procs_files())?;
        self.child = Some(command.spawn().with_context(|| format!("cannot start {}", self.xebec.display()))?);
        Ok(())
    }

    fn end(&mut self, netns: &Netns) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut down = Command::new(&self.xebec);
        down.arg("down");
        self.places(&mut down, "data");
        down.arg("--cni-bin-dir").arg(self.path("bin"));
        match enter(&mut down, netns, &[]).and_then(|()| down.output().context("cannot be run")) {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("not everything could be removed: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("{}: {error:#}", self.xebec.display()),
        }
        if let Err(error) = self.cgroup.kill().and_then(|()| self.cgroup.remove()) {
            eprintln!("{error}");
        }
    }
}
