//! Documents about the API itself: discovery and OpenAPI, made once for each state of the table of rows.

use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xebec_api::{
    discovery, openapi,
    status::{self, ApiError},
};

use crate::{
    core::Core,
    crd::openapi as customs,
    http::{
        Response,
        negotiate::{self, Format},
        respond,
    },
};

/// Encoded documents by path and variant, with their ETag.
#[derive(Default)]
pub struct Documents {
    cache: Mutex<(u64, HashMap<String, (Bytes, String)>)>,
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers `/api`, `/apis` and what lies below as far as it is no resource.
pub(crate) fn discovery_response(core: &Core, path: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let table = core.rows.table();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let aggregated = parts.len() == 1 && wants_aggregated(headers);
    let format = if aggregated { Format::Json } else { negotiate::accept(headers, false, false)?.format };
    let key = format!("{path} {aggregated} {format:?}");
    let address = std::net::SocketAddr::new(core.config.advertised(), core.config.bind.port()).to_string();
    let (bytes, etag) = core.documents.get(table.generation, &key, || {
        let refs = table.refs();
        let doc = match parts.as_slice() {
            ["api"] if aggregated => Some(discovery::aggregated(&refs, true)),
            ["apis"] if aggregated => Some(discovery::aggregated(&refs, false)),
            ["api"] => Some(discovery::legacy(&address)),
            ["apis"] => Some(discovery::groups(&refs)),
            ["api", version] => discovery::group_version(&refs, "", version),
            ["apis", group] => discovery::group(&refs, group),
            ["apis", group, version] => discovery::group_version(&refs, group, version),
            _ => None,
        };
        doc.map(|doc| respond::encode(format, &doc)).ok_or_else(status::no_such_path)
    })?;
    let mut response = respond::bytes(StatusCode::OK, format, bytes);
    if aggregated {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    }
    if parts.len() == 1 {
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    }
    Ok(with_etag(headers, response, &etag))
}

/// How the document of OpenAPI 2 is asked for in protobuf, and how that is answered: `@` may not stand in a media type.
const OPENAPI_V2_PROTOBUF: (&str, &str) =
    ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");

/// Answers `/openapi/v2` (JSON or protobuf, as asked), `/openapi/v3` and the documents of group versions below it (JSON).
pub(crate) fn openapi_response(core: &Core, path: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let table = core.rows.table();
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let protobuf = wants_protobuf(headers, parts == ["v2"])?;
    let (bytes, etag) = core.documents.get(table.generation, &format!("{path} {protobuf}"), || {
        let refs = table.refs();
        let doc = match parts.as_slice() {
            ["v2"] => Some(customs::in_v2(&table, openapi::v2(&refs))),
            ["v3"] => Some(customs::in_v3_index(&table, openapi::v3_index(&refs))),
            ["v3", "api", version] => openapi::v3_group(&refs, "", version),
            ["v3", "apis", group, version] => {
                openapi::v3_group(&refs, group, version).map(|doc| customs::in_v3(&table, group, version, doc))
            }
            _ => None,
        };
        let doc = doc.ok_or_else(status::no_such_path)?;
        Ok(if protobuf { openapi::protobuf::encode(&doc).into() } else { respond::encode(Format::Json, &doc) })
    })?;
    let mut response = respond::bytes(StatusCode::OK, Format::Json, bytes);
    if protobuf {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENAPI_V2_PROTOBUF.1));
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(with_etag(headers, response, &etag))
}

/// Which of the two encodings the client names first. Error: it takes neither.
fn wants_protobuf(headers: &HeaderMap, offered: bool) -> Result<bool, ApiError> {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let mut named = ranges.map(|range| range.split(';').next().unwrap_or_default().trim()).peekable();
    if named.peek().is_none() {
        return Ok(false);
    }
    for media in named {
        match media {
            "" | "*" | "*/*" | "application/*" | "application/json" => return Ok(false),
            media if offered && (media == OPENAPI_V2_PROTOBUF.0 || media == OPENAPI_V2_PROTOBUF.1) => return Ok(true),
            _ => {}
        }
    }
    Err(status::not_acceptable(if offered { &["application/json", OPENAPI_V2_PROTOBUF.0] } else { &["application/json"] }))
}

/// Whether the first acceptable type is the aggregated list (client-go offers v2 and v2beta1 before plain JSON).
fn wants_aggregated(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|range| {
        range.contains("as=APIGroupDiscoveryList")
            && range.contains("v=v2")
            && !range.contains("v=v2beta1")
            && range.trim().starts_with("application/json")
    })
}

impl Documents {
    /// The encoded document of `key`, made by `make` when the table has changed since.
    pub(crate) fn get(
        &self,
        generation: u64,
        key: &str,
        make: impl FnOnce() -> Result<Bytes, ApiError>,
    ) -> Result<(Bytes, String), ApiError> {
        {
            let mut cache = self.cache.lock();
            if cache.0 != generation {
                *cache = (generation, HashMap::new());
            }
            if let Some(found) = cache.1.get(key) {
                return Ok(found.clone());
            }
        }
        let bytes = make()?;
        let digest = Sha256::digest(&bytes);
        let etag: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        let made = (bytes, format!("\"{etag}\""));
        let mut cache = self.cache.lock();
        // Paths come from clients: only what exists is kept, so the cache is as large as the API.
        if cache.0 == generation {
            cache.1.insert(key.to_string(), made.clone());
        }
        Ok(made)
    }
}

/// Adds the ETag; answers 304 when the client has it already.
pub(crate) fn with_etag(headers: &HeaderMap, mut response: Response, etag: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|tag| tag.trim() == etag)));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = crate::http::full(Bytes::new());
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    response
}

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": concat!("v1.36.0+xebec-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
    })
}
