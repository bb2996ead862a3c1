//! The programs at real devices: pods, a node and a machine outside, each a network namespace, with
//! traffic of the kernel's own stack between them. What made-up packets cannot show is here: offloaded
//! checksums, segments larger than the wire takes, redirection.

use crate::fixture::Dataplane;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use aya::{TestRunOptions, TestRunResult};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropReason, Endpoint, Frontend, FrontendKey, NodeAddr, Port, SlotKey, Uplink, map, prog, proto,
};

/// A network namespace of the test's own; gone with its last user.
pub struct Space(pub File);

impl Space {
    pub fn new() -> Space {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its file")
        });
        let space = Space(file.join().expect("the namespace"));
        space.ip("link set lo up");
        space
    }

    /// Starts `f` on a thread in the namespace.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = self.0.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
            f()
        })
    }

    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(f).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// What a program makes of a packet where the routes are the namespace's: its verdict and the packet. `context`: as the
    /// program's type has it. `run` runs it.
    pub fn test_run(
        &self,
        packet: &[u8],
        context: &[u8],
        run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> + Send,
    ) -> (i32, Vec<u8>) {
        let file = self.0.try_clone().expect("a descriptor");
        let mut bytes = vec![0; packet.len() + 256];
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
                run(TestRunOptions {
                    data_in: Some(packet),
                    data_out: Some(&mut bytes),
                    ctx_in: Some(context),
                    ..TestRunOptions::default()
                })
            });
            thread.join().expect("the thread ran").expect("the program is run")
        });
        bytes.truncate(result.data_size_out as usize);
        (result.return_value as i32, bytes)
    }

    /// `ip ARGS` in the namespace.
    pub fn ip(&self, args: &str) -> String {
        let args: Vec<String> = args.split_whitespace().map(String::from).collect();
        self.run(move || {
            let out = Command::new("ip").args(&args).output().expect("ip runs");
            assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    }

    pub fn sysctl(&self, path: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{path}"), value.to_owned());
        self.run(move || std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn mac(&self, device: &'static str) -> [u8; 6] {
        let text = self.ip(&format!("-br link show dev {device}"));
        let mac = text.split_whitespace().nth(2).expect("a MAC");
        let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).expect("a byte")).collect();
        bytes.try_into().expect("six bytes")
    }

    pub fn ifindex(&self, device: &'static str) -> u32 {
        let name = std::ffi::CString::new(device).expect("a name");
        // SAFETY: the name is a C string that lives through the call.
        self.run(move || unsafe { libc::if_nametoindex(name.as_ptr()) })
    }
}

/// Addresses of one family.
struct Net {
    node: IpAddr,
    outside: IpAddr,
    /// A second address outside: the backend on another node.
    remote: IpAddr,
    pods: [IpAddr; 2],
    vip: IpAddr,
    gateway: &'static str,
    full: u8,
    wire: u8,
}

fn nets() -> [Net; 2] {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    [
        Net {
            node: ip("192.0.2.1"),
            outside: ip("192.0.2.2"),
            remote: ip("10.244.1.7"),
            pods: [ip("10.244.0.5"), ip("10.244.0.6")],
            vip: ip("10.96.0.10"),
            gateway: "169.254.1.1",
            full: 32,
            wire: 24,
        },
        Net {
            node: ip("2001:db8:2::1"),
            outside: ip("2001:db8:2::2"),
            remote: ip("fd00:244:1::7"),
            pods: [ip("fd00:244::5"), ip("fd00:244::6")],
            vip: ip("fd00:96::10"),
            gateway: "fe80::1",
            full: 128,
            wire: 64,
        },
    ]
}

const HOST_SIDE: [&str; 2] = ["podA", "podB"];

struct World {
    net: Net,
    node: Space,
    outside: Space,
    pods: [Space; 2],
    dp: Dataplane,
}

/// The address of NodePorts of a family.
fn any_of(family: IpAddr) -> Addr {
    if family.is_ipv4() { Addr::ANY_V4 } else { Addr::ANY }
}

impl World {
    /// `flags`: of both endpoints.
    fn new(net: Net, flags: u32) -> World {
        let (node, outside) = (Space::new(), Space::new());
        let pods = [Space::new(), Space::new()];
        for family in ["ipv4", "ipv6"] {
            for scope in ["all", "default"] {
                node.sysctl(&format!("{family}/conf/{scope}/forwarding"), "1");
            }
        }
        for scope in ["all", "default"] {
            node.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
            node.sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0");
        }
        let fresh = if net.node.is_ipv6() { "nodad" } else { "" };
        node.ip(&format!("link add uplink type veth peer name eth0 netns {}", outside.path()));
        node.ip(&format!("addr add {}/{} dev uplink {fresh}", net.node, net.wire));
        node.ip("link set uplink up");
        outside.ip(&format!("addr add {}/{} dev eth0 {fresh}", net.outside, net.wire));
        outside.ip("link set eth0 up");
        outside.ip(&format!("addr add {}/{} dev eth0 {fresh}", net.remote, net.full));
        node.ip(&format!("route add {} via {}", net.remote, net.outside));
        for (i, pod) in pods.iter().enumerate() {
            let (host, addr) = (HOST_SIDE[i], net.pods[i]);
            node.ip(&format!("link add {host} type veth peer name eth0 netns {}", pod.path()));
            node.ip(&format!("link set {host} up"));
            pod.ip(&format!("addr add {addr}/{} dev eth0 {fresh}", net.full));
            pod.ip("link set eth0 up");
            let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
            let gateway = net.gateway;
            pod.ip(&format!("neigh add {gateway} lladdr {} dev eth0 nud permanent", text(node.mac(host))));
            pod.ip(&format!("route add default via {gateway} dev eth0 onlink"));
            node.ip(&format!("route add {addr}/{} dev {host}", net.full));
            node.ip(&format!("neigh add {addr} lladdr {} dev {host} nud permanent", text(pod.mac("eth0"))));
        }
        let mut world = World { dp: Dataplane::load(), net, node, outside, pods };
        world.fill(flags);
        world.attach();
        world
    }

    fn fill(&mut self, flags: u32) {
        let dp = &mut self.dp;
        let (nat_port_min, nat_port_max) = (Config::NAT_PORT_MIN, Config::NAT_PORT_MAX);
        // Who goes straight in goes straight out.
        let straight = if flags & Endpoint::DIRECT != 0 { Config::PAST_STACK } else { 0 };
        dp.configure(Config { node_netns_cookie: 1, nat_port_min, nat_port_max, flags: straight });
        let own = Addr::from(self.net.node);
        dp.put(map::NODE_ADDRS, own, NodeAddr { flags: NodeAddr::NODEPORT });
        dp.put(map::UPLINKS, self.node.ifindex("uplink"), Uplink { v4: own, v6: own, mtu: 1500 });
        for (i, pod) in self.pods.iter().enumerate() {
            let endpoint = Endpoint {
                id: 1 + i as u32,
                ifindex: self.node.ifindex(HOST_SIDE[i]),
                pod_mac: pod.mac("eth0"),
                host_mac: self.node.mac(HOST_SIDE[i]),
                flags,
                epoch: 1,
                netns: xebec_ebpf_abi::NetnsCookie::UNKNOWN,
            };
            dp.put(map::ENDPOINTS, Addr::from(self.net.pods[i]), endpoint);
        }
    }

    fn attach(&mut self) {
        let names = ["uplink", HOST_SIDE[0], HOST_SIDE[1]];
        let node = self.node.0.try_clone().expect("a descriptor");
        let ebpf = &mut self.dp.ebpf;
        // A device is named in the namespace of the thread that attaches.
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(node, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
                for name in names {
                    let (inner, outer) =
                        if name == "uplink" { (prog::FROM_UPLINK, prog::TO_UPLINK) } else { (prog::FROM_POD, prog::TO_POD) };
                    for (program, hook) in [(inner, TcAttachType::Ingress), (outer, TcAttachType::Egress)] {
                        let program: &mut SchedClassifier = ebpf.program_mut(program).expect(program).try_into().expect("a classifier");
                        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                        program.attach_with_options(name, hook, options).expect("attaches");
                    }
                }
            });
            thread.join().expect("all are attached");
        });
    }

    fn service(&mut self, addr: impl Into<Addr>, port: u16, backend: IpAddr, target: u16, local: bool) {
        let set = u32::from(port);
        let addr = addr.into();
        for protocol in [proto::TCP, proto::UDP] {
            let key = FrontendKey::new(addr, Port::new(port), protocol);
            let value = Frontend { service: set, internal: set, external: set, flags: Frontend::EXTERNAL, affinity_timeout: 0 };
            self.dp.put(map::FRONTENDS, key, value);
        }
        let flags = if local { Backend::LOCAL } else { 0 };
        self.dp.put(map::BACKENDS, set, Backend::new(backend.into(), Port::new(target), flags));
        self.dp.put(map::BACKEND_SLOTS, SlotKey { set, slot: 0 }, set);
        self.dp.put(map::SET_MEMBERS, xebec_ebpf_abi::MemberKey { set, backend: set }, 0u32);
        self.dp.put(map::BACKEND_SETS, set, BackendSet { count: 1, flags: 0 });
    }

    fn no_drops(&self) {
        for reason in DropReason::ALL {
            assert_eq!(self.dp.drops(*reason), 0, "{reason:?}");
        }
    }
}

