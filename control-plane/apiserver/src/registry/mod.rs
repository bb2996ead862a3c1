//! The generic registry: one code path for every kind.
//!
//! A request has been authenticated and authorized when it comes here. Reads are answered from the watch cache, writes go
//! through admission, preparation and validation to one compare-and-swap in the store.

mod binding;
mod body;
mod create;
mod delete;
mod deletion_plan;
mod eviction;
mod get;
pub(crate) mod internal;
mod list;
mod options;
mod patch;
mod present;
mod reviews;
mod scale;
mod token;
mod update;
mod watch;
mod write;

use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};
use xebec_api::{
    Document,
    resource::{Resource, Verb},
    status::{self, ApiError},
};
use xebec_store::StoreError;

use crate::{
    auth::UserInfo,
    cache::{KindCache, ROOT},
    core::Core,
    crd::Custom,
    http::{
        Body, Response,
        negotiate::{self, Wanted},
        respond,
    },
    request_info::{Query, RequestInfo},
};

/// A request for a resource, on its way through the registry.
pub(crate) struct Call {
    pub core: Arc<Core>,
    pub info: RequestInfo,
    pub user: UserInfo,
    pub headers: HeaderMap,
    pub resource: Arc<Resource>,
    /// The schema behind a custom resource.
    pub custom: Option<Arc<Custom>>,
    /// `Warning:` headers gathered so far.
    pub warnings: Vec<String>,
}

impl Call {
    /// The cache of the resource's storage. Errors: 404 for kinds that are never stored.
    pub fn kind(&self) -> Result<Arc<KindCache>, ApiError> {
        self.core.hub.kind(&self.resource.storage_prefix).ok_or_else(status::no_such_path)
    }

    pub fn query(&self) -> &Query {
        &self.info.query
    }

    /// Whether stored objects need conversion to be shown in the version asked for.
    pub fn converts(&self) -> bool {
        self.resource.api_version() != self.resource.storage_api_version
    }

    /// `NAMESPACE/NAME` or `NAME`.
    pub fn object_key(&self, name: &str) -> String {
        if self.resource.is_namespaced() { format!("{}/{name}", self.info.namespace) } else { name.to_string() }
    }

    /// The store's key of an object.
    pub fn store_key(&self, name: &str) -> String {
        format!("{ROOT}{}/{}", self.resource.storage_prefix, self.object_key(name))
    }

    /// The namespace of the request, `None` for cluster-scoped resources.
    pub fn namespace(&self) -> Option<&str> {
        self.resource.is_namespaced().then_some(self.info.namespace.as_str())
    }

    /// Format and shape for the answer.
    pub fn wanted(&self) -> Result<Wanted, ApiError> {
        negotiate::accept(&self.headers, self.query().flag("pretty"), true)
    }

    /// A single document as the answer, in the shape asked for.
    pub fn answer(&mut self, code: StatusCode, doc: &Document) -> Result<Response, ApiError> {
        let wanted = self.wanted()?;
        let mut response = present::single(&self.resource, wanted, self.query(), code, doc)?;
        for warning in self.warnings.drain(..) {
            respond::warn(response.headers_mut(), &warning);
        }
        Ok(response)
    }

    /// A document that is not of the resource's kind (a Status, a Scale).
    pub fn answer_plain(&mut self, code: StatusCode, doc: &Document) -> Result<Response, ApiError> {
        let wanted = negotiate::accept(&self.headers, self.query().flag("pretty"), true)?;
        let mut response = respond::document(code, wanted.format, doc);
        for warning in self.warnings.drain(..) {
            respond::warn(response.headers_mut(), &warning);
        }
        Ok(response)
    }
}

/// Finds the row of a request.
pub(crate) fn resolve(core: &Core, info: &RequestInfo) -> Result<Arc<Resource>, ApiError> {
    let resource = core.rows.table().find(&info.group, &info.version, &info.resource).ok_or_else(status::no_such_path)?;
    let in_namespace = !info.namespace.is_empty() && info.resource != "namespaces";
    if in_namespace && !resource.is_namespaced() {
        return Err(status::no_such_path());
    }
    // All namespaces at once can be listed and watched, nothing else.
    if resource.is_namespaced() && info.namespace.is_empty() && !matches!(info.verb, "list" | "watch" | "create" | "deletecollection") {
        return Err(status::no_such_path());
    }
    Ok(resource)
}

