//! Times and the like: messages in protobuf, one value in JSON.

use chrono::{DateTime, SecondsFormat, Utc};
use prost::Message;
use serde_json::Value;

/// `meta/v1.Time` and `MicroTime`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    pub fn to_json(&self, micro: bool) -> Result<Value, String> {
        let nanos = u32::try_from(self.nanos).map_err(|_| format!("{} nanoseconds", self.nanos))?;
        let time = DateTime::<Utc>::from_timestamp(self.seconds, nanos).ok_or_else(|| format!("time {} is out of range", self.seconds))?;
        Ok(time.to_rfc3339_opts(if micro { SecondsFormat::Micros } else { SecondsFormat::Secs }, true).into())
    }

    pub fn from_json(text: &str) -> Option<Timestamp> {
        let time = DateTime::parse_from_rfc3339(text).ok()?;
        Some(Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).ok()? })
    }
}

/// `resource.Quantity`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Quantity {
    #[prost(string, optional, tag = "1")]
    pub string: Option<String>,
}

/// `intstr.IntOrString`: type 0 is a number, 1 a string. Go writes every field.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IntOrString {
    #[prost(int64, optional, tag = "1")]
    pub kind: Option<i64>,
    #[prost(int32, optional, tag = "2")]
    pub number: Option<i32>,
    #[prost(string, optional, tag = "3")]
    pub text: Option<String>,
}

impl IntOrString {
    pub fn to_json(&self) -> Value {
        match self.kind {
            Some(1) => self.text.clone().unwrap_or_default().into(),
            Some(_) | None => self.number.unwrap_or_default().into(),
        }
    }

    pub fn from_json(value: &Value) -> IntOrString {
        match value.as_str() {
            Some(text) => IntOrString { kind: Some(1), number: Some(0), text: Some(text.into()) },
            None => {
                let number = value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or_default();
                IntOrString { kind: Some(0), number: Some(number), text: Some(String::new()) }
            }
        }
    }
}

/// `runtime.RawExtension`, `FieldsV1`, `apiextensions/v1.JSON`: JSON in bytes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Raw {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub raw: Option<Vec<u8>>,
}

/// `runtime.TypeMeta`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeMeta {
    #[prost(string, optional, tag = "1")]
    pub api_version: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub kind: Option<String>,
}

/// `runtime.Unknown`: an object and what it is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Unknown {
    #[prost(message, optional, tag = "1")]
    pub type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub raw: Option<Vec<u8>>,
    #[prost(string, optional, tag = "3")]
    pub content_encoding: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub content_type: Option<String>,
}
