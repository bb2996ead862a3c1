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

use super::{Call, body::Received, create, options, write};
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
    /// Server-side apply: a configuration rather than a change.
    Apply,
}

/// A patch that was read.
struct Patch {
    kind: Kind,
    body: Value,
    text: Bytes,
    validation: FieldValidation,
    /// Who writes, for the managed fields.
    manager: String,
    force: bool,
    subresource: String,
}

impl Patch {
    /// # Errors
    /// 415 for other types, 400 for what is no JSON (or YAML, for an apply), 422 for an apply in nobody's name.
    fn parse(call: &Call, received: &Received, validation: FieldValidation, sub: &str) -> Result<(Patch, Vec<String>), ApiError> {
        let kind = match received.media_type.as_str() {
            JSON => Kind::Json,
            MERGE => Kind::Merge,
            STRATEGIC => Kind::Strategic,
            APPLY => Kind::Apply,
            _ => return Err(status::unsupported_media_type(&[JSON, MERGE, APPLY, STRATEGIC])),
        };
        let manager = call.query().get("fieldManager").to_string();
        let (body, warnings) = if kind == Kind::Apply {
            if manager.is_empty() {
                let error = status::FieldError::required("fieldManager", "is required for apply patch");
                return Err(status::invalid_kind("meta.k8s.io", "PatchOptions", "", &[error]));
            }
            schema::decode(&call.resource, &received.bytes, "application/yaml", validation)?
        } else {
            let body = serde_json::from_slice(&received.bytes).map_err(|e| status::bad_request(format!("error decoding patch: {e}")))?;
            (body, Vec::new())
        };
        let force = call.query().get("force") == "true";
        Ok((Patch { kind, body, text: received.bytes.clone(), validation, manager, force, subresource: sub.to_string() }, warnings))
    }

    fn manager(&self) -> patches::Manager<'_> {
        let name = if self.manager.is_empty() { "unknown" } else { &self.manager };
        patches::Manager { name, force: self.force, subresource: &self.subresource, now: meta::Fresh::generate().now }
    }

    /// What an apply makes where there is no object yet.
    fn applied_anew(&self, resource: &Resource) -> Result<Document, ApiError> {
        patches::apply(resource, None, &self.body, &self.manager())
    }

    /// The patched document and warnings.
    fn apply(&self, resource: &Resource, custom: Option<&Custom>, old: &Document) -> Result<(Document, Vec<String>), ApiError> {
        let patched = match self.kind {
            Kind::Json => patches::json_patch(old, &self.body)?,
            Kind::Merge => patches::merge_patch(old, &self.body)?,
            Kind::Strategic => patches::strategic_merge_patch(resource, old, &self.body)?,
            Kind::Apply => patches::apply(resource, Some(old), &self.body, &self.manager())?,
        };
        let (mut doc, mut warnings) = schema::decode_patched(resource, patched, &self.text, self.validation)?;
        if self.kind != Kind::Apply {
            patches::track_update(resource, &mut doc, old, &self.manager())?;
        }
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
    let (patch, warnings) = Patch::parse(&call, &received, validation, sub)?;
    call.warnings.extend(warnings);
    let patch = std::sync::Arc::new(patch);
    let applying = patch.clone();
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
    match write::update_with(&mut call, &name, sub, dry_run, make).await {
        Ok(updated) => call.answer(StatusCode::OK, &updated),
        Err(error) if applying.kind == Kind::Apply && sub.is_empty() && error.code == 404 && error.reason == "NotFound" => {
            let doc = applying.applied_anew(&call.resource)?;
            meta::check_name(&doc, &name)?;
            let created = create::create_document(&mut call, doc, dry_run).await?;
            call.answer(StatusCode::CREATED, &created)
        }
        Err(error) => Err(error),
    }
}
