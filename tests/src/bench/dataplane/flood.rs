//! A flood of small UDP packets from outside to a NodePort whose backend is on another node: what the node forwards in a second of
//! a CPU, beside nftables.
//!
//! The kernel makes the packets (live frames of `BPF_PROG_TEST_RUN`, as xdp-trafficgen has them made) and throws them away where
//! they come out, on the one CPU that also forwards them. That thread's time is what is counted, less what making them takes.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    bridge::{BridgeNode, Rule},
    node::{self, Cluster, Node, Port, Program, node_ip, wire},
    place, raw,
};
use crate::{
    bench::{Goal, Line, figures::percentile, processes},
    netns::net::Netns,
};

/// What to measure with.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    pub xebec: PathBuf,
    #[arg(long, default_value_t = 11)]
    pub rounds: usize,
    /// Packets a round.
    #[arg(long, default_value_t = 300_000)]
    pub packets: u32,
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
/// On the second node, which the generator's namespace plays.
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 244, 16, 5);
const PORT: u16 = 5353;
const NODE_PORT: u16 = 30053;
/// So many clients' ports there are, a power of two.
const FLOWS: u32 = 1024;
const FIRST_PORT: u32 = 20_000;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
const FRAME: usize = 60;

/// One instruction.
fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    u64::from(code) | u64::from(to | from << 4) << 8 | u64::from(offset as u16) << 16 | u64::from(number as u32) << 32
}

/// A program that writes the packet anew, as frames come back changed, with a source port by chance; and sends it out of a device,
/// or nowhere.
fn generator(packet: &[u8; FRAME], device: Option<u32>) -> Vec<u64> {
    let words = HEADERS / 4;
    let mut program = vec![
        op(0xbf, 6, 1, 0, 0),                 // r6 = context
        op(0x85, 0, 0, 0, 7),                 // r0 = bpf_get_prandom_u32()
        op(0x57, 0, 0, 0, FLOWS as i32 - 1),  // r0 &= FLOWS - 1
        op(0x07, 0, 0, 0, FIRST_PORT as i32), // r0 += FIRST_PORT
        op(0xdc, 0, 0, 0, 16),                // r0 = be16(r0)
        op(0x61, 2, 6, 0, 0),                 // r2 = context.data
        op(0x61, 3, 6, 4, 0),                 // r3 = context.data_end
        op(0xbf, 4, 2, 0, 0),                 // r4 = r2
        op(0x07, 4, 0, 0, HEADERS as i32),    // r4 += HEADERS
        op(0x2d, 4, 3, words as i16 + 6, 0),  // if r4 > r3 goto drop
    ];
    for word in 0..words {
        let bytes = [packet[word * 4], packet[word * 4 + 1], packet[word * 4 + 2], packet[word * 4 + 3]];
        program.push(op(0x62, 2, 0, word as i16 * 4, i32::from_le_bytes(bytes))); // the packet's next four bytes
    }
    program.push(op(0x6a, 2, 0, words as i16 * 4, i32::from(u16::from_le_bytes([packet[words * 4], packet[words * 4 + 1]]))));
    program.push(op(0x6b, 2, 0, 34, 0)); // the source port
    program.push(op(0xb7, 1, 0, 0, device.unwrap_or(0) as i32));
    program.push(op(0xb7, 2, 0, 0, 0));
    program.push(match device {
        Some(_) => op(0x85, 0, 0, 0, 23), // r0 = bpf_redirect(device, 0)
        None => op(0xb7, 0, 0, 0, 1),     // r0 = XDP_DROP
    });
    program.push(op(0x95, 0, 0, 0, 0));
    program.extend([op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)]); // drop
    program
}

/// A UDP packet without a checksum of its own.
fn packet(from_mac: [u8; 6], to_mac: [u8; 6], to: Ipv4Addr) -> [u8; FRAME] {
    let mut packet = [0; FRAME];
    packet[..6].copy_from_slice(&to_mac);
    packet[6..12].copy_from_slice(&from_mac);
    packet[12..14].copy_from_slice(&[8, 0]);
    let length = (FRAME - 14) as u16;
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&length.to_be_bytes());
    packet[22..24].copy_from_slice(&[64, 17]);
    packet[26..30].copy_from_slice(&CLIENT.octets());
    packet[30..34].copy_from_slice(&to.octets());
    let sum: u32 = packet[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    packet[36..38].copy_from_slice(&NODE_PORT.to_be_bytes());
    packet[38..40].copy_from_slice(&(length - 20).to_be_bytes());
    packet
}

