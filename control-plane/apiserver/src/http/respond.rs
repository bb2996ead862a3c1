//! Making answers.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use xebec_api::status::ApiError;

use super::{
    Response, full,
    negotiate::{Format, accept_for_error, accepts_gzip},
};

/// Smaller bodies are not worth compressing.
const GZIP_FROM: usize = 128 * 1024;

/// Encodes `value` in `format`.
pub fn encode<T: Serialize>(format: Format, value: &T) -> Bytes {
    let encoded = match format {
        Format::Json => serde_json::to_vec(value).map(|mut v| {
            v.push(b'\n');
            v
        }),
        Format::JsonPretty => serde_json::to_vec_pretty(value),
        Format::Yaml => Ok(serde_yaml_ng::to_string(value).unwrap_or_default().into_bytes()),
    };
    Bytes::from(encoded.unwrap_or_default())
}

/// The `Content-Type` of a format.
pub fn content_type(format: Format) -> HeaderValue {
    match format {
        Format::Json | Format::JsonPretty => HeaderValue::from_static("application/json"),
        Format::Yaml => HeaderValue::from_static("application/yaml"),
    }
}

/// A document with a status code.
pub fn document<T: Serialize>(code: StatusCode, format: Format, value: &T) -> Response {
    bytes(code, format, encode(format, value))
}

/// Bytes that already are in `format`.
pub fn bytes(code: StatusCode, format: Format, bytes: Bytes) -> Response {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type(format));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON bytes of one object, converted only if another format is wanted.
pub fn json_bytes(code: StatusCode, format: Format, json: Bytes) -> Response {
    match format {
        Format::Json => bytes(code, format, json),
        Format::JsonPretty | Format::Yaml => {
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
            document(code, format, &value)
        }
    }
}

/// The `Status` of an error.
pub fn error(headers: &HeaderMap, error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = document(code, accept_for_error(headers), &error.to_document());
    if let Some(seconds) = error.details.get("retryAfterSeconds").and_then(serde_json::Value::as_u64).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Plain text.
pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Bytes in `format`, compressed if the client takes it and they are many.
pub fn maybe_gzip(request: &HeaderMap, format: Format, body: Vec<u8>) -> Response {
    if body.len() < GZIP_FROM || !accepts_gzip(request) {
        return bytes(StatusCode::OK, format, body.into());
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 6), Compression::fast());
    // Writing to a Vec cannot fail.
    let compressed = encoder.write_all(&body).and_then(|()| encoder.finish()).unwrap_or_default();
    let mut response = bytes(StatusCode::OK, format, compressed.into());
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Adds a `Warning: 299` header (RFC 7234, 5.5) as kubectl prints them.
pub fn warn(headers: &mut HeaderMap, message: &str) {
    let quoted: String = message
        .chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => vec![' '],
            c => vec![c],
        })
        .collect();
    if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
        headers.append(header::WARNING, value);
    }
}
