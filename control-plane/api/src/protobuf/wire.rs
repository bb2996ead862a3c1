//! Fields as protobuf lays them out (<https://protobuf.dev/programming-guides/encoding/>).

use prost::encoding::{WireType, encode_key, encode_varint};

pub(crate) fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

pub(crate) fn bytes(number: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
