//! Nodes to measure on: the real agent, `xebec agent --dataplane-only`, in a namespace and a cgroup of its own, against an API in
//! memory.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
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

use super::{
    agent,
    place::{Place, enter, go_first},
};
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

/// The namespaces of two nodes with a wire between their uplinks.
pub fn wire() -> [Netns; 2] {
    let nets = [Netns::new(), Netns::new()];
    nets[0].join("up0", &nets[1], "up0");
    nets
}

/// What runs as a node's agent.
#[derive(Debug, Clone)]
pub enum Program {
    /// `xebec agent --dataplane-only`, with more arguments.
    Xebec(PathBuf, &'static [&'static str]),
    /// This program's [`super::agent`], which can play another version.
    Own,
}

/// The API of one or more nodes.
pub struct Cluster {
    pub api: Api,
    program: Program,
    runtime: Runtime,
}

impl Cluster {
    pub fn new(program: Program) -> Result<Cluster> {
        // Nobody's time is measured with this one's in it.
        let first = || go_first().unwrap_or_else(|error| eprintln!("the API has no precedence: {error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).on_thread_start(first).enable_all().build()?;
        let api = Api::new();
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}}}));
        Ok(Cluster { api, program, runtime })
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

    /// A Service with these ports (at every address of a node too, if it is given a port there), and its one endpoint.
    pub fn service(&self, name: &str, ip: Ipv4Addr, ports: &[Port], backend: Ipv4Addr, node: u8) {
        let port = |port: &Port| {
            let Port { protocol, port, node_port } = port;
            let mut object = json!({"name": format!("p{port}"), "port": port, "targetPort": port, "protocol": protocol});
            if let Some(node_port) = node_port {
                object["nodePort"] = json!(node_port);
            }
            object
        };
        let kind = if ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let ports: Vec<Value> = ports.iter().map(port).collect();
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": kind, "clusterIP": ip.to_string(), "clusterIPs": [ip.to_string()], "ports": ports},
        }));
        let target = |port: &Value| json!({"name": port["name"], "port": port["targetPort"], "protocol": port["protocol"]});
        self.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [backend.to_string()], "conditions": {"ready": true}, "nodeName": node_name(node)}],
            "ports": ports.iter().map(target).collect::<Vec<Value>>(),
        }));
    }

    pub fn policy(&self, name: &str, spec: &Value) {
        self.api.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }));
    }
}

/// A port of a Service, and of its endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    pub protocol: &'static str,
    pub port: u16,
    pub node_port: Option<u16>,
}

impl Port {
    pub fn tcp(port: u16) -> Port {
        Port { protocol: "TCP", port, node_port: None }
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
        let mut agent = Agent::prepare(cluster.program.clone(), number, api)?;
        agent.start(&netns, false)?;
        Ok(Node { netns, number, api: cluster.api.clone(), agent })
    }