/// Answers a request for a resource or subresource.
pub(crate) async fn handle(mut call: Call, request: http::Request<Body>) -> Result<Response, ApiError> {
    if !call.info.subresource.is_empty() {
        return subresource(call, request).await;
    }
    let verb = match call.info.verb {
        "get" => Verb::Get,
        "list" => Verb::List,
        "watch" => Verb::Watch,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        _ => return Err(status::method_not_allowed()),
    };
    if !call.resource.allows(verb) {
        return Err(status::method_not_supported(&call.resource, call.info.verb));
    }
    if call.resource.is_namespaced() && call.info.namespace.is_empty() && matches!(verb, Verb::Create | Verb::DeleteCollection) {
        return Err(status::method_not_supported(&call.resource, call.info.verb));
    }
    if matches!(verb, Verb::Update | Verb::Patch) && call.info.name.is_empty() {
        return Err(status::method_not_allowed());
    }
    if verb == Verb::Create && !call.info.name.is_empty() {
        return Err(status::method_not_supported(&call.resource, call.info.verb));
    }
    if !call.resource.is_stored() {
        if verb == Verb::Create {
            let body = body::read(request).await?;
            return match call.resource.kind.as_str() {
                "Binding" => binding::create(call, body, "").await,
                _ => reviews::create(call, body).await,
            };
        }
        return Err(status::method_not_supported(&call.resource, call.info.verb));
    }
    match verb {
        Verb::Get => get::get(call).await,
        Verb::List => list::list(call).await,
        Verb::Watch => watch::watch(call).await,
        Verb::Create => {
            let body = body::read(request).await?;
            create::create(call, body).await
        }
        Verb::Update => {
            let body = body::read(request).await?;
            update::update(&mut call, body, "").await
        }
        Verb::Patch => {
            let body = body::read(request).await?;
            patch::patch(call, body, "").await
        }
        Verb::Delete => {
            let body = body::read(request).await?;
            delete::delete(call, body).await
        }
        Verb::DeleteCollection => {
            let body = body::read(request).await?;
            delete::delete_collection(call, body).await
        }
    }
}

/// Subresources that are views of the object itself: written through the same path, with the hooks told which it is.
const VIEWS: [&str; 5] = ["status", "finalize", "approval", "ephemeralcontainers", "resize"];

async fn subresource(mut call: Call, request: http::Request<Body>) -> Result<Response, ApiError> {
    let name = call.info.subresource.clone();
    let Some(sub) = call.resource.subresource(&name).cloned() else { return Err(status::no_such_path()) };
    let allowed = match call.info.verb {
        "get" => sub.verbs.contains(&Verb::Get),
        "create" => sub.verbs.contains(&Verb::Create),
        "update" => sub.verbs.contains(&Verb::Update),
        "patch" => sub.verbs.contains(&Verb::Patch),
        "delete" => sub.verbs.contains(&Verb::Delete),
        _ => false,
    };
    if !allowed {
        return Err(status::method_not_supported(&call.resource, call.info.verb));
    }
    if VIEWS.contains(&name.as_str()) {
        return match call.info.verb {
            "get" => get::get(call).await,
            "update" => {
                let body = body::read(request).await?;
                update::update(&mut call, body, &name).await
            }
            "patch" => {
                let body = body::read(request).await?;
                patch::patch(call, body, &name).await
            }
            _ => Err(status::method_not_supported(&call.resource, call.info.verb)),
        };
    }
    match (name.as_str(), call.info.verb) {
        ("scale", "get") => scale::get(call).await,
        ("scale", "update") => {
            let body = body::read(request).await?;
            scale::update(call, body).await
        }
        ("scale", "patch") => {
            let body = body::read(request).await?;
            scale::patch(call, body).await
        }
        ("binding", "create") => {
            let body = body::read(request).await?;
            let pod = call.info.name.clone();
            binding::create(call, body, &pod).await
        }
        ("eviction", "create") => {
            let body = body::read(request).await?;
            eviction::create(call, body).await
        }
        ("token", "create") => {
            let body = body::read(request).await?;
            token::create(call, body).await
        }
        _ => Err(status::no_such_path()),
    }
}

/// What a client is told when the store fails.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { requested, oldest } => status::watch_too_old(requested, oldest),
        StoreError::FutureRevision { requested, current } => status::too_large_resource_version(requested, current),
        StoreError::TooLarge { .. } => status::request_too_large_because("the object is larger than the store takes"),
        StoreError::Lagged { .. } | StoreError::Unavailable(_) => status::service_unavailable(error.to_string()),
        other => status::internal(&other.to_string()),
    }
}

/// The media type of the request, lower case, `application/json` when missing.
pub(crate) fn body_type(headers: &HeaderMap) -> String {
    let given = negotiate::content_type(headers);
    if given.is_empty() && headers.get(header::CONTENT_TYPE).is_none() { "application/json".into() } else { given }
}
