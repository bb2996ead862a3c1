//! Replacing objects.

use http::StatusCode;
use xebec_api::{
    meta,
    status::{self, ApiError, FieldError},
};

use super::{
    Call,
    body::{self, Received},
    create, options, write,
};
use crate::http::Response;

/// PUT of an object or of a view of it.
pub(crate) async fn update(call: &mut Call, received: Received, sub: &str) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "UpdateOptions")?;
    let dry_run = options::dry_run(call.query(), "UpdateOptions")?;
    let (mut doc, warnings) = body::decode(call, &received)?;
    call.warnings.extend(warnings);
    let name = call.info.name.clone();
    meta::check_name(&doc, &name)?;
    let namespace = call.namespace().map(str::to_string);
    meta::set_namespace(&mut doc, namespace.as_deref())?;
    let resource = call.resource.clone();
    let version = doc["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
    let unconditional = version.is_empty() || version == "0";
    if unconditional && !resource.unconditional_update && sub.is_empty() {
        // Upstream prints the number it parsed.
        let error = FieldError {
            message: "Invalid value: 0: must be specified for an update".into(),
            ..FieldError::invalid("metadata.resourceVersion", 0, "")
        };
        if write::read(call, &name).await?.is_some() || !resource.creates_on_update {
            if write::read(call, &name).await?.is_none() {
                return Err(status::not_found(&resource, &name));
            }
            return Err(status::invalid(&resource, &name, &[error]));
        }
    }
    match write::update_with(call, &name, sub, dry_run, |_| Ok((doc.clone(), Vec::new()))).await {
        Ok(updated) => call.answer(StatusCode::OK, &updated),
        Err(error) if error.code == 404 && error.reason == "NotFound" && sub.is_empty() && resource.creates_on_update && unconditional => {
            let created = create::create_document(call, doc, dry_run).await?;
            call.answer(StatusCode::CREATED, &created)
        }
        Err(error) => Err(error),
    }
}
