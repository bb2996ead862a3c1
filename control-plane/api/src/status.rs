//! `metav1.Status`: the error every client expects, and the field errors that become its causes.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

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

impl FieldErrorKind {
    /// `reason` of the cause, and the words the message begins with.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            FieldErrorKind::Invalid => ("FieldValueInvalid", "Invalid value"),
            FieldErrorKind::Required => ("FieldValueRequired", "Required value"),
            FieldErrorKind::NotSupported => ("FieldValueNotSupported", "Unsupported value"),
            FieldErrorKind::Duplicate => ("FieldValueDuplicate", "Duplicate value"),
            FieldErrorKind::Forbidden => ("FieldValueForbidden", "Forbidden"),
            FieldErrorKind::TooLong => ("FieldValueTooLong", "Too long"),
            FieldErrorKind::TooMany => ("FieldValueTooMany", "Too many"),
            FieldErrorKind::NotFound => ("FieldValueNotFound", "Not found"),
            FieldErrorKind::TypeInvalid => ("FieldValueTypeInvalid", "Invalid value"),
            FieldErrorKind::Internal => ("InternalError", "Internal error"),
        }
    }
}

impl FieldError {
    fn new(kind: FieldErrorKind, field: impl Into<String>, value: Option<&Value>, detail: &str) -> FieldError {
        let mut message = kind.names().1.to_owned();
        if let Some(value) = value {
            message.push_str(": ");
            message.push_str(&value.to_string());
        }
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        FieldError { kind, field: field.into(), message }
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl AsRef<str>) -> FieldError {
        Self::new(FieldErrorKind::Invalid, field, Some(&value.into()), detail.as_ref())
    }

    pub fn required(field: impl Into<String>, detail: impl AsRef<str>) -> FieldError {
        Self::new(FieldErrorKind::Required, field, None, detail.as_ref())
    }

    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        let detail = if supported.is_empty() { String::new() } else { format!("supported values: {list}") };
        Self::new(FieldErrorKind::NotSupported, field, Some(&value.into()), &detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        Self::new(FieldErrorKind::Duplicate, field, Some(&value.into()), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: impl AsRef<str>) -> FieldError {
        Self::new(FieldErrorKind::Forbidden, field, None, detail.as_ref())
    }

    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> FieldError {
        Self::new(FieldErrorKind::TooLong, field, None, &format!("may not be more than {max_bytes} bytes"))
    }

    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> FieldError {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(FieldErrorKind::TooMany, field, Some(&count.into()), &format!("must have at most {max} {items}"))
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        Self::new(FieldErrorKind::NotFound, field, Some(&value.into()), "")
    }

    pub fn type_invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl AsRef<str>) -> FieldError {
        Self::new(FieldErrorKind::TypeInvalid, field, Some(&value.into()), detail.as_ref())
    }

    pub fn internal(field: impl Into<String>, detail: impl AsRef<str>) -> FieldError {
        Self::new(FieldErrorKind::Internal, field, None, detail.as_ref())
    }

    fn cause(&self) -> Value {
        json!({ "reason": self.kind.names().0, "message": self.message, "field": self.field })
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// An API error: HTTP code plus the body's reason, message and details.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    /// `metav1.StatusReason`, e.g. `NotFound`; empty when unknown.
    pub reason: &'static str,
    pub message: String,
    /// `metav1.StatusDetails`, `null` when there are none.
    pub details: Value,
}

impl ApiError {
    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: Value::Null }
    }

    /// The `Status` document to send.
    pub fn to_document(&self) -> Value {
        let mut doc = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            doc["reason"] = self.reason.into();
        }
        if !self.details.is_null() {
            doc["details"] = self.details.clone();
        }
        doc
    }

    /// Seconds for a `Retry-After` header, when the client should come back.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.details.get("retryAfterSeconds").and_then(Value::as_u64)
    }
}

/// `details` naming `kind` (a plural, or a kind for `Invalid`) of `group`.
fn details(group: &str, kind: &str, name: &str) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            map.insert(key.into(), value.into());
        }
    }
    map
}

fn of(resource: &Resource, name: &str) -> Value {
    details(&resource.group, &resource.plural, name).into()
}

/// 404: no object of that name.
pub fn not_found(resource: &Resource, name: &str) -> ApiError {
    let message = format!("{} {name:?} not found", resource.qualified_plural());
    ApiError { details: of(resource, name), ..ApiError::plain(404, "NotFound", message) }
}

/// 404: nothing is served at the path, or no such kind.
pub fn no_such_path() -> ApiError {
    let message = "the server could not find the requested resource";
    ApiError { details: json!({}), ..ApiError::plain(404, "NotFound", message) }
}

