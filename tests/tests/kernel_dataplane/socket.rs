//! The socket hooks with real sockets, in a cgroup and a network namespace of the test's own.

use crate::fixture::Dataplane;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
};
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, DropReason, Frontend, FrontendKey, MemberKey, NodeAddr, Port, SlotKey, map, prog, proto,
};

/// This process in a cgroup of its own; back where it was when dropped.
struct Cgroup {
    dir: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn enter() -> Cgroup {
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(PathBuf::from)
            .find(|dir| dir.join("cgroup.procs").exists())
            .expect("a cgroup2 mount");
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroup");
        let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
        let cgroup = Cgroup { dir: mount.join(format!("xebec-test-{}", std::process::id())), before: mount.join(own) };
        std::fs::create_dir_all(&cgroup.dir).expect("a child cgroup");
        cgroup.move_to(&cgroup.dir);
        cgroup
    }

    fn move_to(&self, dir: &std::path::Path) {
        let pid = std::process::id().to_string();
        std::fs::write(dir.join("cgroup.procs"), pid).expect("the process moves");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.move_to(&self.before);
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Puts this thread into a new network namespace whose loopback is up, and tells its cookie.
fn new_netns() -> u64 {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: a zeroed ifreq is valid; name and flags are set below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives for the call.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(failed, 0, "loopback comes up");
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // SAFETY: the kernel writes at most `len` bytes to the cookie.
    let failed = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &mut len) };
    assert_eq!(failed, 0, "the namespace has a cookie");
    cookie
}

pub struct Node {
    pub dataplane: Dataplane,
    cookie: u64,
    // Last: programs are detached before the process leaves.
    _cgroup: Cgroup,
}

impl Node {
    fn attach(dataplane: &mut Dataplane, cgroup: &Cgroup) {
        let dir = File::open(&cgroup.dir).expect("the cgroup");
        for name in prog::SOCKET {
            let program: &mut CgroupSockAddr = dataplane.ebpf.program_mut(name).expect(name).try_into().expect("a sock_addr program");
            // A BPF link is always one of several; the kernel takes no mode for it.
            program.attach(&dir, CgroupAttachMode::Single).expect(name);
        }
        let release: &mut CgroupSock = dataplane.ebpf.program_mut(prog::SOCK_RELEASE).expect("it is there").try_into().expect("its type");
        release.attach(&dir, CgroupAttachMode::Single).expect("it is attached");
    }

    fn service(&mut self, addr: impl Into<Addr>, port: u16, proto: u8, set: u32, flags: u32) {
        let frontend = Frontend { service: set, internal: set, external: set, flags, affinity_timeout: 10 };
        self.dataplane.put(map::FRONTENDS, FrontendKey::new(addr.into(), Port::new(port), proto), frontend);
    }

    fn backends(&mut self, set: u32, backends: &[SocketAddr]) {
        for (slot, backend) in backends.iter().enumerate() {
            let (slot, id) = (slot as u32, set * 100 + slot as u32);
            let entry = Backend::new(backend.ip().into(), Port::new(backend.port()), 0);
            self.dataplane.put(map::BACKENDS, id, entry);
            self.dataplane.put(map::BACKEND_SLOTS, SlotKey { set, slot }, id);
            self.dataplane.put(map::SET_MEMBERS, MemberKey { set, backend: id }, slot);
        }
        let count = backends.len() as u32;
        self.dataplane.put(map::BACKEND_SETS, set, BackendSet { count, flags: 0 });
    }

    pub fn is_the_node(&mut self) {
        self.dataplane.configure(Config {
            node_netns_cookie: self.cookie,
            nat_port_min: Config::NAT_PORT_MIN,
            nat_port_max: Config::NAT_PORT_MAX,
            flags: 0,
        });
    }
}

/// Runs `body` with the hooks in force, on a thread of its own: the namespace goes with it.
pub fn with_hooks(body: impl FnOnce(&mut Node) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let cookie = new_netns();
            let cgroup = Cgroup::enter();
            let mut dataplane = Dataplane::load();
            Node::attach(&mut dataplane, &cgroup);
            body(&mut Node { dataplane, cookie, _cgroup: cgroup });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// A server that tells each client its own name.
fn tcp_server(addr: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(addr).expect("a listener");
    let addr = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.expect("a client").write_all(name.as_bytes());
        }
    });
    addr
}

/// A server that answers each datagram with its own name.
fn udp_server(addr: &str, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(addr).expect("a socket");
    let addr = socket.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    addr
}

fn ask(addr: SocketAddr) -> (String, SocketAddr) {
    let mut stream = TcpStream::connect(addr).expect("connects");
    let peer = stream.peer_addr().expect("a peer");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    (text, peer)
}

#[test]
fn tcp_reaches_the_backend_and_sees_the_service() {
    with_hooks(|node| {
        let backend = tcp_server("127.0.0.1:0", "one");
        node.service(VIP, 80, proto::TCP, 1, 0);
        node.backends(1, &[backend]);
        let vip = SocketAddr::from((VIP, 80));
        assert_eq!(ask(vip), ("one".into(), vip));
        // What is no Service is left alone.
        assert_eq!(ask(backend), ("one".into(), backend));
    });
}

