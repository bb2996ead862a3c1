//! The Internet checksum (RFC 1071), changed in place (RFC 1624).
//!
//! Sums are taken over 16-bit words in memory order: one's complement addition commutes with a byte
//! swap, so network-order words may be added as they lie.

/// What has to be added to a (complemented) checksum when the words `old` become `new`:
/// the sum of `!old` and `new`, folded to 32 bits, as `bpf_csum_diff` has it.
#[inline(always)]
pub fn diff<const N: usize>(old: &[u32; N], new: &[u32; N]) -> u32 {
    let mut sum: u64 = 0;
    let mut i = 0;
    while i < N {
        sum += u64::from(!old[i]);
        sum += u64::from(new[i]);
        i += 1;
    }
    fold32(sum)
}

/// The same for one 16-bit word.
#[inline(always)]
pub fn diff16(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

/// The sum of two diffs.
#[inline(always)]
pub fn add(a: u32, b: u32) -> u32 {
    fold32(u64::from(a) + u64::from(b))
}

/// The checksum field after `diff`. Both as they lie in the packet.
#[inline(always)]
pub fn apply(checksum: u16, diff: u32) -> u16 {
    !fold16(u64::from(!checksum) + u64::from(diff))
}

/// The same for UDP, where 0 says that there is none: that stays so, and a sum of 0 is sent as its other form.
#[inline(always)]
pub fn apply_if_any(checksum: u16, diff: u32) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match apply(checksum, diff) {
        0 => 0xffff,
        sum => sum,
    }
}

/// The checksum of bytes, with `start` (a pseudo header's sum, or 0) added.
pub fn of(bytes: &[u8], start: u32) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        let word = [pair[0], *pair.get(1).unwrap_or(&0)];
        sum += u64::from(u16::from_ne_bytes(word));
    }
    !fold16(sum)
}

/// Folds a sum to 32 bits.
#[inline(always)]
pub fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// A sum of words of any width as one of 16 bits.
#[inline(always)]
pub fn fold16(sum: u64) -> u16 {
    let mut sum = sum;
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn known_ipv4_header() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(of(&header, 0).to_ne_bytes(), [0xb8, 0x61]);
    }

    #[test]
    fn a_datagrams_sum_is_never_zero_but_where_there_is_none() {
        assert_eq!(
            (apply(0x1234, 0x1234), apply_if_any(0x1234, 0x1234)),
            (0, 0xffff)
        );
        assert_eq!(apply_if_any(0, 7), 0);
        assert_eq!(apply_if_any(0x1234, 7), apply(0x1234, 7));
    }

    proptest! {
        #[test]
        fn a_changed_word_changes_the_sum_as_a_full_sum_would(
            mut data in proptest::collection::vec(any::<u8>(), 40..200),
            new in any::<[u32; 4]>(),
            at in 0usize..6,
        ) {
            // All-zero data has the checksum 0xffff only in theory: no packet is all zeros.
            data[0] |= 1;
            let before = of(&data, 0);
            let old: Vec<u32> = data[at * 4..at * 4 + 16]
                .chunks(4).map(|c| u32::from_ne_bytes(c.try_into().unwrap())).collect();
            let old: [u32; 4] = old.try_into().unwrap();
            for (i, word) in new.iter().enumerate() {
                data[at * 4 + i * 4..at * 4 + i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            let after = apply(before, diff(&old, &new));
            let full = of(&data, 0);
            // The two zeros of one's complement are the same number.
            prop_assert!(after == full || (after ^ full) == 0xffff && (after == 0 || full == 0));
        }

        #[test]
        fn sixteen_bit_diff_agrees(data in any::<[u8; 20]>(), port in any::<u16>()) {
            let mut data = data;
            data[0] |= 1;
            let before = of(&data, 0);
            let old = u16::from_ne_bytes([data[4], data[5]]);
            data[4..6].copy_from_slice(&port.to_ne_bytes());
            let after = apply(before, diff16(old, port));
            let full = of(&data, 0);
            prop_assert!(after == full || (after ^ full) == 0xffff && (after == 0 || full == 0));
        }

        #[test]
        fn diffs_add_up(a in any::<[u32; 1]>(), b in any::<[u32; 1]>(), c in any::<[u32; 1]>(), sum in any::<u16>()) {
            let both = add(diff(&a, &b), diff(&b, &c));
            let (x, y) = (apply(sum, both), apply(sum, diff(&a, &c)));
            prop_assert!(x == y || (x ^ y) == 0xffff && (x == 0 || y == 0));
        }
    }
}
