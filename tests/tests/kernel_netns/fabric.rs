//! The way to other nodes' pods, and everything the kernel must be set to for it: made, kept, and removed with the node.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use xebec_dataplane::{Routing, Vxlan};

use crate::net::Netns;
use crate::node::{NODE_IP, Node, OUTSIDE_IP, Pod, ask, at, eventually, serve};

/// A pod of the other node, which the outside namespace plays.
const FAR_POD: &str = "10.244.8.5";
const FAR_RANGE: &str = "10.244.8.0/24";
const OWN_RANGE: &str = "10.244.7.0/24";

/// Lets the outside namespace be node-2 with one pod, whose server tells whom it sees.
fn other_node(node: &Node) {
    node.outside.ip(&format!("addr add {FAR_POD}/32 dev lo"));
    serve(&node.outside, "far", 8080);
    let addresses = json!([{"type": "InternalIP", "address": OUTSIDE_IP}, {"type": "Hostname", "address": "node-2"}]);
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "spec": {"podCIDRs": [FAR_RANGE]}, "status": {"addresses": addresses},
    }));
}

fn reaches(client: &Pod, sees: &str) {
    eventually("the pod reaches the other node's", || {
        ask(&client.netns, at(FAR_POD, 8080)).is_ok_and(|(name, seen)| {
            assert_eq!(seen, sees, "pods of other nodes see the pod's own address");
            name == "far"
        })
    });
}

fn uplinks(node: &Node) -> Vec<String> {
    node.dataplane().status().devices.into_iter().map(|device| device.name).collect()
}

fn routes(node: &Node) -> String {
    node.netns.ip("route show proto 120")
}

#[test]
fn routes_follow_the_nodes_and_come_back_when_somebody_takes_them() {
    let mut node = Node::new();
    node.outside.ip(&format!("route add {OWN_RANGE} via {NODE_IP}"));
    other_node(&node);
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    reaches(&client, &client.ip.to_string());
    assert!(routes(&node).contains(&format!("{FAR_RANGE} via {OUTSIDE_IP} dev up0 metric 200")), "{}", routes(&node));

    // As a network daemon does that thinks all routes are its own, and an administrator by mistake.
    node.netns.ip("route flush proto 120");
    eventually("the route is back", || routes(&node).contains(FAR_RANGE));
    node.netns.ip("link set up0 down");
    assert!(!routes(&node).contains(FAR_RANGE), "a device that is down has no routes");
    node.netns.ip("link set up0 up");
    reaches(&client, &client.ip.to_string());

    // An agent that starts finds what it made; one that is away while a node goes removes its routes later.
    node.stop(true);
    assert!(routes(&node).contains(FAR_RANGE));
    node.api.delete("Node", "/node-2");
    node.start();
    eventually("the route goes with the node", || routes(&node).is_empty());
}

#[test]
fn settings_and_programs_come_back_when_somebody_changes_them() {
    let mut node = Node::new();
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    let device = node
        .netns
        .ip("-o link show type veth")
        .lines()
        .find_map(|l| l.split(": ").nth(1)?.split('@').next().filter(|n| n.starts_with("xbc")).map(str::to_owned));
    let device = device.expect("the pod's device");
    let read = |name: &str| node.netns.run(|| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap().trim().to_owned());
    let set = |name: &str, value: &str| node.netns.run(|| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap());

    assert_eq!(read("conf/up0/send_redirects"), "0");
    for (name, by_others, kept) in [
        ("ip_forward".to_owned(), "0", "1"),
        ("conf/up0/forwarding".to_owned(), "0", "1"),
        (format!("conf/{device}/rp_filter"), "1", "0"),
        (format!("conf/{device}/forwarding"), "0", "1"),
        ("conf/up0/rp_filter".to_owned(), "1", "2"),
    ] {
        set(&name, by_others);
        eventually(&format!("{name} is {kept} again"), || read(&name) == kept);
    }
    // A strict `all` makes every device strict that is not loose.
    set("conf/all/rp_filter", "1");
    eventually("the pod's device is loose", || read(&format!("conf/{device}/rp_filter")) == "2");

    // The uplink's size is that of pods, on both sides of their devices.
    let mtu = |netns: &Netns, device: &str| {
        netns.ip(&format!("-o link show {device}")).split("mtu ").nth(1).and_then(|t| t.split(' ').next()).map(str::to_owned)
    };
    node.netns.ip("link set up0 mtu 1400");
    eventually("both sides follow", || {
        mtu(&node.netns, &device).as_deref() == Some("1400") && mtu(&client.netns, "eth0").as_deref() == Some("1400")
    });
    node.netns.ip(&format!("link set {device} mtu 900"));
    eventually("it is kept", || mtu(&node.netns, &device).as_deref() == Some("1400"));

    // An uplink that is made anew is taken over again.
    node.netns.ip("link delete up0");
    eventually("the uplink is missed", || node.dataplane().status().devices.is_empty());
    node.netns.join("up0", &node.outside, "out0");
    node.netns.ip(&format!("addr add {NODE_IP}/24 dev up0"));
    eventually("the uplink is taken over", || node.dataplane().status().devices.iter().any(|d| d.name == "up0" && d.mode == "tc"));
}