/// 409: create of a name that is taken.
pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
    let message = format!("{} {name:?} already exists", resource.qualified_plural());
    ApiError { details: of(resource, name), ..ApiError::plain(409, "AlreadyExists", message) }
}

/// 409: every name tried for `generateName` is taken.
pub fn generated_name_taken(resource: &Resource, name: &str) -> ApiError {
    let message = format!(
        "{} {name:?} already exists, the server was not able to generate a unique name for the object",
        resource.qualified_plural()
    );
    let mut details = of(resource, name);
    details["retryAfterSeconds"] = 1.into();
    ApiError { details, ..ApiError::plain(409, "AlreadyExists", message) }
}

/// 409 with any cause text.
pub fn conflict_because(resource: &Resource, name: &str, cause: &str) -> ApiError {
    let message = format!("Operation cannot be fulfilled on {} {name:?}: {cause}", resource.qualified_plural());
    ApiError { details: of(resource, name), ..ApiError::plain(409, "Conflict", message) }
}

/// 409: the object changed since the client read it.
pub fn conflict(resource: &Resource, name: &str) -> ApiError {
    const CAUSE: &str = "the object has been modified; please apply your changes to the latest version and try again";
    conflict_because(resource, name, CAUSE)
}

/// 409: a server-side apply that would take fields of other managers; one (manager, field path) each.
pub fn apply_conflict(conflicts: &[(String, String)]) -> ApiError {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, field)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field}))
        .collect();
    let mut managers: Vec<&str> = conflicts.iter().map(|(manager, _)| manager.as_str()).collect();
    managers.dedup();
    let message = match conflicts {
        [(manager, field)] => format!("Apply failed with 1 conflict: conflict with {manager}: {field}"),
        _ => {
            let mut text = format!("Apply failed with {} conflicts: ", conflicts.len());
            let blocks: Vec<String> = managers
                .iter()
                .map(|m| {
                    let fields = conflicts.iter().filter(|(c, _)| c == m).map(|(_, f)| format!("\n- {f}"));
                    format!("conflicts with {m}:{}", fields.collect::<String>())
                })
                .collect();
            text.push_str(&blocks.join("\n"));
            text
        }
    };
    ApiError { details: json!({ "causes": causes }), ..ApiError::plain(409, "Conflict", message) }
}

/// 422 for an object of `resource`'s kind; messages are deduplicated in order.
pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> ApiError {
    invalid_kind(&resource.group, &resource.kind, name, errors)
}

/// 422 for a kind that has no row (`Scale`, `DeleteOptions`).
pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> ApiError {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let list = if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) };
    let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let mut details = details(group, kind, name);
    details.insert("causes".into(), errors.iter().map(FieldError::cause).collect());
    ApiError { details: details.into(), ..ApiError::plain(422, "Invalid", format!("{qualified} {name:?} is invalid: {list}")) }
}

/// 422 of a JSON patch that does not apply.
pub fn patch_rejected() -> ApiError {
    let message = "the server rejected our request due to an error in our request";
    ApiError { details: json!({}), ..ApiError::plain(422, "Invalid", message) }
}

/// 400.
pub fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::plain(400, "BadRequest", message)
}

/// 403 for an object, `name` may be empty.
pub fn forbidden(resource: &Resource, name: &str, why: &str) -> ApiError {
    forbidden_named(&resource.group, &resource.plural, name, why)
}

/// 403 for a resource by name; an empty `plural` stands for a path without resource.
pub fn forbidden_named(group: &str, plural: &str, name: &str, why: &str) -> ApiError {
    let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    let message = match (plural.is_empty(), name.is_empty()) {
        (true, _) => format!("forbidden: {why}"),
        (false, true) => format!("{qualified} is forbidden: {why}"),
        (false, false) => format!("{qualified} {name:?} is forbidden: {why}"),
    };
    ApiError { details: details(group, plural, name).into(), ..ApiError::plain(403, "Forbidden", message) }
}

/// 401.
pub fn unauthorized() -> ApiError {
    ApiError::plain(401, "Unauthorized", "Unauthorized")
}

/// 410 of a watch or list at a revision that was compacted.
pub fn expired(message: impl Into<String>) -> ApiError {
    ApiError::plain(410, "Expired", message)
}

/// 410 of a watch whose revision is older than what is kept.
pub fn watch_too_old(asked: u64, oldest: u64) -> ApiError {
    expired(format!("too old resource version: {asked} ({oldest})"))
}

/// 410 of a `continue` token whose revision was compacted.
pub fn continue_expired() -> ApiError {
    expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter.",
    )
}

