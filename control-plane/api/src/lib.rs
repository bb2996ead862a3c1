//! What a Kubernetes resource is: the table of kinds, schema, defaulting, validation, patches, selectors,
//! printed columns, and the documents that describe them. No I/O.

pub mod builtin;
pub mod discovery;
mod kinds;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod scale;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod validate;
pub mod value;

/// A decoded API object. The stored form is its compact JSON.
pub type Document = serde_json::Value;
