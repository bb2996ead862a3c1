//! `serviceaccounts/token`: tokens on request.

use http::StatusCode;
use xebec_api::{
    meta,
    schema::{self, FieldValidation},
    status::{self, ApiError},
};

use super::{
    Call,
    body::{self, Received},
    options, write,
};
use crate::http::Response;

/// POST of a TokenRequest.
pub(crate) async fn create(mut call: Call, received: Received) -> Result<Response, ApiError> {
    options::dry_run(call.query(), "CreateOptions")?;
    let name = call.info.name.clone();
    let received = body::as_json(received)?;
    let validation = FieldValidation::parse(call.query().get("fieldValidation"))?;
    let (mut request, warnings) =
        schema::decode_kind("authentication.k8s.io/v1", "TokenRequest", &received.bytes, &received.media_type, validation)?;
    call.warnings.extend(warnings);
    let own = meta::name(&request);
    if !own.is_empty() && own != name {
        return Err(status::bad_request(format!("metadata.name: {own:?} does not match the name on the URL: {name:?}")));
    }
    let Some((_, account)) = write::read(&call, &name).await? else { return Err(status::not_found(&call.resource, &name)) };
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"]["name"] = name.into();
    request["metadata"]["namespace"] = call.info.namespace.clone().into();
    let answered = call.core.extensions.tokens.issue(&account, request, &call.user).await?;
    call.answer_plain(StatusCode::CREATED, &answered)
}
