//! Nanoseconds a packet by `BPF_PROG_TEST_RUN`, beside an empty program of the same type in the same run; and how many
//! instructions the verifier walks.
//!
//! A repeated run finds the packet as the run before left it. So an established flow here is translated to itself, its next hop
//! has the device's own address, and its hop limit is what ends the repetition. A first packet is measured one run at a time; so is
//! one that gets another header around it, which the program would not do twice, and beside it the same flow translated.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{CgroupSockAddr, Program, SchedClassifier, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use xebec_dataplane::compile::maglev;
use xebec_ebpf_abi::{
    Addr, Backend, BackendSet, Config, Endpoint, Flow, FlowKey, Frontend, FrontendKey, Nat, NetnsCookie, NodeAddr, Places, PlacesKey,
    PolicyKey, PolicyVerdict, Port, Remote, Ring, Rings, Shortcut, SlotKey, Tuple, Uplink, XdpDevice, direct::range, direction, map, prog,
    proto,
};
use xebec_ebpf_logic::checksum;

use super::raw;
use crate::bench::{Goal, Line};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/prebuilt/xebec.bpf.o");

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const XDP_TX: u32 = 3;
const TC_ACT_REDIRECT: u32 = 7;
const REPEAT: u32 = 200;
const ROUNDS: usize = 9;
const SET: u32 = 7;
const BACKENDS: u32 = 20;

/// The device packets come in on, and the program ours is measured beside.
struct Device<'a> {
    index: u32,
    empty: BorrowedFd<'a>,
}

struct Net {
    name: &'static str,
    client: IpAddr,
    node: IpAddr,
    pod: IpAddr,
    remote: IpAddr,
    router: IpAddr,
}

fn nets() -> Result<[Net; 2]> {
    let ip = |text: &str| text.parse::<IpAddr>().context("an address");
    Ok([
        Net {
            name: "v4",
            client: ip("198.51.100.9")?,
            node: ip("192.0.2.1")?,
            pod: ip("10.244.0.5")?,
            remote: ip("10.244.1.7")?,
            router: ip("192.0.2.254")?,
        },
        Net {
            name: "v6",
            client: ip("2001:db8:1::9")?,
            node: ip("2001:db8:2::1")?,
            pod: ip("fd00:244::5")?,
            remote: ip("fd00:244:1::7")?,
            router: ip("2001:db8:2::ffff")?,
        },
    ])
}

/// Measures everything and prints it; returns whether every goal is met. Must be called while the process has one thread: it
/// moves into namespaces of its own.
pub fn run() -> Result<bool> {
    let mut all_met = true;
    measure(&mut |line: Line| {
        all_met &= line.met != Some(false);
        line.print();
    })?;
    Ok(all_met)
}

fn measure(print: &mut impl FnMut(Line)) -> Result<()> {
    // What is made here goes with the process.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("namespaces of its own (root?)")?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("private mounts")?;
    let pins = tempfile::tempdir().context("a temporary directory")?;
    nix::mount::mount(Some("bpf"), pins.path(), Some("bpf"), MsFlags::empty(), None::<&str>).context("mount a bpffs")?;
    let done = measured(pins.path(), print);
    nix::mount::umount2(pins.path(), nix::mount::MntFlags::MNT_DETACH).context("unmount the bpffs")?;
    done
}

