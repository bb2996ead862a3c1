//! Who has this address? Answers ARP requests and neighbour solicitations for load-balancer addresses,
//! which no device of the node carries. The question itself becomes the answer and goes back where it
//! came from.

use crate::checksum;
use crate::env::Env;
use crate::packet::{ArpFrame, Ipv6Header, LinkOption, NeighborMessage, Packet};
use crate::parse::L3;
use xebec_ebpf_abi::{Addr, Announced, AnnouncedKey, proto};

const REQUEST: u16 = 1u16.to_be();
const REPLY: u16 = 2u16.to_be();
const ETHERNET: u16 = 1u16.to_be();
const IPV4: u16 = 0x0800u16.to_be();
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Solicited, and to replace what the asker has cached.
const FLAGS: u32 = 0x6000_0000u32.to_be();
const TARGET_LINK_ADDRESS: u8 = 2;
const NDP: u32 = L3 + size_of::<Ipv6Header>() as u32;
const MESSAGE: u16 = size_of::<NeighborMessage>() as u16;
const OPTION: u16 = size_of::<LinkOption>() as u16;

#[inline(always)]
fn announced<E: Env>(env: &E, addr: Addr, ifindex: u32) -> Option<Announced> {
    env.announced(&AnnouncedKey { addr, ifindex })
}

/// Turns an ARP request for an announced address into its reply. False: it is not for us, and unchanged.
#[inline(never)]
pub fn arp<E: Env, P: Packet>(env: &E, packet: P, ifindex: u32) -> bool {
    let Some(mut frame) = packet.load::<ArpFrame>(0) else {
        return false;
    };
    let understood = frame.hardware == ETHERNET
        && frame.protocol == IPV4
        && frame.hardware_len == 6
        && frame.protocol_len == 4;
    // Who asks for the address it claims itself tells, and is told nothing.
    if !understood || frame.operation != REQUEST || frame.sender_ip == frame.target_ip {
        return false;
    }
    let Some(own) = announced(env, Addr::v4(frame.target_ip), ifindex) else {
        return false;
    };
    let asked = frame.target_ip;
    frame.dst = frame.sender_mac;
    frame.src = own.mac;
    frame.operation = REPLY;
    frame.target_mac = frame.sender_mac;
    frame.target_ip = frame.sender_ip;
    frame.sender_mac = own.mac;
    frame.sender_ip = asked;
    packet.store(0, &frame)
}

/// Turns a neighbour solicitation for an announced address into its advertisement. False as above.
///
/// The answer is as long as the question, so a question without the asker's hardware address is answered
/// without ours where that is allowed (it was sent to us alone), and a check for duplicates, which
/// comes from no address, is not answered.
#[inline(never)]
pub fn ndp<E: Env, P: Packet>(env: &E, packet: P, ifindex: u32) -> bool {
    let Some(mut ip) = packet.load::<Ipv6Header>(L3) else {
        return false;
    };
    let with_option = ip.payload_len == (MESSAGE + OPTION).to_be();
    let to_many = ip.dst[0].to_ne_bytes()[0] == 0xff;
    if ip.next != proto::ICMPV6 || ip.hop_limit != 255 || ip.src == [0; 4] {
        return false;
    }
    if !with_option && (to_many || ip.payload_len != MESSAGE.to_be()) {
        return false;
    }
    // What is cut short stays as it is, since nothing is written before all of it was there.
    if packet.len() < NDP + u32::from(u16::from_be(ip.payload_len)) {
        return false;
    }
    let Some(mut message) = packet.load::<NeighborMessage>(NDP) else {
        return false;
    };
    let target = Addr::from_words(message.target);
    if message.kind != SOLICITATION || message.code != 0 || target.is_v4() {
        return false;
    }
    let Some(own) = announced(env, target, ifindex) else {
        return false;
    };
    let Some(asker) = packet.load::<[u8; 6]>(6) else {
        return false;
    };
    ip.dst = ip.src;
    ip.src = message.target;
    message.kind = ADVERTISEMENT;
    message.flags = FLAGS;
    message.checksum = 0;
    let option = LinkOption {
        kind: TARGET_LINK_ADDRESS,
        len: 1,
        mac: own.mac,
    };
    message.checksum = sum(&ip, &message, with_option.then_some(&option));
    packet.store(0, &[asker, own.mac])
        && packet.store(L3, &ip)
        && packet.store(NDP, &message)
        && (!with_option || packet.store(NDP + u32::from(MESSAGE), &option))
}

#[inline(always)]
fn sum(ip: &Ipv6Header, message: &NeighborMessage, option: Option<&LinkOption>) -> u16 {
    let mut words = [0; 17];
    let mut i = 0;
    while i < 4 {
        words[i] = ip.src[i];
        words[4 + i] = ip.dst[i];
        words[8 + i] = message.target[i];
        i += 1;
    }
    words[12] = u32::from(u16::from_be(ip.payload_len)).to_be();
    words[13] = u32::from(proto::ICMPV6).to_be();
    words[14] = u32::from_ne_bytes([message.kind, message.code, 0, 0]);
    words[15] = message.flags;
    let mut total = checksum::diff(&[0; 17], &words);
    if let Some(o) = option {
        let m = o.mac;
        let two = [
            u32::from_ne_bytes([o.kind, o.len, m[0], m[1]]),
            u32::from_ne_bytes([m[2], m[3], m[4], m[5]]),
        ];
        total = checksum::add(total, checksum::diff(&[0; 2], &two));
    }
    checksum::apply(0xffff, total)
}
