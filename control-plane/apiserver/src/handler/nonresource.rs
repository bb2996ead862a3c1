//! Paths that are no resources: health, version, discovery, metrics.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;
use xebec_api::status::{self, ApiError};

use crate::{
    core::Core,
    documents,
    http::{
        Response,
        negotiate::{self, Format},
        respond,
    },
    request_info::RequestInfo,
};

/// Answers by path.
pub(super) async fn answer(core: Arc<Core>, info: RequestInfo, method: Method, headers: HeaderMap) -> Result<Response, ApiError> {
    let (core, headers) = (core.as_ref(), &headers);
    let path = info.path.trim_end_matches('/');
    if !matches!(method, Method::GET | Method::HEAD) {
        return Err(if known(path) { status::method_not_allowed() } else { status::no_such_path() });
    }
    match path {
        "" => Ok(paths(core)),
        "/version" => Ok(respond::document(StatusCode::OK, negotiate::accept(headers, true, false)?.format, &documents::version())),
        "/metrics" => {
            let mut response = respond::text(StatusCode::OK, core.metrics.render(&core.hub));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8".parse().expect("a constant"));
            Ok(response)
        }
        "/.well-known/openid-configuration" | "/openid/v1/jwks" => {
            let tokens = &core.extensions.tokens;
            let server = format!("https://{}", std::net::SocketAddr::new(core.config.advertised(), core.config.bind.port()));
            let (document, media_type) = match path {
                "/openid/v1/jwks" => (tokens.keys(), "application/jwk-set+json"),
                _ => (tokens.discovery(&server), "application/json"),
            };
            let mut response = respond::document(StatusCode::OK, Format::Json, &document.ok_or_else(status::no_such_path)?);
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
            response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("public, max-age=3600"));
            Ok(response)
        }
        _ if path == "/api" || path == "/apis" || path.starts_with("/api/") || path.starts_with("/apis/") => {
            documents::discovery_response(core, path, headers)
        }
        _ if path.starts_with("/openapi/") => documents::openapi_response(core, path, headers),
        _ => {
            let path = path.trim_start_matches('/');
            let (group, check) = path.split_once('/').unwrap_or((path, ""));
            if !["healthz", "livez", "readyz"].contains(&group) {
                return Err(status::no_such_path());
            }
            health(core, group.to_string(), check.to_string(), &info).await
        }
    }
}

fn known(path: &str) -> bool {
    ["", "/version", "/metrics", "/api", "/apis", "/healthz", "/livez", "/readyz"].contains(&path)
}

/// One check of the server's health.
struct Check {
    name: &'static str,
    /// Why it fails; `None`: it holds.
    failure: Option<String>,
}

/// `/healthz`, `/livez`, `/readyz` and single checks below them.
async fn health(core: &Core, group: String, single: String, info: &RequestInfo) -> Result<Response, ApiError> {
    let mut checks = vec![Check { name: "ping", failure: None }, Check { name: "log", failure: None }];
    // The names clients know from upstream; "etcd" is the store, whichever it is.
    checks.push(Check { name: "etcd", failure: core.store.revision().await.err().map(|e| e.to_string()) });
    if group == "readyz" {
        checks.push(Check { name: "informer-sync", failure: None });
        checks.push(Check { name: "shutdown", failure: core.is_stopping().then(|| "process is shutting down".to_string()) });
    }
    if !single.is_empty() {
        let Some(check) = checks.into_iter().find(|check| check.name == single) else { return Err(status::no_such_path()) };
        return Ok(match check.failure {
            None => respond::text(StatusCode::OK, "ok"),
            Some(reason) => respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {reason}\n")),
        });
    }
    let excluded: Vec<&str> = info.query.all("exclude").collect();
    let mut lines = String::new();
    let mut failed = false;
    for check in &checks {
        match &check.failure {
            _ if excluded.contains(&check.name) => lines.push_str(&format!("[+]{} excluded: ok\n", check.name)),
            None => lines.push_str(&format!("[+]{} ok\n", check.name)),
            Some(reason) => {
                tracing::warn!(check = check.name, reason, "health check failed");
                failed = true;
                lines.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
            }
        }
    }
    if failed {
        return Ok(respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{group} check failed\n")));
    }
    if info.query.has("verbose") {
        return Ok(respond::text(StatusCode::OK, format!("{lines}{group} check passed\n")));
    }
    Ok(respond::text(StatusCode::OK, "ok"))
}

/// `/`: what there is.
fn paths(core: &Core) -> Response {
    let mut paths: Vec<String> =
        ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(String::from)
            .to_vec();
    for row in core.rows.table().rows().iter().filter(|r| !r.group.is_empty()) {
        for path in [format!("/apis/{}", row.group), format!("/apis/{}", row.api_version())] {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths.sort();
    respond::document(StatusCode::OK, Format::JsonPretty, &json!({"paths": paths}))
}