/// 410.
pub fn gone(message: impl Into<String>) -> ApiError {
    ApiError::plain(410, "Gone", message)
}

/// 415; `accepted` are the media types the endpoint reads.
pub fn unsupported_media_type(accepted: &[&str]) -> ApiError {
    let message = format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", "));
    ApiError::plain(415, "UnsupportedMediaType", message)
}

/// 406; `offered` are the media types the endpoint writes.
pub fn not_acceptable(offered: &[&str]) -> ApiError {
    let message = format!("only the following media types are accepted: {}", offered.join(", "));
    ApiError::plain(406, "NotAcceptable", message)
}

/// 413: the body is longer than `limit` bytes.
pub fn request_entity_too_large(limit: usize) -> ApiError {
    request_too_large_because(&format!("limit is {limit}"))
}

/// 413 for another reason.
pub fn request_too_large_because(why: &str) -> ApiError {
    ApiError::plain(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
}

/// 405: `verb` (`create`, `delete` ...) is not among the kind's.
pub fn method_not_supported(resource: &Resource, verb: &str) -> ApiError {
    let message = format!("{verb} is not supported on resources of kind {:?}", resource.qualified_plural());
    ApiError { details: of(resource, ""), ..ApiError::plain(405, "MethodNotAllowed", message) }
}

/// 405: the HTTP method means nothing at this path.
pub fn method_not_allowed() -> ApiError {
    let message = "the server does not allow this method on the requested resource";
    ApiError { details: json!({}), ..ApiError::plain(405, "MethodNotAllowed", message) }
}

/// 504.
pub fn timeout(message: &str) -> ApiError {
    ApiError { details: json!({}), ..ApiError::plain(504, "Timeout", format!("Timeout: {message}")) }
}

/// 504 of a revision that did not arrive in time; clients retry after a second.
pub fn too_large_resource_version(asked: u64, current: u64) -> ApiError {
    ApiError {
        details: json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1
        }),
        ..ApiError::plain(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"))
    }
}

/// 429.
pub fn too_many_requests(message: &str, retry_after_seconds: u64) -> ApiError {
    ApiError { details: json!({ "retryAfterSeconds": retry_after_seconds }), ..ApiError::plain(429, "TooManyRequests", message) }
}

/// 503.
pub fn service_unavailable(message: impl Into<String>) -> ApiError {
    ApiError::plain(503, "ServiceUnavailable", message)
}

/// 500. The text reaches the client: nothing secret.
pub fn internal(message: &str) -> ApiError {
    ApiError {
        details: json!({ "causes": [{ "message": message }] }),
        ..ApiError::plain(500, "InternalError", format!("Internal error occurred: {message}"))
    }
}

/// 500 without a reason, as upstream answers errors it does not classify.
pub fn unknown(message: impl Into<String>) -> ApiError {
    ApiError::plain(500, "", message)
}

/// 200: the `Status` of a deletion that is done.
pub fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(&resource.group, &resource.plural, name);
    if !uid.is_empty() {
        details.insert("uid".into(), uid.into());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;

    #[test]
    fn messages_are_upstreams() {
        let pod = by_kind("v1", "Pod").unwrap();
        let deployment = by_kind("apps/v1", "Deployment").unwrap();
        assert_eq!(not_found(pod, "a").message, "pods \"a\" not found");
        assert_eq!(already_exists(deployment, "a").message, "deployments.apps \"a\" already exists");
        assert_eq!(
            conflict(deployment, "a").message,
            "Operation cannot be fulfilled on deployments.apps \"a\": the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        assert_eq!(not_found(deployment, "a").details, json!({"name": "a", "group": "apps", "kind": "deployments"}));
    }

    #[test]
    fn invalid_joins_causes() {
        let pod = by_kind("v1", "Pod").unwrap();
        let one = [FieldError::required("spec.containers", "")];
        assert_eq!(invalid(pod, "a", &one).message, "Pod \"a\" is invalid: spec.containers: Required value");
        let two =
            [FieldError::invalid("metadata.name", "A", "bad"), FieldError::not_supported("spec.restartPolicy", "x", &["Always", "Never"])];
        let error = invalid(pod, "a", &two);
        assert_eq!(
            error.message,
            "Pod \"a\" is invalid: [metadata.name: Invalid value: \"A\": bad, spec.restartPolicy: Unsupported value: \
             \"x\": supported values: \"Always\", \"Never\"]"
        );
        assert_eq!(error.details["causes"][0]["reason"], "FieldValueInvalid");
        assert_eq!(error.details["causes"][0]["message"], "Invalid value: \"A\": bad");
    }
}
