//! Reading one object.

use http::StatusCode;
use xebec_api::status::{self, ApiError};

use super::{
    Call, options,
    present::{Presenter, to_row_version},
    store_error,
};
use crate::{
    cache::from_stored,
    http::{Response, respond},
};

/// GET of an object or of a view of it.
pub(crate) async fn get(mut call: Call) -> Result<Response, ApiError> {
    let kind = call.kind()?;
    let name = call.info.name.clone();
    let asked = call.query().get("resourceVersion").to_string();
    if asked.is_empty() {
        let key = call.store_key(&name);
        let found = call.core.store.get(&key).await.map_err(store_error)?;
        let kv = found.kv.ok_or_else(|| status::not_found(&call.resource, &name))?;
        let doc =
            from_stored(&kv.value, kv.mod_revision).map_err(|e| status::internal(&format!("stored object cannot be decoded: {e}")))?;
        let doc = to_row_version(&call.resource, doc);
        return call.answer(StatusCode::OK, &doc);
    }
    let revision = options::resource_version(&asked)?;
    if revision > 0 && !call.core.hub.wait(revision).await {
        return Err(status::too_large_resource_version(revision, call.core.hub.revision()));
    }
    let entry = kind.get(&call.object_key(&name)).ok_or_else(|| status::not_found(&call.resource, &name))?;
    let presenter = Presenter::new(call.resource.clone(), call.wanted()?, call.query())?;
    if presenter.is_verbatim() {
        return Ok(respond::bytes(StatusCode::OK, presenter.wanted.format, entry.bytes.clone()));
    }
    let doc = presenter.document(&entry);
    call.answer(StatusCode::OK, &doc)
}