fn measured(pins: &std::path::Path, print: &mut impl FnMut(Line)) -> Result<()> {
    let nets = nets()?;
    devices(&nets)?;
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins);
    let mut ebpf = loader.load(OBJECT).context("load the object")?;
    let mut counts = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(p) => CgroupSockAddr::load(p)?,
            Program::SchedClassifier(p) => SchedClassifier::load(p)?,
            Program::Xdp(p) => Xdp::load(p)?,
            _ => continue,
        }
        counts.push((name.to_owned(), program.info()?.verified_instruction_count().context("a count of verified instructions")?));
    }
    let uplink = nix::net::if_::if_nametoindex("up0").context("the uplink")?;
    let program: &mut Xdp = ebpf.program_mut(prog::XDP_UPLINK).context("the XDP program")?.try_into()?;
    program.attach_to_if_index(uplink, XdpMode::Driver).context("attach to the driver")?;
    fill(&mut ebpf, &nets, uplink)?;
    // The kernel patches its calls for each test run of a program that no driver runs, which takes milliseconds.
    let empty = raw::empty(raw::XDP)?;
    let _attached = raw::attach_xdp(empty.as_fd(), nix::net::if_::if_nametoindex("wire0")?).context("attach the empty program")?;
    let at = Device { index: uplink, empty: empty.as_fd() };
    for net in &nets {
        for (number, name) in [(proto::TCP, "TCP"), (proto::UDP, "UDP")] {
            established(&mut ebpf, net, (number, name), &at, print)?;
            first(&ebpf, net, (number, name), &at, print)?;
            direct(&mut ebpf, net, (number, name), &at, print)?;
        }
        at_the_pod(&mut ebpf, net, print)?;
        between_pods(&mut ebpf, net, print)?;
    }
    for (name, count) in counts {
        print(Line::single(format!("{name}, verified instructions"), "instructions", f64::from(count), Goal::AtMost(100_000.0)));
    }
    Ok(())
}

fn devices(nets: &[Net]) -> Result<()> {
    let ip = |args: &str| -> Result<()> {
        let out = Command::new("ip").args(args.split_whitespace()).output().context("run ip")?;
        ensure!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    };
    let mac = OWN.map(|b| format!("{b:02x}")).join(":");
    ip(&format!("link add up0 address {mac} type veth peer name wire0"))?;
    for device in ["lo", "up0", "wire0"] {
        ip(&format!("link set {device} up"))?;
    }
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").context("forwarding")?;
    }
    for net in nets {
        let (full, wire, fresh) = if net.node.is_ipv4() { (32, 24, "") } else { (128, 64, "nodad") };
        ip(&format!("addr add {}/{wire} dev up0 {fresh}", net.node))?;
        ip(&format!("neigh add {} lladdr {mac} dev up0 nud permanent", net.router))?;
        for to in [net.client, net.remote] {
            ip(&format!("route add {to}/{full} via {}", net.router))?;
        }
    }
    Ok(())
}

fn hash<'a, K: aya::Pod, V: aya::Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<HashMap<&'a mut MapData, K, V>> {
    Ok(HashMap::try_from(ebpf.map_mut(name).with_context(|| format!("map {name}"))?)?)
}

fn put<K: aya::Pod, V: aya::Pod>(ebpf: &mut Ebpf, name: &str, key: K, value: V) -> Result<()> {
    hash(ebpf, name)?.insert(key, value, 0).with_context(|| format!("write {name}"))
}

fn node_port(number: u8, ring: bool) -> Port {
    Port::new(30000 + u16::from(number) + if ring { 1000 } else { 0 })
}

/// Of the Service that is reached directly.
fn direct_port(number: u8) -> Port {
    Port::new(32000 + u16::from(number))
}