#[test]
fn a_mapped_ipv6_socket_reaches_an_ipv4_service() {
    with_hooks(|node| {
        let backend = tcp_server("127.0.0.1:0", "one");
        node.service(VIP, 80, proto::TCP, 1, 0);
        node.backends(1, &[backend]);
        let vip = SocketAddr::from((VIP.to_ipv6_mapped(), 80));
        assert_eq!(ask(vip), ("one".into(), vip));
    });
}

#[test]
fn ipv6_works_like_ipv4() {
    with_hooks(|node| {
        let vip6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);
        let tcp = tcp_server("[::1]:0", "six");
        let udp = udp_server("[::1]:0", "six");
        node.service(vip6, 80, proto::TCP, 1, 0);
        node.backends(1, &[tcp]);
        node.service(vip6, 53, proto::UDP, 2, 0);
        node.backends(2, &[udp]);
        let vip = SocketAddr::from((vip6, 80));
        assert_eq!(ask(vip), ("six".into(), vip));
        let vip = SocketAddr::from((vip6, 53));
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.send_to(b"?", vip).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(socket.recv_from(&mut bytes).unwrap(), (3, vip));
    });
}

#[test]
fn unconnected_and_connected_udp_are_answered_by_the_service() {
    with_hooks(|node| {
        let one = udp_server("127.0.0.1:0", "one");
        let two = udp_server("127.0.0.1:0", "two");
        node.service(VIP, 53, proto::UDP, 1, 0);
        node.backends(1, &[one, two]);
        let vip = SocketAddr::from((VIP, 53));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut bytes = [0; 16];
        let mut names = std::collections::HashSet::new();
        for _ in 0..20 {
            socket.send_to(b"?", vip).unwrap();
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!(from, vip);
            names.insert(bytes[..len].to_vec());
        }
        assert_eq!(names.len(), 1, "one socket stays with one backend");
        // Straight to a backend, the answer is the backend's.
        socket.connect(vip).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), vip);
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv_from(&mut bytes).unwrap().1, vip);
        socket.connect(one).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), one);
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv_from(&mut bytes).unwrap().1, one);
    });
}

#[test]
fn connections_are_spread_over_all_backends() {
    with_hooks(|node| {
        let backends = ["a", "b", "c"].map(|name| tcp_server("127.0.0.1:0", name));
        node.service(VIP, 80, proto::TCP, 1, 0);
        node.backends(1, &backends);
        let vip = SocketAddr::from((VIP, 80));
        let mut seen = std::collections::HashMap::new();
        for _ in 0..150 {
            *seen.entry(ask(vip).0).or_insert(0) += 1;
        }
        // A fair die gives each 50; below 20 once in a billion runs.
        assert!(seen.len() == 3 && seen.values().all(|n| *n > 20), "{seen:?}");
    });
}

#[test]
fn affinity_keeps_a_client_with_its_backend_until_that_goes() {
    with_hooks(|node| {
        let backends = ["a", "b", "c", "d"].map(|name| tcp_server("127.0.0.1:0", name));
        node.service(VIP, 80, proto::TCP, 1, Frontend::AFFINITY);
        node.backends(1, &backends);
        let vip = SocketAddr::from((VIP, 80));
        let first = ask(vip).0;
        for _ in 0..30 {
            assert_eq!(ask(vip).0, first);
        }
        let at = ["a", "b", "c", "d"].iter().position(|n| *n == first).unwrap() as u32;
        node.dataplane.hash::<MemberKey, u32>(map::SET_MEMBERS).remove(&MemberKey { set: 1, backend: 100 + at }).unwrap();
        let last = node.dataplane.hash::<SlotKey, u32>(map::BACKEND_SLOTS).get(&SlotKey { set: 1, slot: 3 }, 0).unwrap();
        node.dataplane.put(map::BACKEND_SLOTS, SlotKey { set: 1, slot: at }, last);
        node.dataplane.put(map::BACKEND_SETS, 1u32, BackendSet { count: 3, flags: 0 });
        let second = ask(vip).0;
        assert_ne!(second, first);
        for _ in 0..30 {
            assert_eq!(ask(vip).0, second);
        }
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    with_hooks(|node| {
        node.service(VIP, 80, proto::TCP, 1, 0);
        node.service(VIP, 53, proto::UDP, 2, 0);
        node.backends(2, &[]);
        let refused = TcpStream::connect((VIP, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let refused = socket.send_to(b"?", (VIP, 53)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(node.dataplane.drops(DropReason::NoBackend), 2);
    });
}

#[test]
fn a_node_port_answers_on_node_addresses_and_on_loopback_for_the_node_only() {
    with_hooks(|node| {
        let backend = tcp_server("127.0.0.1:0", "one");
        node.service(Addr::ANY_V4, 30080, proto::TCP, 1, Frontend::EXTERNAL);
        node.backends(1, &[backend]);
        let address = Ipv4Addr::new(192, 0, 2, 7);
        node.dataplane.put(map::NODE_ADDRS, Addr::from(address), NodeAddr { flags: NodeAddr::NODEPORT });
        // A pod: the node's address answers, loopback is the pod's own.
        assert_eq!(ask((address, 30080).into()).0, "one");
        assert!(TcpStream::connect(("127.0.0.1", 30080)).is_err());
        node.is_the_node();
        assert_eq!(ask((address, 30080).into()).0, "one");
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::new(127, 1, 2, 3).into(), Ipv4Addr::UNSPECIFIED.into()] {
            let vip = SocketAddr::from((loopback, 30080));
            assert_eq!(ask(vip).0, "one", "{loopback}");
        }
        let loopback = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 30080);
        assert_eq!(ask(loopback.into()).0, "one");
        // The entry is for IPv4: a Service without an IPv6 address has no NodePort there.
        assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, 30080)).is_err());
        node.service(Addr::ANY, 30080, proto::TCP, 2, Frontend::EXTERNAL);
        node.backends(2, &[tcp_server("[::1]:0", "six")]);
        for loopback in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED] {
            assert_eq!(ask((loopback, 30080).into()).0, "six", "{loopback}");
        }
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 30080).into()).0, "one");
    });
}

