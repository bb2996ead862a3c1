//! What is in a packet.

use crate::checksum;
use crate::packet::{IcmpStart, Ipv4Header, Ipv6Extension, Ipv6Header, Packet, Ports, TcpStart};
use crate::service::Chosen;
use xebec_ebpf_abi::{Addr, DropReason, Port, Tuple, proto};

/// Ethernet without tags.
pub const L3: u32 = 14;
/// Ethertypes, in host order.
pub const ETH_IPV4: u16 = 0x0800;
pub const ETH_IPV6: u16 = 0x86dd;
pub const ETH_ARP: u16 = 0x0806;

/// TCP flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// An IP version.
pub trait Family {
    /// The address as it lies in the header.
    type Addr: Copy + crate::packet::Plain;
    const IS_V4: bool;
    /// ICMP of this family.
    const ICMP: u8;
    /// Offset of the source address in the header; the destination follows it.
    const ADDRS: u32;
    /// Offset of the header's checksum.
    const CHECKSUM: Option<u32>;

    fn addr(raw: Self::Addr) -> Addr;
    fn raw(addr: Addr) -> Self::Addr;
    /// What changes in a sum over source and destination.
    fn diff(old: (Addr, Addr), new: (Addr, Addr)) -> u32;
    /// The IP header at `l3` and what leads to the transport header.
    fn network<P: Packet>(packet: P, l3: u32) -> Result<Network, DropReason>;
    fn icmp_kind(kind: u8) -> Kind;
}

pub struct V4;
pub struct V6;

/// The IP header, read.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    pub ttl: u8,
    /// Offset of the transport header.
    pub l4: u32,
    pub fragment: Fragment,
    /// Names the datagram when it is fragmented.
    pub fragment_id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First,
    /// Without a transport header.
    Later,
}

/// What the transport header is, as far as it is treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    /// UDP, SCTP.
    Ports,
    EchoRequest,
    EchoReply,
    /// An ICMP error; it carries the start of the packet it is about.
    IcmpError,
    /// Neighbour discovery and multicast listener reports: they keep the link itself going.
    Link,
    /// No ports.
    Other,
}

/// A packet, read.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// What names the flow: the packet's own tuple, or for an ICMP error the tuple of the packet it is
    /// about, reversed, so that it points where the error goes.
    pub tuple: Tuple,
    /// What the tuple is to become, once that is decided.
    pub to: Tuple,
    /// The Service that is asked for, where packets leave a pod: their destination, unless `steer` says
    /// otherwise.
    pub asked: (Addr, Port),
    /// The backend that was chosen for a new flow.
    pub backend: Chosen,
    /// The set it was chosen of where packets leave a pod, as long as that is not remembered; 0: nothing is
    /// to be remembered.
    pub chosen_of: u32,
    /// Bits of `Headers::*`: what was found out about the packet.
    pub notes: u32,
    /// What is done with it where it comes in from another machine: see `uplink`.
    pub path: u32,
    /// The device it leaves by, where that is not the stack's to say.
    pub device: u32,
    /// How many bytes of it would fit its way, where it is too big.
    pub fits: u32,
    /// Number of the reason it was refused for, where it was answered instead of dropped.
    pub refused: u32,
    /// The Service it is for, as far as this program has found one: `Frontend::service`.
    pub service: u32,
    /// Rules that policy allowed or denied it by, by `abi::direction`.
    pub rules: [u32; 2],
    /// `Endpoint::id` of the pod it leaves, if that has a limit.
    pub limited: u32,
    /// `GENERATION` as it was when the packet came, where shortcuts are made.
    pub generation: u64,
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    pub kind: Kind,
    pub tcp_flags: u8,
    pub ttl: u8,
    pub l4: u32,
    pub fragment: Fragment,
    pub fragment_id: u32,
    /// Offset of the IP header inside an ICMP error, and of the transport header behind it.
    pub inner_l3: u32,
    pub inner_l4: u32,
    /// Kind of the packet inside an ICMP error.
    pub inner_kind: Kind,
}

impl Family for V4 {
    type Addr = u32;
    const IS_V4: bool = true;
    const ICMP: u8 = proto::ICMP;
    const ADDRS: u32 = 12;
    const CHECKSUM: Option<u32> = Some(10);

    #[inline(always)]
    fn addr(raw: u32) -> Addr {
        Addr::from_v4_word(raw)
    }

    #[inline(always)]
    fn raw(addr: Addr) -> u32 {
        addr.words()[3]
    }

    #[inline(always)]
    fn diff(old: (Addr, Addr), new: (Addr, Addr)) -> u32 {
        checksum::diff(
            &[V4::raw(old.0), V4::raw(old.1)],
            &[V4::raw(new.0), V4::raw(new.1)],
        )
    }

