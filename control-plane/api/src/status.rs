//! `metav1.Status`: the error every client expects, and the field errors that become its causes.

use serde_json::{Value, json};

/// One invalid field, as `k8s.io/apimachinery/pkg/util/validation/field.Error`.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// `spec.containers[0].image`
    pub field: String,
    /// The whole text after `field: `, e.g. `Required value: must name an image`.
    pub message: String,
}

/// The `reason` of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    Invalid,
    Required,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

/// An API error: HTTP code plus the body's reason, message and details.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    /// `metav1.StatusReason`, e.g. `NotFound`.
    pub reason: &'static str,
    pub message: String,
    /// `metav1.StatusDetails`, `null` when there are none.
    pub details: Value,
}

impl ApiError {
    /// The `Status` document to send.
    pub fn to_document(&self) -> Value {
        let mut doc = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            doc["details"] = self.details.clone();
        }
        doc
    }
}
