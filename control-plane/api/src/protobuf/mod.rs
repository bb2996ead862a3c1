//! The protobuf form of built-in kinds (`application/vnd.kubernetes.protobuf`), to and from documents.
//!
//! Clients for built-in kinds write it by default. Types come from [`crate::schema`]; what protobuf adds, the number of
//! each field, from the table in `numbers.txt`. Four bytes of magic, then a `runtime.Unknown` that names the kind and holds
//! the object (<https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>).

mod decode;
mod encode;
mod numbers;
mod scalars;
pub(crate) mod wire;

pub use decode::decode;
pub use encode::{encode, encode_list, watch_frame};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every message begins with.
const MAGIC: &[u8; 4] = b"k8s\0";

/// Deeper nesting than any kind has (JSON schemas are recursive).
const MAX_DEPTH: usize = 100;