/// Answers each TCP client with what it sends, and tells whom it saw; and each datagram likewise.
struct Server {
    seen: mpsc::Receiver<SocketAddr>,
}

impl Server {
    fn start(space: &Space, addr: (IpAddr, u16)) -> Server {
        let (tell, seen) = mpsc::channel();
        let (listener, socket) = space.run(move || (TcpListener::bind(addr).expect("listens"), UdpSocket::bind(addr).expect("binds")));
        let told = tell.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = told.send(stream.peer_addr().expect("a peer"));
                std::thread::spawn(move || echo(stream));
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let _ = tell.send(from);
                let _ = socket.send_to(&bytes[..len], from);
            }
        });
        Server { seen }
    }

    fn client(&self) -> IpAddr {
        self.seen.recv_timeout(PATIENCE).expect("a client").ip()
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 65536];
    while let Ok(len) = stream.read(&mut bytes) {
        if len == 0 || stream.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Sends 2 MiB through an echo server and compares what comes back: large segments both ways.
fn talk_tcp(space: &Space, to: (IpAddr, u16)) {
    space.run(move || {
        let stream = TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(stream.peer_addr().expect("a peer"), SocketAddr::from(to));
        let data: Vec<u8> = (0..2 << 20).map(|i: u32| (i * 7 + i / 251) as u8).collect();
        let (mut writer, sent) = (stream.try_clone().expect("a clone"), data.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).expect("sends");
            writer.shutdown(Shutdown::Write).expect("ends");
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back).expect("receives");
        writing.join().expect("all is sent");
        assert!(back == data, "{} bytes came back of {}", back.len(), data.len());
    });
}