    #[inline(always)]
    fn network<P: Packet>(packet: P, l3: u32) -> Result<Network, DropReason> {
        let header: Ipv4Header = packet.load(l3).ok_or(DropReason::Malformed)?;
        let header_len = u32::from(header.version_ihl & 0xf) * 4;
        if header.version_ihl >> 4 != 4 || header_len < 20 {
            return Err(DropReason::Malformed);
        }
        let fragment = u16::from_be(header.fragment);
        Ok(Network {
            src: Addr::from_v4_word(header.src),
            dst: Addr::from_v4_word(header.dst),
            proto: header.proto,
            ttl: header.ttl,
            l4: l3 + header_len,
            fragment: if fragment & 0x1fff != 0 {
                Fragment::Later
            } else if fragment & 0x2000 != 0 {
                Fragment::First
            } else {
                Fragment::Whole
            },
            fragment_id: u32::from(header.id),
        })
    }

    #[inline(always)]
    fn icmp_kind(kind: u8) -> Kind {
        match kind {
            8 => Kind::EchoRequest,
            0 => Kind::EchoReply,
            3 | 11 | 12 => Kind::IcmpError,
            _ => Kind::Other,
        }
    }
}

/// How many IPv6 extension headers are walked.
const EXTENSIONS: usize = 6;

impl Family for V6 {
    type Addr = [u32; 4];
    const IS_V4: bool = false;
    const ICMP: u8 = proto::ICMPV6;
    const ADDRS: u32 = 8;
    const CHECKSUM: Option<u32> = None;

    #[inline(always)]
    fn addr(raw: [u32; 4]) -> Addr {
        Addr::from_words(raw)
    }

    #[inline(always)]
    fn raw(addr: Addr) -> [u32; 4] {
        addr.words()
    }

    #[inline(always)]
    fn diff(old: (Addr, Addr), new: (Addr, Addr)) -> u32 {
        let src = checksum::diff(&old.0.words(), &new.0.words());
        checksum::add(src, checksum::diff(&old.1.words(), &new.1.words()))
    }

    #[inline(always)]
    fn network<P: Packet>(packet: P, l3: u32) -> Result<Network, DropReason> {
        let header: Ipv6Header = packet.load(l3).ok_or(DropReason::Malformed)?;
        if u32::from_be(header.version_class_flow) >> 28 != 6 {
            return Err(DropReason::Malformed);
        }
        let mut network = Network {
            src: Addr::from_words(header.src),
            dst: Addr::from_words(header.dst),
            proto: header.next,
            ttl: header.hop_limit,
            l4: l3 + 40,
            fragment: Fragment::Whole,
            fragment_id: 0,
        };
        if network.src.is_v4() || network.dst.is_v4() {
            return Err(DropReason::MappedAddress);
        }
        for _ in 0..EXTENSIONS {
            let shift = match network.proto {
                // Hop-by-hop, routing, destination options, mobility: length in units of 8 after 8.
                0 | 43 | 60 | 135 => 3,
                // Authentication: length in units of 4 after 8.
                51 => 2,
                44 => 0,
                _ => return Ok(network),
            };
            let extension: Ipv6Extension = packet.load(network.l4).ok_or(DropReason::Malformed)?;
            if shift == 0 {
                let fragment = u16::from_be(extension.fragment);
                network.fragment_id = extension.id;
                if fragment & 0xfff8 != 0 {
                    network.fragment = Fragment::Later;
                    network.proto = extension.next;
                    network.l4 += 8;
                    return Ok(network);
                }
                // Offset 0 without more to come is a whole datagram (an atomic fragment).
                if fragment & 1 != 0 {
                    network.fragment = Fragment::First;
                }
                network.l4 += 8;
            } else {
                network.l4 += 8 + (u32::from(extension.len) << shift);
            }
            network.proto = extension.next;
        }
        Err(DropReason::Malformed)
    }

    #[inline(always)]
    fn icmp_kind(kind: u8) -> Kind {
        match kind {
            128 => Kind::EchoRequest,
            129 => Kind::EchoReply,
            1..=4 => Kind::IcmpError,
            130..=137 | 143 => Kind::Link,
            _ => Kind::Other,
        }
    }
}

/// Ports (or what stands for them) of a transport header.
#[derive(Clone, Copy)]
struct Transport {
    sport: Port,
    dport: Port,
    kind: Kind,
    tcp_flags: u8,
}