/// A node with NodePorts on one remote backend for each family and protocol, by slot and by ring.
fn fill(ebpf: &mut Ebpf, nets: &[Net], uplink: u32) -> Result<()> {
    let config = Config { node_netns_cookie: 1, nat_port_min: Config::NAT_PORT_MIN, nat_port_max: Config::NAT_PORT_MAX, flags: 0 };
    Array::<_, Config>::try_from(ebpf.map_mut(map::CONFIG).context("CONFIG")?)?.set(0, config, 0)?;
    put(ebpf, map::UPLINKS, uplink, Uplink { v4: nets[0].node.into(), v6: nets[1].node.into(), mtu: 1500 })?;
    put(ebpf, map::XDP_DEVICES, uplink, XdpDevice::new(OWN))?;
    for (n, net) in (0..).zip(nets) {
        let (v4, set) = (net.node.is_ipv4(), SET + n);
        put(ebpf, map::NODE_ADDRS, Addr::from(net.node), NodeAddr { flags: NodeAddr::NODEPORT })?;
        for (ip, whose) in [(net.node, range::NODE), (net.remote, range::PODS)] {
            let trie = LpmTrie::<_, Addr, u32>::try_from(ebpf.map_mut(map::NO_MASQUERADE).context("NO_MASQUERADE")?);
            trie?.insert(&Key::new(128, ip.into()), range::INSIDE | whose, 0).context("write NO_MASQUERADE")?;
        }
        let members: Vec<maglev::Member> = (0..BACKENDS)
            .map(|i| maglev::Member { addr: Addr::from(net.remote), port: Port::new(8000 + i as u16), weight: 1, id: 100 * set + i })
            .collect();
        for (slot, m) in (0..).zip(&members) {
            put(ebpf, map::BACKENDS, m.id, Backend::new(m.addr, m.port, 0))?;
            put(ebpf, map::BACKEND_SLOTS, SlotKey { set, slot }, m.id)?;
        }
        put(ebpf, map::BACKEND_SETS, set, BackendSet { count: BACKENDS, flags: 0 })?;
        for (part, chunk) in (0..).zip(maglev::places(&members, maglev::DEFAULT_SIZE).chunks(Places::COUNT as usize)) {
            let mut backends = [0; Places::COUNT as usize];
            backends[..chunk.len()].copy_from_slice(chunk);
            put(ebpf, map::RING_PLACES, PlacesKey { ring: set, part }, Places { backends })?;
        }
        let current = Ring { number: set, size: maglev::DEFAULT_SIZE };
        put(ebpf, map::RINGS, set, Rings { current, ..Rings::default() })?;
        for (number, ring) in [(proto::TCP, false), (proto::TCP, true), (proto::UDP, false), (proto::UDP, true)] {
            let flags = Frontend::EXTERNAL | if ring { Frontend::RING } else { 0 };
            let frontend = Frontend { service: set, internal: set, external: set, flags, affinity_timeout: 0 };
            put(ebpf, map::FRONTENDS, FrontendKey::node_port(v4, node_port(number, ring), number), frontend)?;
            if ring {
                let frontend = Frontend { flags: flags | Frontend::DIRECT, ..frontend };
                put(ebpf, map::FRONTENDS, FrontendKey::node_port(v4, direct_port(number), number), frontend)?;
            }
        }
    }
    Ok(())
}

fn fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    let program = ebpf.program(name).with_context(|| format!("program {name}"))?;
    Ok(match program {
        Program::Xdp(p) => p.fd()?.as_fd(),
        Program::SchedClassifier(p) => p.fd()?.as_fd(),
        _ => anyhow::bail!("{name} cannot be run on a packet"),
    })
}

/// Both sides in turn, so that a busy moment of the machine meets both; the mean of each round.
fn beside(mut ours: impl FnMut(usize) -> Result<u32>, mut empty: impl FnMut() -> Result<u32>, runs: usize) -> Result<(Vec<f64>, f64)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut x, mut y) = (0u64, 0u64);
        for run in 0..runs {
            x += u64::from(ours(round * runs + run)?);
            y += u64::from(empty()?);
        }
        a.push(x as f64 / runs as f64);
        b.push(y as f64 / runs as f64);
    }
    Ok((a, crate::bench::figures::percentile(&b, 50.0)))
}

fn established(ebpf: &mut Ebpf, net: &Net, (number, name): (u8, &str), at: &Device<'_>, print: &mut impl FnMut(Line)) -> Result<()> {
    let tuple = Tuple::new(net.client.into(), Port::new(4000), net.remote.into(), Port::new(80), number);
    let mut entry = Nat::new(tuple, Nat::BOTH, 1, 0, u64::MAX / 2);
    entry.state = u16::from(Flow::REPLIED);
    put(ebpf, map::NAT, tuple, entry)?;
    let packet = frame(number, (net.client, 4000), (net.remote, 80), false);
    let program = fd(ebpf, prog::XDP_UPLINK)?;
    let ours = |_| {
        let (verdict, ns) = raw::run(program, &packet, Some(at.index), REPEAT)?;
        ensure!(verdict == XDP_TX, "the last of the repeated packets was not forwarded: verdict {verdict}");
        Ok(ns)
    };
    let (runs, beside) = beside(ours, || Ok(raw::run(at.empty, &packet, Some(at.index), REPEAT)?.1), 300)?;
    let goal = if number == proto::TCP && net.node.is_ipv4() { Goal::AtMost(8.0) } else { Goal::None };
    let line = Line::median(format!("XDP {} {name}, established to a backend elsewhere, SNAT", net.name), "ns", &runs, Goal::None);
    print(line.beside("empty XDP program", beside, goal));
    Ok(())
}