/// Sends a datagram and takes the echo; from whom it comes must be whom it went to.
fn talk_udp(space: &Space, to: (IpAddr, u16), len: usize) {
    space.run(move || {
        let any = if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        socket.send_to(&data, SocketAddr::from(to)).expect("sends");
        let mut back = vec![0; len + 1];
        let (got, from) = socket.recv_from(&mut back).expect("an answer");
        assert_eq!(from, SocketAddr::from(to));
        assert_eq!(back[..got], data);
    });
}

#[test]
fn pods_of_one_node_talk_through_the_stack_and_directly() {
    for flags in [0, Endpoint::DIRECT] {
        for net in nets() {
            let world = World::new(net, flags);
            let pods = world.net.pods;
            let server = Server::start(&world.pods[1], (pods[1], 8080));
            talk_tcp(&world.pods[0], (pods[1], 8080));
            assert_eq!(server.client(), pods[0]);
            talk_udp(&world.pods[0], (pods[1], 8080), 1000);
            talk_udp(&world.pods[0], (pods[1], 8080), 5000);
            world.no_drops();
        }
    }
}

#[test]
fn a_pods_packets_reach_services_also_its_own() {
    for flags in [0, Endpoint::DIRECT] {
        for net in nets() {
            let mut world = World::new(net, flags);
            let (vip, pods, node) = (world.net.vip, world.net.pods, world.net.node);
            world.service(vip, 80, pods[1], 8080, true);
            world.service(any_of(pods[1]), 30080, pods[1], 8080, true);
            let server = Server::start(&world.pods[1], (pods[1], 8080));
            for to in [(vip, 80), (node, 30080)] {
                talk_tcp(&world.pods[0], to);
                assert_eq!(server.client(), pods[0]);
                talk_udp(&world.pods[0], to, 1000);
                talk_udp(&world.pods[0], to, 5000);
            }
            if flags & Endpoint::DIRECT != 0 {
                talk_tcp(&world.pods[1], (vip, 80));
                talk_udp(&world.pods[1], (vip, 80), 1000);
            }
            world.no_drops();
        }
    }
}

