//! The chain every request passes: audit id, authentication, impersonation, authorization, time limit, dispatch.

mod authenticate;
mod nonresource;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use http::{HeaderMap, HeaderValue};
use xebec_api::status::{self, ApiError};

use crate::{
    auth::{Attributes, Decision, UserInfo},
    core::Core,
    http::{Peer, Request, Response, respond},
    proxy::Proxy,
    registry::{self, Call},
    request_info::RequestInfo,
};

/// Requests that do not stream are given up after this, as upstream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Core {
    /// Answers one request; never fails, never panics.
    pub async fn serve(self: Arc<Self>, request: Request, peer: Peer) -> Response {
        let started = Instant::now();
        let core = self.clone();
        let _inflight = core.metrics.begin();
        let info = RequestInfo::parse(request.method(), request.uri());
        let headers = request.headers().clone();
        let audit_id = audit_id(&headers);
        let known = info.is_resource && core.rows.table().find(&info.group, &info.version, &info.resource).is_some();
        let limit = if info.is_long_running() { None } else { Some(REQUEST_TIMEOUT) };
        let answering = AssertUnwindSafe(chain(self, info.clone(), request, peer).boxed()).catch_unwind();
        let outcome = match limit {
            Some(limit) => tokio::time::timeout(limit, answering).await,
            None => Ok(answering.await),
        };
        let mut response = match outcome {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(error))) => respond::error(&headers, &error),
            Ok(Err(_panic)) => {
                tracing::error!(path = %info.path, verb = info.verb, "request handler panicked");
                respond::error(
                    &headers,
                    &status::internal(
                        "an error on the server (\"This request caused apiserver to panic. Look in the logs for details.\") has prevented the request from succeeding",
                    ),
                )
            }
            Err(_elapsed) => respond::error(&headers, &status::timeout("request did not complete within the allotted timeout")),
        };
        response.headers_mut().insert("audit-id", audit_id);
        core.metrics.finished(&info, known, response.status().as_u16(), started.elapsed());
        tracing::debug!(verb = info.verb, path = %info.path, code = response.status().as_u16(), took = ?started.elapsed(), "request");
        response
    }
}

async fn chain(core: Arc<Core>, info: RequestInfo, request: Request, peer: Peer) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    let mut user = authenticate::authenticate(&core, &peer, &headers).await?;
    if let Some(other) = authenticate::impersonate(&core, &user, &headers)? {
        user = other;
    }
    authorize(&core, &user, &info)?;
    if !info.is_resource {
        let (parts, _) = request.into_parts();
        return nonresource::answer(core, info, parts.method, parts.headers).await;
    }
    if Proxy::handles(&info) {
        return Ok(core.proxy.handle(&info, request).await);
    }
    let resource = registry::resolve(&core, &info)?;
    let custom = core.rows.table().custom(&resource);
    let call = Call { core, info, user, headers, resource, custom, warnings: Vec::new() };
    registry::handle(call, request).await
}

/// Asks the authorizer about the request itself.
fn authorize(core: &Core, user: &UserInfo, info: &RequestInfo) -> Result<(), ApiError> {
    let attributes = Attributes {
        user,
        verb: info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: info.name_for_authorization(),
        path: &info.path,
        field_selector: info.query.get("fieldSelector"),
        label_selector: info.query.get("labelSelector"),
    };
    match core.extensions.authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(reason) => Err(forbidden(&attributes, &reason)),
    }
}

/// 403 in upstream's words.
pub(crate) fn forbidden(attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let mut why = format!("User {:?} cannot {} ", attributes.user.name, attributes.verb);
    if attributes.resource.is_empty() {
        why.push_str(&format!("path {:?}", attributes.path));
    } else {
        let resource = if attributes.subresource.is_empty() {
            attributes.resource.to_string()
        } else {
            format!("{}/{}", attributes.resource, attributes.subresource)
        };
        why.push_str(&format!("resource {resource:?} in API group {:?}", attributes.group));
        if attributes.namespace.is_empty() {
            why.push_str(" at the cluster scope");
        } else {
            why.push_str(&format!(" in the namespace {:?}", attributes.namespace));
        }
    }
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
    status::forbidden_named(attributes.group, attributes.resource, attributes.name, &why)
}

/// The client's audit id, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get("audit-id").filter(|v| !v.is_empty() && v.len() <= 64) {
        return given.clone();
    }
    HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).unwrap_or(HeaderValue::from_static("-"))
}
