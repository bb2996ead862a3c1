//! The protobuf wire format: <https://protobuf.dev/programming-guides/encoding/>.

use super::{Error, Result};

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message in order. Ends at the first error.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    fn next_field(&mut self) -> Option<(u32, Item<'a>)> {
        let (key, rest) = varint(self.rest)?;
        let number = u32::try_from(key >> 3).ok()?;
        let (item, rest) = match key & 7 {
            0 => {
                let (number, rest) = varint(rest)?;
                (Item::Varint(number), rest)
            }
            1 => {
                let (bytes, rest) = rest.split_first_chunk::<8>()?;
                (Item::Fixed64(u64::from_le_bytes(*bytes)), rest)
            }
            2 => {
                let (length, rest) = varint(rest)?;
                let (bytes, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Item::Bytes(bytes), rest)
            }
            5 => {
                let (bytes, rest) = rest.split_first_chunk::<4>()?;
                (Item::Fixed32(u32::from_le_bytes(*bytes)), rest)
            }
            _ => return None,
        };
        self.rest = rest;
        Some((number, item))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Item<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.next_field() {
            Some(field) => Some(Ok(field)),
            None => {
                self.rest = &[];
                Some(Err(Error::Malformed))
            }
        }
    }
}

/// The numbers of a packed field.
pub(super) fn packed_varints(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match varint(bytes) {
            Some((number, rest)) => {
                bytes = rest;
                Some(Ok(number))
            }
            None => {
                bytes = &[];
                Some(Err(Error::Malformed))
            }
        }
    })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[i + 1..]));
        }
    }
    None
}