/// `inner`: inside an ICMP error only the first 8 bytes have to be there.
#[inline(always)]
fn transport<F: Family, P: Packet>(
    packet: P,
    network: &Network,
    inner: bool,
) -> Result<Transport, DropReason> {
    if network.proto == proto::TCP && !inner {
        let tcp: TcpStart = packet.load(network.l4).ok_or(DropReason::Malformed)?;
        return Ok(Transport {
            sport: Port::from_raw(tcp.sport),
            dport: Port::from_raw(tcp.dport),
            kind: Kind::Tcp,
            tcp_flags: tcp.flags,
        });
    }
    if network.proto == proto::TCP || network.proto == proto::UDP || network.proto == proto::SCTP {
        let ports: Ports = packet.load(network.l4).ok_or(DropReason::Malformed)?;
        return Ok(Transport {
            sport: Port::from_raw(ports.sport),
            dport: Port::from_raw(ports.dport),
            kind: if network.proto == proto::TCP {
                Kind::Tcp
            } else {
                Kind::Ports
            },
            tcp_flags: 0,
        });
    }
    if network.proto == F::ICMP {
        let icmp: IcmpStart = packet.load(network.l4).ok_or(DropReason::Malformed)?;
        let kind = F::icmp_kind(icmp.kind);
        let (sport, dport) = match kind {
            Kind::EchoRequest => (Port::from_raw(icmp.id), NONE),
            Kind::EchoReply => (NONE, Port::from_raw(icmp.id)),
            Kind::IcmpError | Kind::Link | Kind::Other | Kind::Tcp | Kind::Ports => (NONE, NONE),
        };
        return Ok(Transport {
            sport,
            dport,
            kind,
            tcp_flags: 0,
        });
    }
    Ok(Transport {
        sport: NONE,
        dport: NONE,
        kind: Kind::Other,
        tcp_flags: 0,
    })
}

impl Headers {
    /// In `notes`: the pod talks to itself through a Service, and that is not remembered yet.
    pub const TO_ITSELF: u32 = 1;
    /// It is the first packet of a flow.
    pub const NEW: u32 = 2;
    /// The packet has not been read, or could not be: all else here is of another one.
    pub const UNREAD: u32 = 4;
    /// It was rewritten.
    pub const TRANSLATED: u32 = 8;
    /// Its flow lives longer because of it.
    pub const PUSHED: u32 = 16;
    /// Its flow's packets go to a pod elsewhere as they are: see `direct`.
    pub const DIRECT: u32 = 32;

    /// Of no packet; [`parse`] fills it.
    pub const EMPTY: Headers = Headers {
        tuple: NO_TUPLE,
        to: NO_TUPLE,
        asked: (Addr::ANY, NONE),
        backend: Chosen::NONE,
        chosen_of: 0,
        notes: 0,
        path: 0,
        device: 0,
        fits: 0,
        refused: 0,
        service: 0,
        rules: [0; 2],
        limited: 0,
        generation: 0,
        src: Addr::ANY,
        dst: Addr::ANY,
        proto: 0,
        kind: Kind::Other,
        tcp_flags: 0,
        ttl: 0,
        l4: 0,
        fragment: Fragment::Whole,
        fragment_id: 0,
        inner_l3: 0,
        inner_l4: 0,
        inner_kind: Kind::Other,
    };
}

impl Headers {
    /// Says that the packet was rewritten to `to`.
    #[inline(always)]
    pub fn translated(&mut self) {
        if self.src == self.tuple.src {
            self.src = self.to.src;
        }
        self.dst = self.to.dst;
        self.tuple = self.to;
        self.notes |= Headers::TRANSLATED;
    }
}

const NONE: Port = Port::from_raw(0);
pub(crate) const NO_TUPLE: Tuple = Tuple::new(Addr::ANY, NONE, Addr::ANY, NONE, 0);

/// Reads a packet whose IP header is at [`L3`]. A later fragment comes back with zero ports and
/// [`Fragment::Later`]: see [`crate::conntrack::fragment`].
///
/// A function of its own in the kernel too, and its result in memory: so what is known about a header
/// on one path (that it is TCP without options, say) is forgotten where the paths meet, and the
/// verifier walks what follows once, not once a path.
#[inline(never)]
pub fn parse<F: Family, P: Packet>(packet: P, headers: &mut Headers) -> Result<(), DropReason> {
    let network = F::network(packet, L3)?;
    *headers = Headers {
        tuple: Tuple::new(network.src, NONE, network.dst, NONE, network.proto),
        src: network.src,
        dst: network.dst,
        proto: network.proto,
        ttl: network.ttl,
        l4: network.l4,
        fragment: network.fragment,
        fragment_id: network.fragment_id,
        ..Headers::EMPTY
    };
    if network.fragment == Fragment::Later {
        return Ok(());
    }
    let outside = transport::<F, P>(packet, &network, false)?;
    headers.kind = outside.kind;
    headers.tcp_flags = outside.tcp_flags;
    headers.tuple.sport = outside.sport;
    headers.tuple.dport = outside.dport;
    if outside.kind == Kind::IcmpError {
        let inner = F::network(packet, network.l4 + 8)?;
        if inner.fragment == Fragment::Later {
            // Which flow it is about cannot be told.
            return Err(DropReason::IcmpUnrelated);
        }
        let inside = transport::<F, P>(packet, &inner, true)?;
        headers.inner_l3 = network.l4 + 8;
        headers.inner_l4 = inner.l4;
        headers.inner_kind = inside.kind;
        headers.tuple = Tuple::new(
            inner.dst,
            inside.dport,
            inner.src,
            inside.sport,
            inner.proto,
        );
    }
    Ok(())
}
