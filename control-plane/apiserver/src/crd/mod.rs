//! CustomResourceDefinitions: rows added while the server runs.
//!
//! A definition becomes one row for each served version, with the same hooks interface built-in kinds have; its schema
//! prunes, defaults and validates, its columns print.

mod columns;
mod controller;
mod define;
mod jsonpath;
pub(crate) mod openapi;
mod schema;
mod validate;

use std::sync::Arc;

use serde_json::Value;
use xebec_api::{
    Document,
    resource::{Column, Hooks},
    schema::FieldValidation,
    status::{self, ApiError, FieldError},
};

use columns::PrinterColumn;
pub(crate) use controller::{FINALIZER, reconcile, run};
use schema::Schema;

/// What a version of a custom resource is, behind its row.
pub struct Custom {
    schema: Schema,
    columns: Vec<PrinterColumn>,
    /// JSON paths (with their interned names) a field selector may use.
    selectable: Vec<(&'static str, jsonpath::Path)>,
    has_status: bool,
    /// Places of the `scale` subresource, as JSON pointers: spec replicas, status replicas, label selector.
    pub scale: Option<(String, String, Option<String>)>,
    /// The raw `openAPIV3Schema`, for OpenAPI.
    pub openapi: Value,
}

impl Custom {
    /// Takes out what the schema does not know, and says so as the client wishes.
    ///
    /// # Errors
    /// 400 for unknown fields under strict validation.
    pub fn prune(&self, doc: &mut Document, validation: FieldValidation) -> Result<Vec<String>, ApiError> {
        let mut unknown = Vec::new();
        self.schema.prune_root(doc, &mut unknown);
        let complaints: Vec<String> = unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect();
        match validation {
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Warn => Ok(complaints),
            FieldValidation::Strict if complaints.is_empty() => Ok(complaints),
            FieldValidation::Strict => {
                let (kind, version) = (doc["kind"].as_str().unwrap_or_default(), doc["apiVersion"].as_str().unwrap_or_default());
                let version = version.rsplit('/').next().unwrap_or_default();
                Err(status::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
                    complaints.join(", ")
                )))
            }
        }
    }
}

/// The hooks of a row made from a definition.
struct CustomHooks(Arc<Custom>);

impl Hooks for CustomHooks {
    fn default(&self, doc: &mut Document) {
        self.0.schema.default_root(doc);
    }

    fn prepare_for_create(&self, doc: &mut Document) {
        if self.0.has_status
            && let Some(map) = doc.as_object_mut()
        {
            map.remove("status");
        }
    }

    fn validate_create(&self, doc: &Document) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.0.schema.validate_root(doc, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Document, old: &Document, _sub: &str) -> Vec<FieldError> {
        // What was stored before the schema was tightened may stay as it is.
        if new.get("spec") == old.get("spec") && new.get("status") == old.get("status") {
            return Vec::new();
        }
        self.validate_create(new)
    }

    fn selectable_fields(&self, doc: &Document) -> Vec<(&'static str, String)> {
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        self.0.selectable.iter().map(|(name, path)| (*name, text(path.find(doc).first().copied()))).collect()
    }

    fn columns(&self) -> Vec<Column> {
        columns::definitions(&self.0.columns)
    }

    fn cells(&self, doc: &Document, now: i64) -> Vec<Value> {
        columns::cells(&self.0.columns, doc, now)
    }
}
