//! Patching objects.

use http::StatusCode;
use serde_json::Value;
use xebec_api::{
    Document, meta, patch as patches,
    status::{self, ApiError},
};

use super::{
    Call,
    body::Received,
    options,
    write::{self, Step},
};
use crate::http::{Response, negotiate};

const ACCEPTED: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];

/// PATCH of an object or of a view of it.
pub(crate) async fn patch(mut call: Call, received: Received, sub: &str) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "PatchOptions")?;
    let dry_run = options::dry_run(call.query(), "PatchOptions")?;
    let name = call.info.name.clone();
    let media_type = received.media_type.as_str();
    if !ACCEPTED.contains(&media_type) {
        return Err(negotiate::unsupported_media_type(&ACCEPTED));
    }
    let patch: Value = if media_type == "application/apply-patch+yaml" {
        serde_yaml_ng::from_slice(&received.bytes).map_err(|e| status::bad_request(format!("error decoding YAML: {e}")))?
    } else {
        serde_json::from_slice(&received.bytes).map_err(|e| status::bad_request(format!("error decoding patch: {e}")))?
    };
    let apply = |old: &Document| -> Result<Document, ApiError> {
        match media_type {
            "application/json-patch+json" => patches::json_patch(old, &patch),
            _ => patches::merge_patch(old, &patch),
        }
    };
    let namespace = call.namespace().map(str::to_string);
    let updated = write::update_with(&mut call, &name, sub, dry_run, |old| {
        let mut new = apply(old)?;
        meta::check_name(&new, &name)?;
        meta::set_namespace(&mut new, namespace.as_deref())?;
        Ok((Step::Write(new), Vec::new()))
    })
    .await?;
    call.answer(StatusCode::OK, &updated.doc)
}
