//! Reading request bodies.

use bytes::Bytes;
use http_body_util::BodyExt;
use xebec_api::{
    Document, protobuf,
    schema::{self, FieldValidation},
    status::{self, ApiError},
};

use super::{Call, body_type};
use crate::http::{Body, BodyError, collect};

/// Largest body of a write, as upstream.
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;
/// Bodies up to this length are read to their end before they are refused.
const DRAINED: u64 = 32 << 20;

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
    if let Some(length) = declared.filter(|length| *length > MAX_BODY as u64) {
        if length <= DRAINED {
            drain(body).await;
        }
        return Err(status::request_entity_too_large(MAX_BODY));
    }
    match collect(body, MAX_BODY).await {
        Ok(bytes) if media_type == protobuf::MEDIA_TYPE && !bytes.is_empty() => {
            let doc = protobuf::decode(&bytes).map_err(|e| status::bad_request(format!("couldn't decode protobuf: {e}")))?;
            Ok(Received { bytes: serde_json::to_vec(&doc).unwrap_or_default().into(), media_type: "application/json".into() })
        }
        Ok(bytes) => Ok(Received { bytes, media_type }),
        Err(BodyError::TooLong(_)) => Err(status::request_entity_too_large(MAX_BODY)),
        Err(error) => Err(status::bad_request(format!("the body of the request could not be read: {error}"))),
    }
}

/// Reads and forgets: a client that is still sending when the connection closes never sees the answer.
async fn drain(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// Whether the server reads this type.
pub(crate) fn check_media_type(media_type: &str) -> Result<(), ApiError> {
    match media_type {
        "application/json" | "application/yaml" => Ok(()),
        _ => Err(status::unsupported_media_type(&["application/json", "application/yaml", protobuf::MEDIA_TYPE])),
    }
}

/// The body in a text form the schema decoder reads.
pub(crate) fn as_json(received: Received) -> Result<Received, ApiError> {
    check_media_type(&received.media_type)?;
    Ok(received)
}

/// A body of any kind as a document, without looking at its schema.
pub(crate) fn plain_document(received: &Received) -> Result<Document, ApiError> {
    check_media_type(&received.media_type)?;
    let parsed = if received.media_type == "application/yaml" {
        serde_yaml_ng::from_slice(&received.bytes).map_err(|e| e.to_string())
    } else {
        serde_json::from_slice(&received.bytes).map_err(|e| e.to_string())
    };
    let doc: Document =
        parsed.map_err(|e| status::bad_request(format!("the object provided is unrecognized (must be of type Object): {e}")))?;
    if !doc.is_object() {
        return Err(status::bad_request("the object provided is unrecognized (must be of type Object)"));
    }
    Ok(doc)
}

/// A body as an object of the request's resource. Warnings come back with it.
pub(crate) fn decode(call: &Call, received: &Received) -> Result<(Document, Vec<String>), ApiError> {
    let validation = FieldValidation::parse(call.query().get("fieldValidation"))?;
    let (mut doc, mut warnings) = schema::decode(&call.resource, &received.bytes, &received.media_type, validation)?;
    if let Some(custom) = &call.custom {
        warnings.extend(custom.prune(&mut doc, validation)?);
    }
    Ok((doc, warnings))
}
