//! Reading request bodies.

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use xebec_api::{
    Document,
    resource::Resource,
    status::{self, ApiError},
};

use super::body_type;
use crate::http::{Body, negotiate};

/// Largest body of a write, as upstream.
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;

/// A body read to its end.
pub(crate) struct Received {
    pub bytes: Bytes,
    pub media_type: String,
}

/// Reads the body. Errors: 413 when it is too long, 400 when it breaks off.
pub(crate) async fn read(request: http::Request<Body>) -> Result<Received, ApiError> {
    let (parts, body) = request.into_parts();
    let media_type = body_type(&parts.headers);
    let declared = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(status::request_entity_too_large(MAX_BODY));
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(Received { bytes: collected.to_bytes(), media_type }),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(status::request_entity_too_large(MAX_BODY)),
        Err(error) => Err(status::bad_request(format!("the body of the request could not be read: {error}"))),
    }
}

/// Whether the server reads this type.
pub(crate) fn check_media_type(media_type: &str) -> Result<(), ApiError> {
    match media_type {
        "application/json" | "application/yaml" => Ok(()),
        _ => Err(negotiate::unsupported_media_type(&["application/json", "application/yaml"])),
    }
}

/// A body of any kind as a document, without looking at its schema.
pub(crate) fn plain_document(received: &Received) -> Result<Document, ApiError> {
    check_media_type(&received.media_type)?;
    let parsed = if received.media_type == "application/yaml" {
        serde_yaml_ng::from_slice(&received.bytes).map_err(|e| e.to_string())
    } else {
        serde_json::from_slice(&received.bytes).map_err(|e| e.to_string())
    };
    let doc: Document = parsed.map_err(|e| status::bad_request(format!("the object provided is unrecognized (must be of type Object): {e}")))?;
    if !doc.is_object() {
        return Err(status::bad_request("the object provided is unrecognized (must be of type Object)"));
    }
    Ok(doc)
}

/// A body as an object of `resource`. Warnings come back with it.
pub(crate) fn decode(resource: &Resource, received: &Received, _headers: &HeaderMap, _validation: &str) -> Result<(Document, Vec<String>), ApiError> {
    let doc = plain_document(received)?;
    check_kind(resource, &doc)?;
    Ok((doc, Vec::new()))
}

/// The body's own `apiVersion` and `kind` must be the path's, when given.
fn check_kind(resource: &Resource, doc: &Document) -> Result<(), ApiError> {
    let (api_version, kind) = (doc["apiVersion"].as_str().unwrap_or_default(), doc["kind"].as_str().unwrap_or_default());
    if !kind.is_empty() && kind != resource.kind || !api_version.is_empty() && api_version != resource.api_version() {
        return Err(status::bad_request(format!(
            "{kind} in version \"{api_version}\" cannot be handled as a {}: the API version in the data ({api_version}) and kind ({kind}) do not match the expected {}, {}",
            resource.kind,
            resource.api_version(),
            resource.kind
        )));
    }
    Ok(())
}