fn first(ebpf: &Ebpf, net: &Net, (number, name): (u8, &str), at: &Device<'_>, print: &mut impl FnMut(Line)) -> Result<()> {
    let program = fd(ebpf, prog::XDP_UPLINK)?;
    for (ring, how) in [(false, "by slot"), (true, "by Maglev")] {
        let port = node_port(number, ring).get();
        let packets: Vec<Vec<u8>> =
            (0..ROUNDS * 400).map(|n| frame(number, (net.client, 10_000 + n as u16), (net.node, port), true)).collect();
        let mut passed = 0;
        let ours = |n: usize| {
            let (verdict, ns) = raw::run(program, &packets[n], Some(at.index), 1)?;
            // One packet in 65,536 looks as if its checksum were not complete.
            passed += usize::from(verdict != XDP_TX);
            ensure!(passed <= 3, "first packets are not forwarded: verdict {verdict}");
            Ok(ns)
        };
        let (runs, beside) = beside(ours, || Ok(raw::run(at.empty, &packets[0], Some(at.index), 1)?.1), 400)?;
        let line = Line::median(format!("XDP {} {name}, first packet, {how}, SNAT", net.name), "ns", &runs, Goal::None);
        print(line.beside("empty XDP program, one run at a time", beside, Goal::None));
    }
    Ok(())
}

/// The same for flows that go to the pod's node as they are.
fn direct(ebpf: &mut Ebpf, net: &Net, (number, name): (u8, &str), at: &Device<'_>, print: &mut impl FnMut(Line)) -> Result<()> {
    let tuple = Tuple::new(net.client.into(), Port::new(4001), net.remote.into(), Port::new(80), number);
    let mut entry = Nat::new(tuple, Nat::DIRECT, 1, 0, u64::MAX / 2);
    entry.state = u16::from(Flow::REPLIED);
    put(ebpf, map::NAT, tuple, entry)?;
    let program = fd(ebpf, prog::XDP_UPLINK)?;
    let forwarded = |packet: &[u8]| -> Result<(bool, u32)> {
        let (verdict, ns) = raw::run(program, packet, Some(at.index), 1)?;
        Ok((verdict == XDP_TX, ns))
    };
    let by_port = |port: u16| frame(number, (net.client, port), (net.remote, 80), false);
    let known = |packet: &[u8]| -> Result<u32> {
        let (done, ns) = forwarded(packet)?;
        ensure!(done, "an established packet was not forwarded");
        Ok(ns)
    };
    let (inside, translated) = (by_port(4001), by_port(4000));
    let (runs, beside_ns) = beside(|_| known(&inside), || known(&translated), 400)?;
    let line = Line::median(format!("XDP {} {name}, established to a backend elsewhere, DSR", net.name), "ns", &runs, Goal::None);
    print(line.beside("the same by SNAT, one run at a time", beside_ns, Goal::None));
    let of = |port: u16, from: u16| -> Vec<Vec<u8>> {
        (0..ROUNDS * 400).map(|n| frame(number, (net.client, from + n as u16), (net.node, port), true)).collect()
    };
    let (inside, translated) = (of(direct_port(number).get(), 20_000), of(node_port(number, true).get(), 30_000));
    let passed = Cell::new(0);
    let first = |packet: &[u8]| -> Result<u32> {
        let (done, ns) = forwarded(packet)?;
        // One packet in 65,536 looks as if its checksum were not complete.
        passed.set(passed.get() + u32::from(!done));
        ensure!(passed.get() <= 3, "first packets are not forwarded");
        Ok(ns)
    };
    let next = Cell::new(0);
    let translate = || first(&translated[next.replace(next.get() + 1)]);
    let (runs, beside_ns) = beside(|n| first(&inside[n]), translate, 400)?;
    let line = Line::median(format!("XDP {} {name}, first packet, by Maglev, DSR", net.name), "ns", &runs, Goal::None);
    print(line.beside("the same by SNAT", beside_ns, Goal::None));
    Ok(())
}

