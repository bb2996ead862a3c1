//! Patching objects.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use xebec_api::{
    Document, meta, patch as patches,
    resource::Resource,
    schema::{self, FieldValidation},
    status::{self, ApiError},
};

use super::{
    Call,
    body::Received,
    options,
    write,
};
use crate::{crd::Custom, http::Response};

pub(crate) const JSON: &str = "application/json-patch+json";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

/// How a patch body is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Merge,
    Strategic,
}

/// A patch that was read.
struct Patch {
    kind: Kind,
    body: Value,
    text: Bytes,
    validation: FieldValidation,
}

impl Patch {
    /// # Errors
    /// 415 for other types, 400 for what is no JSON.
    fn parse(received: &Received, validation: FieldValidation) -> Result<Patch, ApiError> {
        let kind = match received.media_type.as_str() {
            JSON => Kind::Json,
            MERGE => Kind::Merge,
            STRATEGIC => Kind::Strategic,
            _ => return Err(status::unsupported_media_type(&[JSON, MERGE, APPLY, STRATEGIC])),
        };
        let body = serde_json::from_slice(&received.bytes).map_err(|e| status::bad_request(format!("error decoding patch: {e}")))?;
        Ok(Patch { kind, body, text: received.bytes.clone(), validation })
    }

    /// The patched document and warnings.
    fn apply(&self, resource: &Resource, custom: Option<&Custom>, old: &Document) -> Result<(Document, Vec<String>), ApiError> {
        let patched = match self.kind {
            Kind::Json => patches::json_patch(old, &self.body)?,
            Kind::Merge => patches::merge_patch(old, &self.body)?,
            Kind::Strategic => patches::strategic_merge_patch(resource, old, &self.body)?,
        };
        let (mut doc, mut warnings) = schema::decode_patched(resource, patched, &self.text, self.validation)?;
        if let Some(custom) = custom {
            warnings.extend(custom.prune(&mut doc, self.validation)?);
        }
        Ok((doc, warnings))
    }
}

/// PATCH of an object or of a view of it.
pub(crate) async fn patch(mut call: Call, received: Received, sub: &str) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "PatchOptions")?;
    let dry_run = options::dry_run(call.query(), "PatchOptions")?;
    let name = call.info.name.clone();
    let validation = FieldValidation::parse(call.query().get("fieldValidation"))?;
    let patch = Patch::parse(&received, validation)?;
    let namespace = call.namespace().map(str::to_string);
    let resource = call.resource.clone();
    let custom = call.custom.clone();
    let own_name = name.clone();
    let make = move |old: &Document| -> Result<(Document, Vec<String>), ApiError> {
        let (mut new, warnings) = patch.apply(&resource, custom.as_deref(), old)?;
        meta::check_name(&new, &own_name)?;
        meta::set_namespace(&mut new, namespace.as_deref())?;
        // The version in the result is the present one's own unless the patch names another: then somebody else's
        // write in between is no conflict, the patch is applied again.
        if new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"] {
            new["metadata"]["resourceVersion"].take();
        }
        Ok((new, warnings))
    };
    let updated = write::update_with(&mut call, &name, sub, dry_run, make).await?;
    call.answer(StatusCode::OK, &updated)
}
