//! Who has a load-balancer address: questions from the wire, answered.

use crate::fixture::{Dataplane, REDIRECT, UNSPEC};
use std::net::Ipv6Addr;
use xebec_ebpf_abi::{Addr, Announced, AnnouncedKey, map, prog};
use xebec_ebpf_logic::checksum;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
const VIP4: [u8; 4] = [192, 0, 2, 100];
const ASKER4: [u8; 4] = [192, 0, 2, 9];

fn vip6() -> Ipv6Addr {
    "2001:db8::100".parse().expect("an address")
}

fn asker6() -> Ipv6Addr {
    "2001:db8::9".parse().expect("an address")
}

fn node() -> Dataplane {
    let mut dp = Dataplane::load();
    for addr in [Addr::v4(VIP4), Addr::v6(vip6().octets())] {
        dp.put(map::ANNOUNCED, AnnouncedKey { addr, ifindex: 1 }, Announced::new(OWN));
    }
    // On another device it is not answered for.
    dp.put(map::ANNOUNCED, AnnouncedKey { addr: Addr::v4([192, 0, 2, 101]), ifindex: 2 }, Announced::new(OWN));
    dp
}

fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &ASKER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation], &ASKER, &sender, &[0; 6], &target].concat();
    // Ethernet's shortest frame.
    frame.resize(60, 0);
    frame
}

#[test]
fn arp_requests_for_announced_addresses_are_answered_where_they_came_from() {
    let dp = node();
    // A question of an asker with an address, and the probe of one that is about to take the address.
    for asker in [ASKER4, [0; 4]] {
        let out = dp.run(prog::FROM_UPLINK, &arp(1, asker, VIP4));
        assert_eq!(out.verdict, REDIRECT);
        let want = [&ASKER[..], &OWN, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &OWN, &VIP4, &ASKER, &asker].concat();
        assert_eq!(out.bytes[..42], want);
        assert_eq!(out.bytes.len(), 60);
    }
}

#[test]
fn other_arp_passes_untouched() {
    let dp = node();
    let mut token_ring = arp(1, ASKER4, VIP4);
    token_ring[15] = 6;
    let mut long_address = arp(1, ASKER4, VIP4);
    long_address[18] = 8;
    let mut short = arp(1, ASKER4, VIP4);
    short.truncate(41);
    let others = [
        arp(1, ASKER4, [192, 0, 2, 99]),
        arp(1, ASKER4, [192, 0, 2, 101]),
        arp(2, ASKER4, VIP4),
        arp(1, VIP4, VIP4),
        token_ring,
        long_address,
        short,
    ];
    for packet in others {
        let out = dp.run(prog::FROM_UPLINK, &packet);
        assert_eq!((out.verdict, out.bytes), (UNSPEC, packet));
    }
}

/// A neighbour message with its checksum.
fn ndp(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, mut message: Vec<u8>) -> Vec<u8> {
    let pseudo = [&src.octets()[..], &dst.octets(), &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
    message[2..4].fill(0);
    let sum = checksum::of(&[pseudo, message.clone()].concat(), 0);
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    let ip = [&[0x60, 0, 0, 0][..], &(message.len() as u16).to_be_bytes(), &[58, hop_limit], &src.octets(), &dst.octets()].concat();
    [&[0x33, 0x33, 0xff, 0, 1, 0][..], &ASKER, &[0x86, 0xdd], &ip, &message].concat()
}

fn solicitation(target: Ipv6Addr, option: bool) -> Vec<u8> {
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    if option {
        message.extend([&[1, 1][..], &ASKER].concat());
    }
    message
}

#[test]
fn neighbour_solicitations_for_announced_addresses_are_answered_where_they_came_from() {
    let dp = node();
    let to_many: Ipv6Addr = "ff02::1:ff00:100".parse().expect("an address");
    for (dst, option) in [(to_many, true), (vip6(), true), (vip6(), false)] {
        let out = dp.run(prog::FROM_UPLINK, &ndp(asker6(), dst, 255, solicitation(vip6(), option)));
        assert_eq!(out.verdict, REDIRECT, "to {dst}, option {option}");
        let mut answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &vip6().octets()].concat();
        if option {
            answer.extend([&[2, 1][..], &OWN].concat());
        }
        let mut want = ndp(vip6(), asker6(), 255, answer);
        want[..12].copy_from_slice(&[ASKER, OWN].concat());
        assert_eq!(out.bytes, want);
    }
}

#[test]
fn other_neighbour_messages_pass_untouched() {
    let dp = node();
    let to_many: Ipv6Addr = "ff02::1:ff00:100".parse().expect("an address");
    let advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &vip6().octets(), &[2, 1], &ASKER].concat();
    let mut cut = ndp(asker6(), to_many, 255, solicitation(vip6(), true));
    cut.truncate(80);
    let others = [
        ndp(asker6(), to_many, 255, solicitation("2001:db8::99".parse().expect("an address"), true)),
        // From beyond a router.
        ndp(asker6(), to_many, 254, solicitation(vip6(), true)),
        // A check for duplicates.
        ndp(Ipv6Addr::UNSPECIFIED, to_many, 255, solicitation(vip6(), false)),
        ndp(asker6(), to_many, 255, solicitation(vip6(), false)),
        ndp(asker6(), to_many, 255, solicitation("::ffff:192.0.2.100".parse().expect("an address"), true)),
        ndp(asker6(), to_many, 255, advertisement),
        cut,
    ];
    for packet in others {
        let out = dp.run(prog::FROM_UPLINK, &packet);
        assert_eq!((out.verdict, out.bytes), (UNSPEC, packet));
    }
}