/// A flow that is known is not judged again, so that a policy costs its first packet only.
fn at_the_pod(ebpf: &mut Ebpf, net: &Net, print: &mut impl FnMut(Line)) -> Result<()> {
    const POD: u32 = 1;
    const PEER: u32 = 4242;
    let remote = Remote { identity: PEER, flags: 0 };
    let trie = LpmTrie::<_, Addr, Remote>::try_from(ebpf.map_mut(map::IPCACHE).context("IPCACHE")?);
    trie?.insert(&Key::new(128, net.remote.into()), remote, 0).context("write IPCACHE")?;
    for (way, port) in [(direction::EGRESS, 80), (direction::INGRESS, 4000)] {
        let key = PolicyKey::new(POD, way, PEER, proto::TCP, Port::new(port));
        let trie = LpmTrie::<_, PolicyKey, PolicyVerdict>::try_from(ebpf.map_mut(map::POLICY).context("POLICY")?);
        trie?
            .insert(&Key::new(PolicyKey::EXACT, key), PolicyVerdict { verdict: PolicyVerdict::ALLOW, rule: 1 }, 0)
            .context("write POLICY")?;
    }
    let empty = raw::empty(raw::SCHED_CLS)?;
    let (pod, peer) = ((net.pod, 4000), (net.remote, 80));
    for (flags, how) in [(0, "without policy"), (Endpoint::ISOLATE_EGRESS | Endpoint::ISOLATE_INGRESS, "with policy")] {
        // Without a context a classifier is told the loopback device.
        let endpoint = Endpoint { id: POD, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN };
        put(ebpf, map::ENDPOINTS, Addr::from(net.pod), endpoint)?;
        for (name, way, from, to) in [(prog::FROM_POD, direction::EGRESS, pod, peer), (prog::TO_POD, direction::INGRESS, peer, pod)] {
            let flow = Flow::new(way, Flow::REPLIED, 1, u64::MAX / 2);
            put(ebpf, map::FLOWS, FlowKey::new(POD, Port::new(4000), net.remote.into(), Port::new(80), proto::TCP), flow)?;
            let known = frame(proto::TCP, from, to, false);
            let program = fd(ebpf, name)?;
            let ours = |_| {
                let (verdict, ns) = raw::run(program, &known, None, 10_000)?;
                ensure!(verdict == u32::MAX, "{name}: a pod's packet did not pass: verdict {verdict}");
                Ok(ns)
            };
            let (runs, beside_ns) = beside(ours, || Ok(raw::run(empty.as_fd(), &known, None, 10_000)?.1), 10)?;
            let line = Line::median(format!("tc {} TCP, {name}, established, {how}", net.name), "ns", &runs, Goal::None);
            print(line.beside("empty classifier", beside_ns, Goal::None));
            // Each from a port of its own, which no policy looks at.
            let firsts: Vec<Vec<u8>> = (0..ROUNDS * 400).map(|n| frame(proto::TCP, (from.0, 10_000 + n as u16), to, true)).collect();
            let ours = |n: usize| {
                let (verdict, ns) = raw::run(program, &firsts[n], None, 1)?;
                ensure!(verdict == u32::MAX, "{name}: a pod's first packet did not pass: verdict {verdict}");
                Ok(ns)
            };
            let (runs, beside_ns) = beside(ours, || Ok(raw::run(empty.as_fd(), &firsts[0], None, 1)?.1), 400)?;
            let line = Line::median(format!("tc {} TCP, {name}, first packet, {how}", net.name), "ns", &runs, Goal::None);
            print(line.beside("empty classifier, one run at a time", beside_ns, Goal::None));
            forget_flows(ebpf)?;
        }
    }
    Ok(())
}