#[test]
fn a_tunnel_carries_what_the_network_would_not() {
    let mut node = Node::new();
    // The network between the nodes knows no pods: outside has no route to ours but through the tunnel.
    node.config.routing = Routing::Vxlan(Vxlan { vni: 77, port: 4789 });
    other_node(&node);
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    eventually("the other node's end is known", || node.netns.ip("neigh show dev xebec-vxlan nud permanent").contains("10.244.8.0"));
    let own_mac =
        node.netns.ip("-o link show xebec-vxlan").split("link/ether ").nth(1).and_then(|t| t.split(' ').next()).expect("a MAC").to_owned();
    let line = node.netns.ip("neigh show dev xebec-vxlan nud permanent");
    let far_mac = line.split("lladdr ").nth(1).and_then(|t| t.split(' ').next()).expect("a MAC").to_owned();
    // What node-2's agent would make.
    node.outside.ip(&format!("link add far type vxlan id 77 dstport 4789 local {OUTSIDE_IP} nolearning"));
    node.outside.ip(&format!("link set far address {far_mac} mtu 1450 up"));
    node.outside.ip(&format!("neigh add 10.244.7.0 lladdr {own_mac} dev far nud permanent"));
    node.outside.ip(&format!("route add {OWN_RANGE} via 10.244.7.0 dev far onlink src {FAR_POD}"));
    node.outside.run(|| {
        let fdb = ["fdb", "append", own_mac.as_str(), "dev", "far", "dst", NODE_IP];
        assert!(std::process::Command::new("bridge").args(fdb).status().unwrap().success());
    });
    reaches(&client, &client.ip.to_string());

    // Fifty bytes go to the tunnel: pods' devices have that much less, and say so to who wants to send more.
    assert!(client.netns.ip("-o link show eth0").contains("mtu 1450"));
    let too_large = client.netns.run(|| whole(at(FAR_POD, 8080), 1472));
    assert_eq!(too_large.map_err(|e| e.raw_os_error()), Err(Some(libc::EMSGSIZE)));
    let answered = client.netns.run(|| whole(at(FAR_POD, 8080), 1422));
    assert!(answered.is_ok(), "{answered:?}");

    // The other node's own address: from pods through the tunnel too, from the node as ever.
    assert!(node.netns.ip("rule show").contains(&format!("from {OWN_RANGE} lookup 120")));
    eventually("the pod reaches the node behind the tunnel", || {
        ask(&client.netns, at(OUTSIDE_IP, 8080)).is_ok_and(|(_, seen)| seen == client.ip.to_string())
    });
    assert!(ask(&node.netns, at(OUTSIDE_IP, 8080)).is_ok_and(|(_, seen)| seen == NODE_IP));

    // All of it is kept.
    node.netns.ip("route flush proto 120");
    node.netns.ip(&format!("rule del from {OWN_RANGE} lookup 120"));
    node.netns.ip("neigh del 10.244.8.0 dev xebec-vxlan");
    node.netns.ip("link set xebec-vxlan mtu 1500");
    reaches(&client, &client.ip.to_string());
    eventually("rule and size are back", || {
        node.netns.ip("rule show").contains("lookup 120") && node.netns.ip("-o link show xebec-vxlan").contains("mtu 1450")
    });
    node.netns.ip("link del xebec-vxlan");
    reaches(&client, &client.ip.to_string());

    node.stop(false);
    assert!(node.teardown().is_empty());
    assert!(node.netns.try_ip("link show xebec-vxlan").is_err());
    assert!(routes(&node).is_empty() && !node.netns.ip("rule show").contains("lookup 120"));
}

