//! Query parameters and option bodies.

use serde_json::Value;
use xebec_api::status::{self, ApiError, FieldError};
use xebec_store::Revision;

use super::Call;
use crate::request_info::Query;

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    NotOlderThan,
    Exact,
}

/// `dryRun`: whether nothing may be stored. Errors: 422 for anything but `All`.
pub(crate) fn dry_run(query: &Query, kind: &str) -> Result<bool, ApiError> {
    let mut dry = false;
    for value in query.all("dryRun").filter(|v| !v.is_empty()) {
        if value != "All" {
            return Err(status::invalid_kind("meta.k8s.io", kind, "", &[FieldError::not_supported("dryRun", value, &["All"])]));
        }
        dry = true;
    }
    Ok(dry)
}

/// `fieldManager` and `fieldValidation` of a write.
pub(crate) fn check_write_options(query: &Query, kind: &str) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let manager = query.get("fieldManager");
    if manager.len() > 128 {
        errors.push(FieldError::too_long("fieldManager", 128));
    }
    if manager.chars().any(char::is_control) {
        errors.push(FieldError::invalid("fieldManager", manager, "should only contain printable characters"));
    }
    let validation = query.get("fieldValidation");
    if !["", "Ignore", "Warn", "Strict"].contains(&validation) {
        errors.push(FieldError::not_supported("fieldValidation", validation, &["Ignore", "Strict", "Warn"]));
    }
    if errors.is_empty() { Ok(()) } else { Err(status::invalid_kind("meta.k8s.io", kind, "", &errors)) }
}

/// Who writes, for the managed fields: what the client says, else the program its `User-Agent` names.
pub(crate) fn manager(call: &Call) -> String {
    let given = call.query().get("fieldManager");
    if !given.is_empty() {
        return given.to_string();
    }
    let agent = call.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let program: String = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
    if program.is_empty() { "unknown".into() } else { program }
}

/// A resource version as a number; empty and "0" are 0.
pub(crate) fn resource_version(text: &str) -> Result<Revision, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| status::bad_request(format!("invalid resource version: strconv.ParseUint: parsing {text:?}: invalid syntax")))
}

/// `resourceVersionMatch`, checked against the other list options.
pub(crate) fn version_match(query: &Query, watch: bool) -> Result<Option<Match>, ApiError> {
    let text = query.get("resourceVersionMatch");
    let mut errors = Vec::new();
    let initial_events = query.has("sendInitialEvents");
    if initial_events && !watch {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if watch {
        if initial_events && text.is_empty() {
            errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        } else if !initial_events && !text.is_empty() {
            errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        } else if initial_events && text != "NotOlderThan" {
            errors.push(FieldError::not_supported("resourceVersionMatch", text, &["NotOlderThan"]));
        }
    } else if !text.is_empty() {
        if query.get("resourceVersion").is_empty() {
            errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !query.get("continue").is_empty() {
            errors.push(FieldError::forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"));
        }
        if !["NotOlderThan", "Exact"].contains(&text) {
            errors.push(FieldError::not_supported("resourceVersionMatch", text, &["Exact", "NotOlderThan", ""]));
        }
        if text == "Exact" && query.get("resourceVersion") == "0" {
            errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if !errors.is_empty() {
        return Err(status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors));
    }
    Ok(match text {
        "Exact" => Some(Match::Exact),
        "NotOlderThan" => Some(Match::NotOlderThan),
        _ => None,
    })
}

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions` from body and query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// `orphanDependents: false` was given: the answer is 202 while dependents go.
    pub wants_accepted: bool,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// The body wins over the query, as upstream. Errors: 400 for wrong types, 422 for values that make no sense.
    pub fn parse(body: Option<&Value>, query: &Query) -> Result<DeleteOptions, ApiError> {
        let mut options = DeleteOptions::default();
        let mut errors = Vec::new();
        let mut policy = None;
        let mut orphan = None;
        let null = Value::Null;
        let body = body.unwrap_or(&null);
        let wrong = |field: &str| status::bad_request(format!("DeleteOptions: {field} has the wrong type"));
        if body.as_object().is_none_or(serde_json::Map::is_empty) {
            if query.has("gracePeriodSeconds") {
                options.grace_period_seconds = Some(query.get("gracePeriodSeconds").parse().map_err(|_| wrong("gracePeriodSeconds"))?);
            }
            policy = query.has("propagationPolicy").then(|| query.get("propagationPolicy").to_string());
            orphan = query.has("orphanDependents").then(|| query.flag("orphanDependents"));
            options.dry_run = dry_run(query, "DeleteOptions")?;
        } else {
            if !body["gracePeriodSeconds"].is_null() {
                options.grace_period_seconds = Some(body["gracePeriodSeconds"].as_i64().ok_or_else(|| wrong("gracePeriodSeconds"))?);
            }
            if !body["propagationPolicy"].is_null() {
                policy = Some(body["propagationPolicy"].as_str().ok_or_else(|| wrong("propagationPolicy"))?.to_string());
            }
            if !body["orphanDependents"].is_null() {
                orphan = Some(body["orphanDependents"].as_bool().ok_or_else(|| wrong("orphanDependents"))?);
            }
            let text = |value: &Value| value.as_str().filter(|s| !s.is_empty()).map(str::to_string);
            options.uid = text(&body["preconditions"]["uid"]);
            options.resource_version = text(&body["preconditions"]["resourceVersion"]);
            match &body["dryRun"] {
                Value::Null => options.dry_run = dry_run(query, "DeleteOptions")?,
                Value::Array(values) => {
                    for value in values {
                        if value != "All" {
                            errors.push(FieldError::not_supported("dryRun", value.clone(), &["All"]));
                        }
                        options.dry_run = true;
                    }
                }
                _ => return Err(wrong("dryRun")),
            }
        }
        if policy.is_some() && orphan.is_some() {
            errors.push(FieldError::invalid(
                "propagationPolicy",
                policy.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        options.propagation = match policy.as_deref() {
            None => orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(FieldError::not_supported("propagationPolicy", other, &["Foreground", "Background", "Orphan", "nil"]));
                None
            }
        };
        options.wants_accepted = orphan == Some(false) || options.propagation == Some(Propagation::Foreground);
        // Upstream turns a negative period into the shortest one.
        options.grace_period_seconds = options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
        if errors.is_empty() { Ok(options) } else { Err(status::invalid_kind("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }
}
