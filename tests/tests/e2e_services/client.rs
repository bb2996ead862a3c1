//! Clients of the servers: each gets the name of one, and the address it sees. From the calling thread's network namespace (this
//! machine's, or a pod's, where the socket hooks do not see it), from a container, and from a process of a node.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use xebec_host::{cgroup::Cgroup, process::place};
use xebec_tests::cluster::Cluster;

/// The server's name, and whom it saw.
pub type Answer = io::Result<(String, IpAddr)>;

const PATIENCE: Duration = Duration::from_secs(2);

fn parse(said: &str) -> Answer {
    let nonsense = || io::Error::other(format!("{said:?} is no answer"));
    let (name, peer) = said.trim().split_once(' ').ok_or_else(nonsense)?;
    // The server listens on both families.
    let peer: IpAddr = peer.trim_matches(['[', ']']).parse().map_err(|_| nonsense())?;
    Ok((name.to_owned(), peer.to_canonical()))
}

/// Status and body.
fn http(to: IpAddr, port: u16, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let status = said.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = said.split_once("\r\n\r\n").or_else(|| said.split_once("\n\n")).map_or("", |(_, body)| body).to_owned();
    Ok((status.ok_or_else(|| io::Error::other(format!("{said:?} is no HTTP")))?, body))
}

pub fn tcp(to: IpAddr, port: u16) -> Answer {
    parse(&http(to, port, "/cgi-bin/who")?.1)
}

/// Status of an HTTP answer; none when there is none.
pub fn http_status(to: IpAddr, port: u16, path: &str) -> Option<u16> {
    http(to, port, path).ok().map(|(status, _)| status)
}

pub fn udp(to: IpAddr, port: u16) -> Answer {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((to, port))?;
    socket.send(b"x")?;
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer)?;
    parse(&String::from_utf8_lossy(&buffer[..len]))
}

/// A question as a command of bash.
pub fn by_tcp(to: IpAddr, port: u16) -> String {
    format!("busybox timeout 3 busybox wget -q -O - http://{}/cgi-bin/who", SocketAddr::new(to, port))
}

/// The same by UDP, from a connected socket.
pub fn by_udp(to: IpAddr, port: u16) -> String {
    format!("exec 3<>/dev/udp/{to}/{port} && echo x >&3 && timeout 2 dd bs=512 count=1 status=none <&3")
}

fn run(mut command: Command, question: &str) -> Answer {
    let output = command.arg("-c").arg(question).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said).map_err(|_| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let kind = if complaint.contains("refused") { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::Other };
        io::Error::new(kind, format!("{question}: {said:?}, {complaint:?}"))
    })
}

/// In a container, as its user would: what needs its resolver's configuration.
pub fn in_container(cluster: &Cluster, pod: &str, question: &str) -> Answer {
    run(cluster.kubectl_command(&["exec", pod, "--", "sh"]), question)
}

/// From a process in the pod's cgroup and network: the hooks see its sockets.
pub fn from_pod(uid: &str, question: &str) -> Answer {
    let process = process(uid);
    let cgroups = fs::read_to_string(process.join("cgroup"))?;
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::")).expect("a place in cgroup2");
    let cgroup = Cgroup::new(cgroup).map_err(io::Error::other)?;
    let mut command = Command::new("bash");
    place(&mut command, Some(&cgroup), Some(&process.join("ns/net"))).map_err(io::Error::other)?;
    run(command, question)
}

/// From a process of the node itself.
pub fn from_node(cluster: &Cluster, node: u8, question: &str) -> Answer {
    run(cluster.node(node).command("bash").map_err(io::Error::other)?, question)
}

/// A process of the pod with this uid. The oldest, which is its sandbox's; one that has ended has no namespaces any more.
fn process(uid: &str) -> PathBuf {
    let of_pod = |path: &PathBuf| {
        let cgroups = fs::read_to_string(path.join("cgroup"));
        cgroups.is_ok_and(|c| c.contains(uid)) && fs::metadata(path.join("ns/net")).is_ok()
    };
    fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).find(of_pod).expect("a process of the pod")
}

fn in_netns<T: Send + 'static>(uid: &str, f: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    let netns = File::open(process(uid).join("ns/net")).expect("the pod's namespace");
    std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
        f()
    })
}

/// Runs in the pod's namespace but not in its cgroup: packets are translated at the pod's device.
pub fn inside<T: Send + 'static>(uid: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    in_netns(uid, f).join().expect("no panic")
}

/// Answers datagrams in the pod until this test is over.
pub fn serve_udp(uid: &str, name: &str, port: u16) {
    let name = name.to_owned();
    in_netns(uid, move || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port of the pod");
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            // Who asked may be gone.
            let _ = socket.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
        }
    });
}
