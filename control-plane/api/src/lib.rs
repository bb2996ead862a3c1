//! What a Kubernetes resource is: the table of kinds, schema, defaulting, validation, patches, selectors,
//! printed columns, and the documents that describe them. No I/O.

pub mod resource;
pub mod status;

/// A decoded API object. The stored form is its compact JSON.
pub type Document = serde_json::Value;