#[test]
fn a_sender_outside_is_told_what_fits_into_the_tunnel() {
    let mut node = Node::new();
    node.config.routing = Routing::Vxlan(Vxlan { vni: 77, port: 4789 });
    // A node whose tunnel's end nobody answers at: nothing has to arrive.
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-3"},
        "spec": {"podCIDRs": [FAR_RANGE]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]},
    }));
    node.start();
    node.outside.ip(&format!("route add {FAR_RANGE} via {NODE_IP}"));
    eventually("the route is there", || routes(&node).contains(FAR_RANGE));
    let told = node.outside.run(|| -> std::io::Result<i32> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        discover(&socket)?;
        socket.connect(at(FAR_POD, 9))?;
        socket.send(&[0; 1472])?;
        let end = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            let mtu = path_mtu(&socket)?;
            if mtu < 1500 || std::time::Instant::now() > end {
                return Ok(mtu);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(told.expect("a socket"), 1450);
}

/// Sends a datagram that must not be fragmented, and waits for the answer.
fn whole(to: SocketAddr, size: usize) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    discover(&socket)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(to)?;
    socket.send(&vec![0; size])?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// Sets "don't fragment".
fn discover(socket: &UdpSocket) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let value: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the kernel reads one int at a live reference.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What the kernel knows of the way to a connected socket's peer.
fn path_mtu(socket: &UdpSocket) -> std::io::Result<i32> {
    use std::os::fd::AsRawFd;
    let (mut value, mut len): (libc::c_int, libc::socklen_t) = (0, size_of::<libc::c_int>() as u32);
    // SAFETY: the kernel writes one int at a live reference.
    let code = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU, (&raw mut value).cast(), &mut len) };
    if code == 0 { Ok(value) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn a_node_that_cannot_be_reached_is_told_of() {
    let mut node = Node::new();
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-9"},
        "spec": {"podCIDRs": ["10.244.9.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "198.51.100.9"}]},
    }));
    node.start();
    eventually("the status names the node", || {
        node.dataplane().status().errors.iter().any(|e| e.contains("node-9") && e.contains("--routing"))
    });
    node.api.delete("Node", "/node-9");
    eventually("and no more", || node.dataplane().status().errors.is_empty());
}

#[test]
fn programs_that_somebody_detached_come_back() {
    let mut node = Node::new();
    node.config.pod_programs = xebec_dataplane::PodPrograms::Links;
    node.start();
    let client = node.pod("client", json!({}), json!([]));
    let links: Vec<std::path::PathBuf> =
        std::fs::read_dir(node.config.pin_dir.join("links")).expect("pinned links").map(|e| e.expect("an entry").path()).collect();
    let of = |device: &str| -> Vec<&std::path::PathBuf> {
        links.iter().filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(device))).collect()
    };
    let (pod, uplink) = (of("xbc"), of("up0"));
    assert!(pod.len() == 2 && uplink.len() >= 2, "{links:?}");
    for path in pod.iter().chain(&uplink) {
        detach(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    // Without its programs the device counts nothing.
    let counted = || node.dataplane().status().forwards.values().sum::<u64>();
    eventually("packets are seen again", || {
        let before = counted();
        let _ = ask(&client.netns, at(OUTSIDE_IP, 9));
        counted() > before
    });
    for path in pod.iter().chain(&uplink) {
        eventually("the link is attached again", || detach(path).is_ok());
    }
}

/// Detaches a pinned link, as `bpftool link detach` does; an error if it is detached already.
pub fn detach(pin: &std::path::Path) -> std::io::Result<()> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    const OBJ_GET: libc::c_long = 7;
    const LINK_DETACH: libc::c_long = 34;
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes())?;
    let get: [u64; 2] = [path.as_ptr() as u64, 0];
    // SAFETY: the kernel reads 16 bytes at a live array; the path lives to the end of the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, get.as_ptr(), 16) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let fd = link.as_raw_fd() as u32;
    // SAFETY: the kernel reads 4 bytes at a live integer.
    match unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const fd, 4) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn only_what_is_far_goes_through_the_tunnel() {
    let mut node = Node::new();
    node.config.routing = Routing::Auto(Vxlan { vni: 78, port: 4789 });
    for (name, address, range) in [("near", "192.0.2.3", "10.244.8.0/24"), ("far", "198.51.100.4", "10.244.9.0/24")] {
        node.api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": [range]}, "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }));
    }
    node.start();
    eventually("both routes are there", || {
        let routes = routes(&node);
        routes.contains("10.244.8.0/24 via 192.0.2.3 dev up0") && routes.contains("10.244.9.0/24 via 10.244.9.0 dev xebec-vxlan")
    });
    // The far node comes nearer.
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "far"},
        "spec": {"podCIDRs": ["10.244.9.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.4"}]},
    }));
    eventually("its route is direct", || routes(&node).contains("10.244.9.0/24 via 192.0.2.4 dev up0"));
    assert!(!node.netns.ip("rule show").contains("lookup 120"), "nobody is behind the tunnel");
    // Another mode: the tunnel goes with the agent that has no use for it.
    node.stop(false);
    node.config.routing = Routing::Native;
    node.start();
    eventually("the tunnel is removed", || node.netns.try_ip("link show xebec-vxlan").is_err());
    eventually("and is no uplink any more", || uplinks(&node) == ["up0"]);
}
