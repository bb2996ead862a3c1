//! Reading and rewriting packets of any content.

mod fake;

use fake::Bytes;
use proptest::prelude::*;
use std::cell::RefCell;
use xebec_ebpf_abi::{Addr, Port, Tuple, proto};
use xebec_ebpf_logic::{
    checksum,
    parse::{Headers, Kind, V4, V6, parse},
    rewrite::rewrite,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    Tcp,
    Udp,
    Echo { reply: bool },
}

/// Sum over the pseudo header as the packet's own words.
fn pseudo(v4: bool, frame: &[u8], proto: u8, len: usize) -> u32 {
    let addrs = if v4 { &frame[26..34] } else { &frame[22..54] };
    let mut bytes = addrs.to_vec();
    bytes.extend([0, proto]);
    bytes.extend((len as u16).to_be_bytes());
    u32::from(!checksum::of(&bytes, 0))
}

fn l4_at(v4: bool) -> usize {
    if v4 { 34 } else { 54 }
}

fn fields(v4: bool, transport: Transport) -> (u8, usize) {
    match transport {
        Transport::Tcp => (proto::TCP, 16),
        Transport::Udp => (proto::UDP, 6),
        Transport::Echo { .. } => (if v4 { proto::ICMP } else { proto::ICMPV6 }, 2),
    }
}

fn l4_sum(v4: bool, transport: Transport, frame: &[u8]) -> u16 {
    let (proto, _) = fields(v4, transport);
    let l4 = &frame[l4_at(v4)..];
    let start = if proto == proto::ICMP {
        0
    } else {
        pseudo(v4, frame, proto, l4.len())
    };
    checksum::of(l4, start)
}