#[test]
fn loopback_of_a_pod_is_its_own_whatever_entries_there_are() {
    with_hooks(|node| {
        let own = tcp_server("127.0.0.1:0", "own");
        node.service(Ipv4Addr::LOCALHOST, own.port(), proto::TCP, 1, Frontend::EXTERNAL);
        node.backends(1, &[tcp_server("127.0.0.2:0", "hostPort on 127.0.0.1")]);
        assert_eq!(ask(own).0, "own");
        node.is_the_node();
        assert_eq!(ask(own).0, "hostPort on 127.0.0.1");
    });
}

#[test]
fn source_ranges_are_left_to_where_a_pods_address_is_seen_and_known_beforehand_for_the_node() {
    with_hooks(|node| {
        let backend = tcp_server("127.0.0.1:0", "one");
        node.service(VIP, 80, proto::TCP, 1, Frontend::EXTERNAL | Frontend::SOURCE_RANGES);
        node.backends(1, &[backend]);
        // Nothing is translated, and this namespace has no way to the address as it is.
        let untouched = TcpStream::connect((VIP, 80)).unwrap_err();
        assert_eq!(untouched.kind(), ErrorKind::NetworkUnreachable);
        node.is_the_node();
        let refused = TcpStream::connect((VIP, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(node.dataplane.drops(DropReason::SourceRange), 1);
        node.service(VIP, 80, proto::TCP, 1, Frontend::EXTERNAL | Frontend::SOURCE_RANGES | Frontend::FROM_NODE);
        assert_eq!(ask((VIP, 80).into()).0, "one");
    });
}

/// How many sockets are counted for each backend of `set`.
fn counts(node: &Node, set: u32, backends: u32) -> Vec<u64> {
    let map: aya::maps::Array<_, u64> = node.dataplane.ebpf.map(map::CONNECTIONS).expect("the map").try_into().expect("its type");
    (0..backends).map(|slot| map.get(&(set * 100 + slot), 0).expect("an entry")).collect()
}

#[test]
fn connections_go_where_the_fewest_are() {
    with_hooks(|node| {
        let backends = [tcp_server("127.0.0.1:0", "a"), tcp_server("127.0.0.1:0", "b"), tcp_server("127.0.0.1:0", "c")];
        node.service(VIP, 80, proto::TCP, 1, Frontend::LEAST_CONNECTIONS);
        node.backends(1, &backends);
        let connect = || TcpStream::connect((VIP, 80)).expect("connects");
        let mut open: Vec<TcpStream> = (0..30).map(|_| connect()).collect();
        assert_eq!(counts(node, 1, 3), [10, 10, 10]);
        // Sockets that are closed count no more; the next ones go where they were.
        let name = |stream: &mut TcpStream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        };
        open.retain_mut(|stream| name(stream) != "b");
        assert_eq!(counts(node, 1, 3), [10, 0, 10]);
        let mut more: Vec<TcpStream> = (0..10).map(|_| connect()).collect();
        assert!(more.iter_mut().all(|stream| name(stream) == "b"));
        // A connected UDP socket is counted once, wherever it connects next.
        node.service(VIP, 53, proto::UDP, 2, Frontend::LEAST_CONNECTIONS);
        node.backends(2, &[udp_server("127.0.0.1:0", "x"), udp_server("127.0.0.1:0", "y")]);
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for _ in 0..5 {
            socket.connect((VIP, 53)).expect("connects");
            assert_eq!(counts(node, 2, 2).iter().sum::<u64>(), 1);
        }
        // A connection that is refused counts until its socket is closed.
        node.backends(3, &["127.0.0.1:1".parse().expect("an address")]);
        node.service(VIP, 81, proto::TCP, 3, Frontend::LEAST_CONNECTIONS);
        assert!(TcpStream::connect((VIP, 81)).is_err());
        assert_eq!(counts(node, 3, 1), [0]);
        drop((open, more, socket));
        assert_eq!([counts(node, 1, 3), counts(node, 2, 2)].concat(), [0; 5]);
    });
}
