//! etcd's messages and errors to ours.

use bytes::Bytes;
use etcd_client::{EventType, ResponseHeader};

use crate::{Event, KeyValue, Result, Revision, StoreError};

/// gRPC status codes that mean "try again later".
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const RESOURCE_EXHAUSTED: i32 = 8;
const OUT_OF_RANGE: i32 = 11;
const UNAVAILABLE: i32 = 14;
/// etcd's default for `--max-request-bytes`.
const DEFAULT_REQUEST: usize = 3 << 19;

/// Revisions in errors made here are 0: the caller knows what it asked for.
pub(super) fn error(error: etcd_client::Error) -> StoreError {
    use etcd_client::Error;
    match error {
        Error::GRpcStatus(status) => {
            let (code, message) = (status.code() as i32, status.message());
            if message.contains("has been compacted") {
                StoreError::Compacted { requested: 0, oldest: 0 }
            } else if message.contains("is a future revision") {
                StoreError::FutureRevision { requested: 0, current: 0 }
            } else if message.contains("request is too large")
                || (matches!(code, RESOURCE_EXHAUSTED | OUT_OF_RANGE) && message.contains("larger than max"))
            {
                tracing::warn!("etcd refused a value for its size: raise its --max-request-bytes to 4194304");
                StoreError::TooLarge { key: String::new(), size: 0, limit: DEFAULT_REQUEST }
            } else if code == RESOURCE_EXHAUSTED {
                StoreError::Unavailable(format!("etcd: {message}; if its space is used up: compact, defragment and disarm the alarm"))
            } else if matches!(code, CANCELLED | DEADLINE_EXCEEDED | UNAVAILABLE)
                || (code == UNKNOWN && (message.contains("transport") || message.contains("h2 protocol") || message.contains("connection")))
            {
                StoreError::Unavailable(format!("etcd: {message}"))
            } else {
                StoreError::Backend(format!("etcd: {message}"))
            }
        }
        Error::TransportError(e) => StoreError::Unavailable(format!("etcd: {e}; check its address and certificates")),
        Error::IoError(e) => StoreError::Unavailable(format!("etcd: {e}")),
        Error::WatchError(e) => StoreError::Unavailable(format!("etcd watch: {e}")),
        other => StoreError::Backend(format!("etcd: {other}")),
    }
}

pub(super) fn revision_of(header: Option<&ResponseHeader>) -> Result<Revision> {
    let revision = header.map_or(0, ResponseHeader::revision);
    u64::try_from(revision).ok().filter(|r| *r > 0).ok_or_else(|| StoreError::Backend("etcd answered without a revision".into()))
}

pub(super) fn key_value(kv: etcd_client::KeyValue) -> Result<KeyValue> {
    let (create, modified) = (kv.create_revision() as u64, kv.mod_revision() as u64);
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key).map_err(|_| StoreError::Backend("etcd holds a key that is not UTF-8".into()))?;
    Ok(KeyValue { key, value: Bytes::from(value), create_revision: create, mod_revision: modified })
}

/// An event and the revision it happened at; `None` for keys that cannot be ours.
pub(super) fn event(event: &etcd_client::Event) -> Option<(Revision, Event)> {
    let kv = event.kv()?;
    let revision = kv.mod_revision() as u64;
    let prev = event.prev_kv().and_then(|kv| key_value(kv.clone()).ok());
    let kv = key_value(kv.clone()).ok()?;
    Some((
        revision,
        match event.event_type() {
            EventType::Put => Event::Put { kv, prev },
            EventType::Delete => Event::Delete { key: kv.key, prev },
        },
    ))
}