fn build(v4: bool, transport: Transport, tuple: &Tuple, data: &[u8]) -> Vec<u8> {
    let (proto, sum_at) = fields(v4, transport);
    let mut l4 = match transport {
        Transport::Tcp => {
            let mut l4 = vec![0; 20];
            l4[12] = 5 << 4;
            l4
        }
        Transport::Udp => vec![0; 8],
        Transport::Echo { reply } => {
            let mut l4 = vec![0; 8];
            l4[0] = match (v4, reply) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            l4
        }
    };
    match transport {
        Transport::Tcp | Transport::Udp => {
            l4[0..2].copy_from_slice(&tuple.sport.raw().to_ne_bytes());
            l4[2..4].copy_from_slice(&tuple.dport.raw().to_ne_bytes());
        }
        Transport::Echo { reply } => {
            let id = if reply { tuple.dport } else { tuple.sport };
            l4[4..6].copy_from_slice(&id.raw().to_ne_bytes());
        }
    }
    l4.extend(data);
    if transport == Transport::Udp {
        let len = (l4.len() as u16).to_be_bytes();
        l4[4..6].copy_from_slice(&len);
    }
    let mut frame = vec![0; 14];
    if v4 {
        let len = (20 + l4.len() as u16).to_be_bytes();
        frame.extend([0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, proto, 0, 0]);
        frame.extend(&tuple.src.octets()[12..]);
        frame.extend(&tuple.dst.octets()[12..]);
        let sum = checksum::of(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    } else {
        let len = (l4.len() as u16).to_be_bytes();
        frame.extend([0x60, 0, 0, 0, len[0], len[1], proto, 64]);
        frame.extend(tuple.src.octets());
        frame.extend(tuple.dst.octets());
    }
    frame.extend(l4);
    let mut sum = l4_sum(v4, transport, &frame);
    if transport == Transport::Udp && sum == 0 {
        sum = 0xffff;
    }
    let at = l4_at(v4) + sum_at;
    frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    frame
}

fn read(v4: bool, frame: &RefCell<Vec<u8>>) -> Headers {
    let mut headers = Headers::EMPTY;
    let read = if v4 {
        parse::<V4, _>(Bytes(frame), &mut headers)
    } else {
        parse::<V6, _>(Bytes(frame), &mut headers)
    };
    read.expect("the packet is whole");
    headers
}

fn change(v4: bool, frame: &RefCell<Vec<u8>>, to: &Tuple) {
    let mut headers = read(v4, frame);
    headers.to = *to;
    let done = if v4 {
        rewrite::<V4, _>(Bytes(frame), &headers)
    } else {
        rewrite::<V6, _>(Bytes(frame), &headers)
    };
    done.expect("the packet is rewritten");
}

/// All checksums hold (a sum over a packet with its checksum is zero).
fn check(v4: bool, transport: Transport, frame: &[u8]) {
    if v4 {
        assert_eq!(checksum::of(&frame[14..34], 0), 0, "IPv4 header");
    }
    assert_eq!(l4_sum(v4, transport, frame), 0, "{transport:?}");
}

fn addr(v4: bool) -> BoxedStrategy<Addr> {
    if v4 {
        any::<[u8; 4]>().prop_map(Addr::v4).boxed()
    } else {
        // Not a mapped address: those are refused.
        any::<[u8; 16]>()
            .prop_map(|mut o| {
                o[0] |= 0x20;
                Addr::v6(o)
            })
            .boxed()
    }
}

fn tuple(v4: bool, transport: Transport) -> impl Strategy<Value = Tuple> {
    let (proto, _) = fields(v4, transport);
    (addr(v4), addr(v4), 1u16.., 1u16..).prop_map(move |(src, dst, sport, dport)| {
        let (sport, dport) = match transport {
            Transport::Tcp | Transport::Udp => (sport, dport),
            Transport::Echo { reply: false } => (sport, 0),
            Transport::Echo { reply: true } => (0, dport),
        };
        Tuple::new(src, Port::new(sport), dst, Port::new(dport), proto)
    })
}

fn case() -> impl Strategy<Value = (bool, Transport, Tuple, Tuple)> {
    let transport = prop_oneof![
        Just(Transport::Tcp),
        Just(Transport::Udp),
        Just(Transport::Echo { reply: false }),
        Just(Transport::Echo { reply: true }),
    ];
    (any::<bool>(), transport).prop_flat_map(|(v4, transport)| {
        (
            Just(v4),
            Just(transport),
            tuple(v4, transport),
            tuple(v4, transport),
        )
    })
}

proptest! {
    #[test]
    fn a_rewritten_packet_says_the_new_tuple_and_its_checksums_hold(
        (v4, transport, from, to) in case(),
        data in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let original = build(v4, transport, &from, &data);
        check(v4, transport, &original);
        let frame = RefCell::new(original.clone());
        prop_assert_eq!(read(v4, &frame).tuple, from);
        change(v4, &frame, &to);
        check(v4, transport, &frame.borrow());
        prop_assert_eq!(read(v4, &frame).tuple, to);
        let l4 = l4_at(v4);
        prop_assert_eq!(&frame.borrow()[frame.borrow().len() - data.len()..], &data[..]);
        // And back.
        change(v4, &frame, &from);
        check(v4, transport, &frame.borrow());
        prop_assert_eq!(read(v4, &frame).tuple, from);
        prop_assert_eq!(&frame.borrow()[l4 + 8..l4 + 8.max(data.len())], &original[l4 + 8..l4 + 8.max(data.len())]);
    }

    #[test]
    fn an_icmp_error_follows_the_packet_it_is_about(
        (v4, transport, from, to) in case(),
        router in any::<[u8; 16]>(),
    ) {
        // The packet left as `to.reversed()`; the error must arrive as if it had left as the reverse of
        // `from`: its tuple points where the error goes.
        let sent = build(v4, transport, &from.reversed(), b"some data");
        let router = if v4 { Addr::v4([router[0], router[1], router[2], router[3]]) } else {
            let mut o = router; o[0] |= 0x20; Addr::v6(o)
        };
        prop_assume!(router != from.src);
        let outer = Tuple::new(router, Port::new(0), from.dst, Port::new(0), 0);
        let mut data = vec![0; 0];
        data.extend(&sent[14..]);
        let mut frame = build(v4, Transport::Echo { reply: false }, &outer, &data);
        let at = l4_at(v4);
        frame[at] = if v4 { 3 } else { 1 };
        frame[at + 2..at + 4].fill(0);
        let sum = l4_sum(v4, Transport::Echo { reply: false }, &frame);
        frame[at + 2..at + 4].copy_from_slice(&sum.to_ne_bytes());
        let frame = RefCell::new(frame);
        let headers = read(v4, &frame);
        prop_assert_eq!(headers.kind, Kind::IcmpError);
        // Inside an echo reply of the reversed tuple is an echo request, whose ports lie the other way.
        prop_assume!(!matches!(transport, Transport::Echo { .. }));
        prop_assert_eq!(headers.tuple, from);
        change(v4, &frame, &to);
        check(v4, Transport::Echo { reply: false }, &frame.borrow());
        let after = read(v4, &frame);
        prop_assert_eq!(after.tuple, to);
        prop_assert_eq!((after.src, after.dst), (router, to.dst));
        if v4 {
            prop_assert_eq!(checksum::of(&frame.borrow()[42..62], 0), 0, "IPv4 header inside");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic_and_within_the_packet(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        v4 in any::<bool>(),
        start in 0usize..4,
    ) {
        let mut bytes = bytes;
        // Steer towards what is read further: a version, a protocol.
        if bytes.len() > 24 && start > 0 {
            bytes[14] = if v4 { 0x45 + (start as u8 - 1) } else { 0x60 };
            bytes[if v4 { 23 } else { 20 }] = [6, 17, 1, 58, 0, 44, 60][bytes[15] as usize % 7];
        }
        let frame = RefCell::new(bytes);
        let mut headers = Headers::EMPTY;
        let read = if v4 { parse::<V4, _>(Bytes(&frame), &mut headers) } else { parse::<V6, _>(Bytes(&frame), &mut headers) };
        if read.is_ok() && headers.kind == Kind::Tcp {
            prop_assert!(headers.l4 as usize + 14 <= frame.borrow().len());
        }
    }
}