/// The device's index, hardware address and received packets.
fn device(netns: &Netns) -> Result<(u32, [u8; 6], u64)> {
    let told: Value = serde_json::from_str(&netns.ip("-s -j link show dev up0")).context("what ip tells of up0")?;
    let told = &told[0];
    let bytes: Vec<u8> =
        told["address"].as_str().unwrap_or_default().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mac = bytes.try_into().ok().context("up0 without a hardware address")?;
    let index = told["ifindex"].as_u64().context("up0 without an index")?;
    Ok((index.try_into()?, mac, told["stats64"]["rx"]["packets"].as_u64().context("up0 without figures")?))
}

/// Receive offload, which makes a veth take frames.
fn take_frames(netns: &Netns) -> Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const SET_GRO: u32 = 0x2c;
    netns.run(|| {
        // Command and value.
        let mut setting = [SET_GRO, 1];
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ifr_name.iter_mut().zip(b"up0").for_each(|(to, from)| *to = *from as libc::c_char);
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut setting).cast() };
        let mut request = libc::ifreq { ifr_name, ifr_ifru };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        // SAFETY: the request names a device with its terminating zero and points to a live block of the size the call takes.
        let code = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL, &raw mut request) };
        ensure!(code == 0, "no receive offload on up0: {}", std::io::Error::last_os_error());
        Ok(())
    })
}

/// Where packets are made and thrown away, and a node that forwards them.
struct Scene {
    name: &'static str,
    /// The generator's side, which is also the way to the second node.
    outside: Netns,
    generator: OwnedFd,
    packet: [u8; FRAME],
    /// Forwarded packets a second of CPU time, one a round.
    figures: Vec<f64>,
    _sink: [OwnedFd; 2],
    _forwards: Forwards,
}

/// Kept while it forwards.
#[expect(dead_code, reason = "held for what dropping them ends")]
enum Forwards {
    Rules(BridgeNode),
    Ours(Box<Node>, Cluster),
}

impl Scene {
    fn new(name: &'static str, forwards: impl FnOnce(Netns) -> Result<Forwards>) -> Result<Scene> {
        let [inside, outside] = wire();
        take_frames(&inside)?;
        let ((_, to_mac, _), (index, mac, _)) = (device(&inside)?, device(&outside)?);
        // What comes out is thrown away, questions for neighbours too.
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        for ip in [CLIENT, node_ip(2)] {
            inside.ip(&format!("neigh replace {ip} lladdr {text} dev up0 nud permanent"));
        }
        let drop_all = raw::load(raw::XDP, &[op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)])?;
        let link = outside.run(|| raw::attach_xdp(drop_all.as_fd(), index)).context("no XDP on a veth")?;
        let packet = packet(mac, to_mac, node_ip(1));
        let generator = raw::load(raw::XDP, &generator(&packet, Some(index))).context("the generator")?;
        let forwards = forwards(inside)?;
        Ok(Scene { name, outside, generator, packet, figures: Vec::new(), _sink: [drop_all, link], _forwards: forwards })
    }

    /// How many of `packets` came out, and the CPU time of it all.
    fn flood(&self, packets: u32) -> Result<(u64, Duration)> {
        let before = device(&self.outside)?.2;
        let time = self.outside.run(|| timed(&self.generator, &self.packet, packets))?;
        Ok((device(&self.outside)?.2 - before, time))
    }
}

/// CPU time of a run on the first CPU, before everything else.
fn timed(program: &OwnedFd, packet: &[u8], packets: u32) -> Result<Duration> {
    processes::stay()?;
    place::go_first()?;
    let begin = cpu_time()?;
    raw::live(program.as_fd(), packet, packets).context("live frames")?;
    Ok(cpu_time()?.saturating_sub(begin))
}