/// To another pod of the node both pods' policies are asked, unless a shortcut says that they have been.
fn between_pods(ebpf: &mut Ebpf, net: &Net, print: &mut impl FnMut(Line)) -> Result<()> {
    let endpoint = |id| {
        let flags = Endpoint::DIRECT | Endpoint::ISOLATE_EGRESS | Endpoint::ISOLATE_INGRESS;
        Endpoint { id, ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], flags, epoch: 1, netns: NetnsCookie::UNKNOWN }
    };
    let (pod, peer) = ((net.pod, 4000), (net.remote, 80));
    for (id, way, (own, port), (other, other_port)) in [(1, direction::EGRESS, pod, peer), (2, direction::INGRESS, peer, pod)] {
        put(ebpf, map::ENDPOINTS, Addr::from(own), endpoint(id))?;
        let flow = Flow::new(way, Flow::REPLIED, 1, u64::MAX / 2);
        put(ebpf, map::FLOWS, FlowKey::new(id, Port::new(port), other.into(), Port::new(other_port), proto::TCP), flow)?;
    }
    let tuple = Tuple::new(net.pod.into(), Port::new(pod.1), net.remote.into(), Port::new(peer.1), proto::TCP);
    let shortcut = Shortcut::new(tuple, 1, 1, u64::MAX, 0);
    let (known, empty) = (frame(proto::TCP, pod, peer, false), raw::empty(raw::SCHED_CLS)?);
    for how in ["judged", "by shortcut"] {
        if how == "by shortcut" {
            let mut map = PerCpuArray::<_, Shortcut>::try_from(ebpf.map_mut(map::SHORTCUTS).context("SHORTCUTS")?)?;
            let all = PerCpuValues::try_from(vec![shortcut; aya::util::nr_cpus().map_err(|(_, e)| e)?])?;
            map.set(Shortcut::place(&tuple), all, 0).context("write SHORTCUTS")?;
        }
        let program = fd(ebpf, prog::FROM_POD)?;
        let ours = |_| {
            let (verdict, ns) = raw::run(program, &known, None, 10_000)?;
            ensure!(verdict == TC_ACT_REDIRECT, "a packet to a pod of the node did not go there: verdict {verdict}");
            Ok(ns)
        };
        let (runs, beside_ns) = beside(ours, || Ok(raw::run(empty.as_fd(), &known, None, 10_000)?.1), 10)?;
        let line = Line::median(format!("tc {} TCP, from_pod to a pod of the node, established, {how}", net.name), "ns", &runs, Goal::None);
        print(line.beside("empty classifier", beside_ns, Goal::None));
    }
    hash::<Addr, Endpoint>(ebpf, map::ENDPOINTS)?.remove(&net.remote.into()).context("forget the pod")?;
    forget_flows(ebpf)
}

/// Flows of one measurement are not first packets' in the next.
fn forget_flows(ebpf: &mut Ebpf) -> Result<()> {
    let mut flows = hash::<FlowKey, Flow>(ebpf, map::FLOWS)?;
    let keys: Vec<FlowKey> = flows.keys().collect::<Result<_, _>>().context("read FLOWS")?;
    keys.iter().try_for_each(|key| flows.remove(key)).context("empty FLOWS")
}

/// A frame to the uplink, with its checksums and the greatest hop limit.
fn frame(number: u8, src: (IpAddr, u16), dst: (IpAddr, u16), opens: bool) -> Vec<u8> {
    let mut l4: Vec<u8> = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
    let sum_at = if number == proto::TCP {
        l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, if opens { 2 } else { 16 }, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        l4.extend([0, 16, 0, 0]);
        6
    };
    l4.extend(*b"measured");
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    let addresses = [octets(src.0), octets(dst.0)].concat();
    let mut pseudo = addresses.clone();
    pseudo.extend([0, number]);
    pseudo.extend((l4.len() as u16).to_be_bytes());
    let all = [pseudo, l4.clone()].concat();
    l4[sum_at..sum_at + 2].copy_from_slice(&checksum::of(&all, 0).to_ne_bytes());
    let mut bytes = [OWN, OWN].concat();
    if src.0.is_ipv4() {
        bytes.extend([8, 0]);
        let mut header = vec![0x45, 0, 0, (20 + l4.len()) as u8, 0, 0, 0x40, 0, 255, number, 0, 0];
        header.extend(addresses);
        let sum = checksum::of(&header, 0).to_ne_bytes();
        header[10..12].copy_from_slice(&sum);
        bytes.extend(header);
    } else {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4.len() as u8, number, 255]);
        bytes.extend(addresses);
    }
    bytes.extend(l4);
    bytes
}