    /// Ends the agent as SIGKILL does, and starts one of this version or of the next, whose maps differ. Returns when that has
    /// taken over.
    pub fn restart(&mut self, next: bool) -> Result<()> {
        self.agent.kill();
        self.agent.start(&self.netns, next)?;
        let pins = self.agent.path("bpf");
        let own = format!("maps-v{}", Config::LAYOUT + u32::from(next));
        let begin = Instant::now();
        loop {
            let names = std::fs::read_dir(&pins).context("the pins")?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            let maps: Vec<String> = names.filter(|name| name.starts_with("maps-v")).collect();
            if maps == [own.as_str()] && self.agent.is_ready()? {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "an agent with {own} did not take over: {maps:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A pod with its network, once the agent has made that.
    pub fn pod(&self, name: &str, labels: &Value) -> Result<Place> {
        Ok(self.timed_pod(name, labels)?.0)
    }

    /// The same, and how long the call took that made it.
    pub fn timed_pod(&self, name: &str, labels: &Value) -> Result<(Place, Duration)> {
        self.api.put(pod_object(name, labels, self.number, None));
        let netns = Netns::new();
        let begin = Instant::now();
        let (result, took) = loop {
            let call = Instant::now();
            match self.cni("ADD", name, &netns) {
                Ok(result) => break (result, call.elapsed()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.context(format!("no network for pod {name}"))),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let ip = address(&result)?;
        self.api.put(pod_object(name, labels, self.number, Some(ip)));
        Ok((Place { netns, ip, procs: vec![self.agent.socket_cgroup.clone()] }, took))
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

    /// Whether something is pinned: `links/NAME`, `maps-v3/NAME`.
    pub fn is_pinned(&self, name: &str) -> bool {
        self.agent.path("bpf").join(name).exists()
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
    program: Program,
    number: u8,
    api: SocketAddr,
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    /// Takes processes into the cgroup of the socket hooks.
    socket_cgroup: PathBuf,
    name: String,
    child: Option<Child>,
}

impl Agent {
    fn prepare(program: Program, number: u8, api: SocketAddr) -> Result<Agent> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("/xebec-bench-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        let cgroup = Cgroup::new(&name)?;
        cgroup.create()?;
        for dir in cgroup.dirs() {
            // What else the machine does is not measured: by the controller's old interface or its new one.
            for (file, most) in [("cpu.shares", "262144"), ("cpu.weight", "10000")] {
                let file = dir.join(file);
                if file.exists() {
                    std::fs::write(&file, most).with_context(|| format!("cannot set {}", file.display()))?;
                }
            }
        }
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{api}\"}}}}]\nusers: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        );
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).context("cannot write a kubeconfig")?;
        let socket_cgroup = processes::cgroup2_root()?.join(&name[1..]).join("cgroup.procs");
        Ok(Agent { program, number, api, dir, cgroup, socket_cgroup, name, child: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self, command: &mut Command, data_dir: &str) {
        command.args(["--dataplane-only", "--cgroup-parent", &self.name]).arg("--data-dir").arg(self.path(data_dir));
        command.arg("--run-dir").arg(self.path("run")).arg("--pin-dir").arg(self.path("bpf")).arg("--cni-conf-dir").arg(self.path("net.d"));
    }

    fn own(&self, next: bool) -> Result<agent::Args> {
        let cgroup = self.socket_cgroup.parent().context("a cgroup has a directory")?.to_owned();
        Ok(agent::Args { dir: self.dir.path().to_owned(), cgroup, number: self.number, api: self.api, next })
    }

    fn start(&mut self, netns: &Netns, next: bool) -> Result<()> {
        let mut command = match &self.program {
            Program::Xebec(xebec, more) => {
                let mut command = Command::new(xebec);
                command.args(["agent", "--node-name", &node_name(self.number), "--node-ip", &node_ip(self.number).to_string()]);
                command.args(["--bind", "127.0.0.1:10249"]).args(*more);
                self.places(&mut command, "data/agent");
                command.arg("--kubeconfig").arg(self.path("kubeconfig")).env("RUST_LOG", "error");
                command
            }
            Program::Own => self.own(next)?.command()?,
        };
        enter(command.stdin(Stdio::null()).stdout(Stdio::null()), netns, &self.cgroup.procs_files())?;
        self.child = Some(command.spawn().with_context(|| format!("cannot start {:?}", self.program))?);
        Ok(())
    }

    /// Whether it serves pods; an agent that has ended is an error.
    fn is_ready(&mut self) -> Result<bool> {
        if let Some(status) = self.child.as_mut().context("the agent was not started")?.try_wait()? {
            bail!("the agent ended with {status}");
        }
        Ok(UnixStream::connect(self.path("run/cni.sock")).is_ok())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn end(&mut self, netns: &Netns) {
        self.kill();
        let left = match &self.program {
            Program::Xebec(xebec, _) => {
                let mut down = Command::new(xebec);
                down.arg("down");
                self.places(&mut down, "data");
                down.arg("--cni-bin-dir").arg(self.path("bin"));
                match enter(&mut down, netns, &[]).and_then(|()| down.output().context("`xebec down` cannot be run")) {
                    Ok(output) if output.status.success() => Ok(()),
                    Ok(output) => Err(anyhow::anyhow!("{}", String::from_utf8_lossy(&output.stderr))),
                    Err(error) => Err(error),
                }
            }
            Program::Own => self.own(false).and_then(|args| netns.run(|| args.teardown())),
        };
        if let Err(error) = left {
            eprintln!("not everything could be removed: {error:#}");
        }
    }
}

/// Also where the node was never whole, as when its agent could not be started.
impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = self.cgroup.kill().and_then(|()| self.cgroup.remove()) {
            eprintln!("the cgroup {} could not be removed: {error}", self.name);
        }
    }
}