/// Of this thread.
fn cpu_time() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the one value it is given.
    nix::errno::Errno::result(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

fn rules(inside: Netns) -> Result<Forwards> {
    let node = BridgeNode::new(1, inside)?;
    node.route_to(2);
    node.load(&[Rule { proto: "udp", ip: SERVICE, port: PORT, node_port: Some(NODE_PORT), backend: BACKEND, target: PORT }])?;
    Ok(Forwards::Rules(node))
}

fn ours(args: &Args, inside: Netns, more: &'static [&'static str], driver: bool) -> Result<Forwards> {
    let cluster = Cluster::new(Program::Xebec(args.xebec.clone(), more))?;
    cluster.announce(2);
    cluster.service("flood", SERVICE, &[Port { protocol: "UDP", port: PORT, node_port: Some(NODE_PORT) }], BACKEND, 2);
    let node = cluster.node(1, inside)?;
    // The Service's address, its port, and its NodePort.
    node::until("the Service is in the map", || Ok(node.frontends().is_ok_and(|count| count >= 3)))?;
    node::until("the program is on the uplink", || Ok(node.is_pinned("links/up0-from_uplink")))?;
    ensure!(node.is_pinned("links/up0-xdp_uplink") == driver, "XDP is not used as it was asked for");
    Ok(Forwards::Ours(Box::new(node), cluster))
}

/// Prints the figures; whether every goal is met. Call it while the process has one thread: it changes its mounts.
pub fn run(args: &Args) -> Result<bool> {
    node::own_mounts()?;
    let mut scenes = [
        Scene::new("nftables DNAT", rules)?,
        Scene::new("tc", |inside| ours(args, inside, &["--xdp", "off"], false))?,
        Scene::new("XDP", |inside| ours(args, inside, &["--xdp", "all"], true))?,
    ];
    let alone = raw::load(raw::XDP, &generator(&scenes[0].packet, None))?;
    for scene in &scenes {
        // Every flow is known before anything is counted.
        node::until(&format!("{} forwards", scene.name), || Ok(scene.flood(FLOWS * 16)?.0 > u64::from(FLOWS) * 15))?;
    }
    for _ in 0..args.rounds {
        let making = std::thread::scope(|scope| scope.spawn(|| timed(&alone, &scenes[0].packet, args.packets)).join());
        let making = making.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        for scene in &mut scenes {
            let (came, time) = scene.flood(args.packets)?;
            if came < u64::from(args.packets) * 9 / 10 {
                bail!("{}: of {} packets {came} came out", scene.name, args.packets);
            }
            scene.figures.push(came as f64 / time.saturating_sub(making).as_secs_f64());
        }
        scenes.rotate_left(1);
    }
    scenes.sort_by_key(|scene| scene.name);
    let mut met = true;
    for line in lines(&scenes) {
        met &= line.met != Some(false);
        line.print();
    }
    Ok(met)
}

fn lines(scenes: &[Scene]) -> Vec<Line> {
    let what = "outside to NodePort under a UDP flood, backend on another node";
    let of = |name: &str| scenes.iter().find(|scene| scene.name == name).map_or(&[][..], |scene| &scene.figures);
    let mut lines: Vec<Line> =
        scenes.iter().map(|scene| Line::median(format!("{what}, {}", scene.name), "packets/CPU-s", &scene.figures, Goal::None)).collect();
    let rules = of("nftables DNAT");
    for (name, goal) in [("tc", Goal::None), ("XDP", Goal::AtLeast(5.0))] {
        let ratios: Vec<f64> = of(name).iter().zip(rules).map(|(ours, rules)| ours / rules).collect();
        let mut line = Line::median(format!("{what}, {name} over nftables DNAT, by round"), "ratio", &ratios, goal);
        line.beside = Some(format!("nftables DNAT {:.0} packets/CPU-s", percentile(rules, 50.0)));
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_is_whole() {
        let packet = packet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], node_ip(1));
        let sum: u32 = packet[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the header's checksum");
        assert_eq!(u16::from_be_bytes([packet[36], packet[37]]), NODE_PORT);
        assert_eq!(u16::from_be_bytes([packet[38], packet[39]]) as usize, FRAME - 34);
    }

    #[test]
    fn a_frame_that_is_too_short_is_dropped() {
        let program = generator(&[0; FRAME], Some(1));
        let jump = program.iter().position(|op| *op & 0xff == 0x2d).expect("a bounds check");
        let target = jump + 1 + (program[jump] >> 16 & 0xffff) as usize;
        assert_eq!(program[target..], [op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)]);
    }
}