#[test]
fn the_outside_reaches_node_ports_here_and_elsewhere() {
    for flags in [0, Endpoint::DIRECT] {
        for net in nets() {
            let mut world = World::new(net, flags);
            let (node, pods, remote, outside) = (world.net.node, world.net.pods, world.net.remote, world.net.outside);
            world.service(any_of(pods[0]), 30080, pods[0], 8080, true);
            world.service(any_of(remote), 30081, remote, 8080, false);
            let here = Server::start(&world.pods[0], (pods[0], 8080));
            let there = Server::start(&world.outside, (remote, 8080));
            talk_tcp(&world.outside, (node, 30080));
            assert_eq!(here.client(), outside, "the client is seen");
            talk_udp(&world.outside, (node, 30080), 1000);
            talk_udp(&world.outside, (node, 30080), 5000);
            talk_tcp(&world.outside, (node, 30081));
            assert_eq!(there.client(), node, "the node stands for the client");
            talk_udp(&world.outside, (node, 30081), 1000);
            world.no_drops();
        }
    }
}

#[test]
fn pods_reach_the_outside_as_the_node() {
    for flags in [0, Endpoint::DIRECT] {
        for net in nets() {
            let world = World::new(net, flags);
            let (node, outside) = (world.net.node, world.net.outside);
            let server = Server::start(&world.outside, (outside, 443));
            talk_tcp(&world.pods[0], (outside, 443));
            assert_eq!(server.client(), node);
            talk_udp(&world.pods[0], (outside, 443), 1000);
            talk_udp(&world.pods[0], (outside, 443), 5000);
            world.no_drops();
        }
    }
}

#[test]
fn the_node_and_its_pods_reach_each_other() {
    for net in nets() {
        let world = World::new(net, Endpoint::DIRECT | Endpoint::ISOLATE_INGRESS);
        let (node, pods) = (world.net.node, world.net.pods);
        let _server = Server::start(&world.node, (node, 10250));
        talk_tcp(&world.pods[0], (node, 10250));
        talk_udp(&world.pods[0], (node, 10250), 1000);
        world.no_drops();
        // Without an entry in IPCACHE the node is a stranger to an isolated pod.
        let _server = Server::start(&world.pods[1], (pods[1], 8080));
        let refused =
            world.node.run(move || TcpStream::connect_timeout(&SocketAddr::from((pods[1], 8080)), Duration::from_millis(300)).is_err());
        assert!(refused && world.dp.drops(DropReason::PolicyIngress) > 0);
    }
}

/// Pieces of IP packets that a namespace was sent.
fn pieces(space: &Space, v4: bool) -> u64 {
    space.run(move || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters");
        let number = |text: &str| text.trim().parse::<u64>().expect("a number");
        if !v4 {
            let text = read("snmp6");
            return number(text.lines().find_map(|line| line.strip_prefix("Ip6ReasmReqds")).expect("the counter"));
        }
        let text = read("snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let (_, value) = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ReasmReqds").expect("the counter");
        number(value)
    })
}

#[test]
fn a_pod_takes_whole_what_is_larger_than_its_own_device_sends() {
    for net in nets() {
        let mut world = World::new(net, Endpoint::DIRECT);
        let (node, pods) = (world.net.node, world.net.pods);
        world.service(any_of(pods[1]), 30080, pods[1], 8080, true);
        world.node.ip("link set podB mtu 1300");
        world.pods[1].ip("link set eth0 mtu 1300");
        let _server = Server::start(&world.pods[1], (pods[1], 8080));
        for _ in 0..2 {
            talk_udp(&world.pods[0], (pods[1], 8080), 1400);
            talk_udp(&world.outside, (node, 30080), 1400);
        }
        assert_eq!(pieces(&world.pods[1], node.is_ipv4()), 0, "nobody was told to send less");
        assert!(pieces(&world.pods[0], node.is_ipv4()) > 0, "its answers come in pieces");
        talk_tcp(&world.pods[0], (pods[1], 8080));
        world.no_drops();
    }
}
