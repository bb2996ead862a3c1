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
    http::{
        Response,
        negotiate::{self, Format},
        respond,
    },
    rows::Table,
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

/// Answers `/openapi/v2`, `/openapi/v3` and the documents of group versions below it. JSON only: clients that know
/// version 3, kubectl since 1.27, read JSON; the older protobuf form of version 2 is refused (406).
pub(crate) fn openapi_response(core: &Core, path: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let table = core.rows.table();
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let protobuf_only = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .all(|media| media.ends_with("+protobuf"));
    if protobuf_only && headers.contains_key(header::ACCEPT) {
        return Err(status::not_acceptable(&["application/json"]));
    }
    let (bytes, etag) = core.documents.get(table.generation, path, || {
        let refs = table.refs();
        let doc = match parts.as_slice() {
            ["v2"] => Some(openapi::v2(&refs)),
            ["v3"] => Some(index_with_customs(&table, openapi::v3_index(&refs))),
            ["v3", "api", version] => openapi::v3_group(&refs, "", version),
            ["v3", "apis", group, version] => openapi::v3_group(&refs, group, version).map(|doc| with_customs(&table, group, version, doc)),
            _ => None,
        };
        doc.map(|doc| respond::encode(Format::Json, &doc)).ok_or_else(status::no_such_path)
    })?;
    Ok(with_etag(headers, respond::bytes(StatusCode::OK, Format::Json, bytes), &etag))
}

/// The index with addresses that change with the schemas of custom resources, which clients cache by them.
fn index_with_customs(table: &Table, mut index: Value) -> Value {
    let mut digests: HashMap<String, Sha256> = HashMap::new();
    for row in table.rows() {
        if let Some(custom) = table.custom(row) {
            digests.entry(format!("apis/{}", row.api_version())).or_default().update(custom.openapi.to_string());
        }
    }
    for (path, digest) in digests {
        let hash: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
        index["paths"][&path]["serverRelativeURL"] = format!("/openapi/v3/{path}?hash={hash}").into();
    }
    index
}

/// The document of a group version with the schemas its definitions give.
fn with_customs(table: &Table, group: &str, version: &str, mut doc: Value) -> Value {
    let Some(schemas) = doc["components"]["schemas"].as_object_mut() else { return doc };
    for row in table.rows().iter().filter(|row| row.group == group && row.version == version) {
        let Some(custom) = table.custom(row) else { continue };
        if !custom.openapi.is_object() {
            continue;
        }
        let own = json!({"group": group, "version": version, "kind": row.kind});
        let is_own = |schema: &Value| schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|kinds| kinds.contains(&own));
        let Some(schema) = schemas.values_mut().find(|schema| is_own(schema)) else { continue };
        let mut full = custom.openapi.clone();
        full["properties"]["apiVersion"] =
            json!({"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."});
        full["properties"]["kind"] = json!({"type": "string", "description": "Kind is the REST resource this object represents."});
        full["properties"]["metadata"] =
            json!({"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}]});
        full["x-kubernetes-group-version-kind"] = json!([own]);
        *schema = full;
    }
    doc
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
