//! Deleting one object or a collection.

use chrono::Utc;
use futures::future::{BoxFuture, join_all};
use http::StatusCode;
use serde_json::json;
use xebec_api::{
    Document,
    resource::Resource,
    status::{self, ApiError},
};
use xebec_store::{Compare, Op, Txn, TxnResponse};

use super::{
    Call,
    body::{self, Received},
    deletion_plan::{self, Plan},
    list,
    options::DeleteOptions,
    present::Presenter,
    write,
};
use crate::{
    cache::to_stored,
    extension::{Change, Operation},
    http::{Response, negotiate::Shape},
};

/// How often a delete is tried against others' writes.
const ATTEMPTS: usize = 256;
/// Objects of a collection deleted at once.
const PARALLEL: usize = 8;

/// How a deletion ended.
pub(crate) struct Deleted {
    pub doc: Document,
    /// False: the object is still there, marked.
    pub gone: bool,
}

/// DELETE of an object.
pub(crate) async fn delete(mut call: Call, received: Received) -> Result<Response, ApiError> {
    let options = parse_options(&call, &received)?;
    let name = call.info.name.clone();
    let deleted = delete_one(&call, &name, &options).await?;
    let code = if !deleted.gone && options.wants_accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
    if !deleted.gone || returns_object(&call.resource) {
        return call.answer(code, &deleted.doc);
    }
    let uid = deleted.doc["metadata"]["uid"].as_str().unwrap_or_default();
    let document = status::success(&call.resource, &name, uid);
    call.answer_plain(code, &document)
}

/// DELETE of a collection.
pub(crate) async fn delete_collection(mut call: Call, received: Received) -> Result<Response, ApiError> {
    let options = parse_options(&call, &received)?;
    let wanted = call.wanted()?;
    let mut presenter = Presenter::new(call.resource.clone(), wanted, call.query())?;
    presenter.wanted.shape = Shape::Object;
    let page = list::collect(&call, &presenter).await?;
    let mut items = Vec::new();
    for chunk in page.entries.chunks(PARALLEL) {
        let mut running: Vec<BoxFuture<'_, _>> = Vec::with_capacity(chunk.len());
        for entry in chunk {
            running.push(Box::pin(delete_one(&call, entry.name(), &options)));
        }
        for result in join_all(running).await {
            match result {
                Ok(deleted) => items.push(deleted.doc),
                // Somebody else was faster.
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
    }
    let document = presenter.list(&items, json!({"resourceVersion": page.revision.to_string()}));
    call.answer_plain(StatusCode::OK, &document)
}

fn parse_options(call: &Call, received: &Received) -> Result<DeleteOptions, ApiError> {
    let body = if received.bytes.is_empty() { None } else { Some(body::plain_document(received)?) };
    if let Some(kind) = body.as_ref().and_then(|b| b["kind"].as_str())
        && kind != "DeleteOptions"
    {
        return Err(status::bad_request(format!("decoded object cannot be converted to DeleteOptions: {kind}")));
    }
    DeleteOptions::parse(body.as_ref(), call.query())
}

/// Deletes as far as grace and finalizers allow.
pub(crate) async fn delete_one(call: &Call, name: &str, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let resource = &call.resource;
    for _ in 0..ATTEMPTS {
        let Some((kv, doc)) = write::read(call, name).await? else { return Err(status::not_found(resource, name)) };
        check_preconditions(resource, name, &doc, options)?;
        let mut change = Change {
            user: &call.user,
            operation: Operation::Delete,
            resource,
            subresource: "",
            namespace: &call.info.namespace,
            name,
            object: None,
            old: Some(&doc),
            dry_run: options.dry_run,
            warnings: Vec::new(),
        };
        call.core.extensions.admission.mutate(&mut change).await?;
        call.core.extensions.admission.validate(&mut change).await?;
        let (doc, op, gone) = match deletion_plan::plan(resource, &doc, options, Utc::now())? {
            Plan::Pending => return Ok(Deleted { doc, gone: false }),
            Plan::Mark(marked) if marked == doc => return Ok(Deleted { doc, gone: false }),
            Plan::Mark(marked) => {
                let mut stored = marked.clone();
                if call.converts() {
                    stored = resource.hooks.to_storage(stored);
                    stored["apiVersion"] = resource.storage_api_version.clone().into();
                }
                (marked, Op::Put { key: kv.key.clone(), value: to_stored(&mut stored).into(), ttl: None }, false)
            }
            Plan::Remove(last) => (last, Op::Delete { key: kv.key.clone() }, true),
        };
        if options.dry_run {
            return Ok(Deleted { doc, gone });
        }
        let txn = Txn { compares: vec![Compare::ModRevision { key: kv.key.clone(), revision: kv.mod_revision }], ops: vec![op] };
        match write::commit(call, txn).await? {
            TxnResponse::Committed { revision } => {
                if gone {
                    call.core.extensions.allocator.released(resource, &doc);
                }
                return Ok(Deleted { doc: write::with_revision(doc, revision), gone });
            }
            TxnResponse::Conflict { .. } => {}
        }
    }
    Err(status::conflict(resource, name))
}

fn check_preconditions(resource: &Resource, name: &str, doc: &Document, options: &DeleteOptions) -> Result<(), ApiError> {
    let present = |field: &str| doc["metadata"][field].as_str().unwrap_or_default();
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != present("uid")) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", present("uid"));
        return Err(status::conflict_because(resource, name, &why));
    }
    if let Some(version) = options.resource_version.as_deref().filter(|v| *v != present("resourceVersion")) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            present("resourceVersion")
        );
        return Err(status::conflict_because(resource, name, &why));
    }
    Ok(())
}

/// Kinds whose delete answers with the object instead of a Status: upstream's `ReturnDeletedObject`.
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.kind.as_str(),
            "Pod" | "PodTemplate" | "PersistentVolume" | "PersistentVolumeClaim" | "ResourceQuota" | "ServiceAccount" | "Service"
        )
}
