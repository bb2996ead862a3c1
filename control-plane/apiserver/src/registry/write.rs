//! What all writes share: admission, the step into the store, the retry on conflict.

use std::time::Duration;

use chrono::Utc;
use xebec_api::{
    Document, meta, patch as patches,
    resource::Resource,
    status::{self, ApiError},
};
use xebec_store::{Compare, KeyValue, Op, Revision, Txn, TxnResponse};

use super::{Call, options, present::to_row_version, store_error};
use crate::{
    cache::{from_stored, to_stored},
    extension::{Allocation, Change, Operation},
};

/// How often a write that may be repeated is tried against others' writes.
const ATTEMPTS: usize = 256;
/// A cache that is further behind than this holds no answer up.
const CACHE_DELAY: Duration = Duration::from_millis(50);
/// Events are forgotten after this long, upstream's `--event-ttl`.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// The present object of a key, in the version of the request and as stored.
pub(crate) async fn read(call: &Call, name: &str) -> Result<Option<(KeyValue, Document)>, ApiError> {
    let found = call.core.store.get(&call.store_key(name)).await.map_err(store_error)?;
    let Some(kv) = found.kv else { return Ok(None) };
    let doc = decode(&call.resource, &kv)?;
    Ok(Some((kv, doc)))
}

fn decode(resource: &Resource, kv: &KeyValue) -> Result<Document, ApiError> {
    let doc = from_stored(&kv.value, kv.mod_revision)
        .map_err(|e| status::internal(&format!("stored object {} cannot be decoded: {e}", kv.key)))?;
    Ok(to_row_version(resource, doc))
}

/// Changes the present object until the store takes it (or, with its last finalizer gone, drops it): `make` is given the present document and returns the new one.
/// It is called again when somebody else was faster; a document that insists on an older resource version then fails.
///
/// # Errors
/// 404 when there is no object, 409 on a conflict that is the client's, and whatever admission and validation say.
pub(crate) async fn update_with<F>(call: &mut Call, name: &str, sub: &str, dry_run: bool, mut make: F) -> Result<Document, ApiError>
where
    F: FnMut(&Document) -> Result<(Document, Vec<String>), ApiError>,
{
    let resource = call.resource.clone();
    for _ in 0..ATTEMPTS {
        let Some((kv, old)) = read(call, name).await? else { return Err(status::not_found(&resource, name)) };
        let (new, warnings) = make(&old)?;
        check_version(call, &new, name, kv.mod_revision)?;
        let (new, allocation, more) = prepare_update(call, new, &old, name, sub, dry_run).await?;
        let unchanged = same_object(&new, &old);
        let deleted = is_finished(&resource, &new);
        if dry_run || (unchanged && !deleted) {
            call.warnings.extend(warnings.into_iter().chain(more));
            let mut doc = new;
            doc["metadata"]["resourceVersion"] = kv.mod_revision.to_string().into();
            return Ok(doc);
        }
        let op = if deleted { Op::Delete { key: kv.key.clone() } } else { put(&resource, kv.key.clone(), &new) };
        let txn = Txn { compares: vec![Compare::ModRevision { key: kv.key.clone(), revision: kv.mod_revision }], ops: vec![op] };
        match commit(call, txn).await? {
            TxnResponse::Committed { revision } => {
                if let Some(allocation) = allocation {
                    allocation.committed();
                }
                if deleted {
                    call.core.extensions.allocator.released(&resource, &new);
                }
                call.warnings.extend(warnings.into_iter().chain(more));
                return Ok(with_revision(new, revision));
            }
            TxnResponse::Conflict { .. } => {}
        }
    }
    Err(status::conflict(&resource, name))
}

/// Changes an object as the server itself: no admission, no defaults, no validation.
///
/// # Errors
/// 404 when there is no object, and what `change` says.
pub(crate) async fn modify<F>(call: &Call, name: &str, dry_run: bool, change: F) -> Result<Document, ApiError>
where
    F: Fn(&mut Document) -> Result<(), ApiError>,
{
    for _ in 0..ATTEMPTS {
        let Some((kv, old)) = read(call, name).await? else { return Err(status::not_found(&call.resource, name)) };
        let mut new = old.clone();
        change(&mut new)?;
        if dry_run || new == old {
            return Ok(new);
        }
        let op = put(&call.resource, kv.key.clone(), &new);
        let txn = Txn { compares: vec![Compare::ModRevision { key: kv.key, revision: kv.mod_revision }], ops: vec![op] };
        if let TxnResponse::Committed { revision } = commit(call, txn).await? {
            return Ok(with_revision(new, revision));
        }
    }
    Err(status::conflict(&call.resource, name))
}

/// Compares the document's resource version, if it has one, with the present one.
fn check_version(call: &Call, new: &Document, name: &str, present: Revision) -> Result<(), ApiError> {
    let given = match &new["metadata"]["resourceVersion"] {
        serde_json::Value::Null => "",
        value => value.as_str().unwrap_or("invalid"),
    };
    if given.is_empty() || given == "0" {
        return Ok(());
    }
    let revision: Revision = given.parse().map_err(|_| {
        let error = xebec_api::status::FieldError::invalid("metadata.resourceVersion", given, "must be an unsigned integer");
        status::invalid(&call.resource, name, &[error])
    })?;
    if revision != present {
        return Err(status::conflict(&call.resource, name));
    }
    Ok(())
}

/// Admission, defaults, preparation, validation, allocation of an update. Returns warnings as well.
async fn prepare_update(
    call: &Call,
    new: Document,
    old: &Document,
    name: &str,
    sub: &str,
    dry_run: bool,
) -> Result<(Document, Option<Allocation>, Vec<String>), ApiError> {
    let resource = &call.resource;
    let mut change = Change {
        user: &call.user,
        operation: Operation::Update,
        resource,
        subresource: sub,
        namespace: &call.info.namespace,
        name,
        object: Some(new),
        old: Some(old),
        dry_run,
        warnings: Vec::new(),
    };
    call.core.extensions.admission.mutate(&mut change).await?;
    let Some(mut new) = change.object.take() else { return Err(status::internal("admission took the object away")) };
    resource.hooks.default(&mut new);
    keep_what_is_not_theirs(resource, &mut new, old, sub);
    meta::before_update(resource, &mut new, old, sub)?;
    // Patches and applies say themselves what they changed; a whole object is compared once it is complete.
    if call.info.verb == "update" {
        let name = options::manager(call);
        patches::track_update(resource, &mut new, old, &patches::Manager { name: &name, force: false, subresource: sub, now: Utc::now() })?;
    }
    change.warnings.extend(resource.hooks.warnings(&new));
    change.object = Some(new);
    let allocation = call.core.extensions.allocator.allocate(&mut change).await?;
    call.core.extensions.admission.validate(&mut change).await?;
    let warnings = std::mem::take(&mut change.warnings);
    let Some(new) = change.object.take() else { return Err(status::internal("admission took the object away")) };
    Ok((new, Some(allocation), warnings))
}

/// Writes through `status` change only the status, writes to the object all but the status.
fn keep_what_is_not_theirs(resource: &Resource, new: &mut Document, old: &Document, sub: &str) {
    let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) else { return };
    let mut keep = |field: &str| match old.get(field) {
        Some(value) => {
            new.insert(field.to_string(), value.clone());
        }
        None => {
            new.remove(field);
        }
    };
    match sub {
        "" if resource.subresource("status").is_some() => keep("status"),
        "status" => {
            let mut fields: Vec<String> = old.keys().cloned().collect();
            fields.extend(new.keys().cloned());
            for field in fields.iter().filter(|f| !["apiVersion", "kind", "metadata", "status"].contains(&f.as_str())) {
                match old.get(field) {
                    Some(value) => new.insert(field.clone(), value.clone()),
                    None => new.remove(field),
                };
            }
        }
        _ => {}
    }
}

/// Whether nothing but the resource version differs.
fn same_object(new: &Document, old: &Document) -> bool {
    let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return false };
    let fields = |doc: &serde_json::Map<String, Document>| doc.iter().filter(|(k, _)| *k != "metadata").count();
    if fields(a) != fields(b) || a.iter().any(|(k, v)| k != "metadata" && b.get(k) != Some(v)) {
        return false;
    }
    let meta = |doc: &serde_json::Map<String, Document>| {
        let mut meta = doc.get("metadata").cloned().unwrap_or_default();
        if let Some(meta) = meta.as_object_mut() {
            meta.remove("resourceVersion");
        }
        meta
    };
    meta(a) == meta(b)
}

/// Whether an object being deleted has nothing left to wait for.
fn is_finished(resource: &Resource, doc: &Document) -> bool {
    let metadata = &doc["metadata"];
    let empty = |value: &Document| value.as_array().is_none_or(Vec::is_empty);
    if metadata["deletionTimestamp"].is_null() || !empty(&metadata["finalizers"]) {
        return false;
    }
    if resource.group.is_empty() && resource.kind == "Namespace" && !empty(&doc["spec"]["finalizers"]) {
        return false;
    }
    metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

/// Commits, and lets the cache catch up before the client hears of it: what the client does next is then judged
/// (authorized, admitted, listed) with this write in view.
pub(crate) async fn commit(call: &Call, txn: Txn) -> Result<TxnResponse, ApiError> {
    let response = call.core.store.txn(txn).await.map_err(store_error)?;
    if let TxnResponse::Committed { revision } = response {
        call.core.hub.wait_at_most(revision, CACHE_DELAY).await;
    }
    Ok(response)
}

/// Stores a new object.
///
/// # Errors
/// 409 when the name is taken.
pub(crate) async fn insert(call: &Call, name: &str, doc: Document) -> Result<Document, ApiError> {
    let key = call.store_key(name);
    let txn = Txn { compares: vec![Compare::Absent { key: key.clone() }], ops: vec![put(&call.resource, key, &doc)] };
    match commit(call, txn).await? {
        TxnResponse::Committed { revision } => Ok(with_revision(doc, revision)),
        TxnResponse::Conflict { .. } => Err(status::already_exists(&call.resource, name)),
    }
}

/// The document in its stored form as a put.
fn put(resource: &Resource, key: String, doc: &Document) -> Op {
    let mut doc = doc.clone();
    if resource.api_version() != resource.storage_api_version {
        doc = resource.hooks.to_storage(doc);
        doc["apiVersion"] = resource.storage_api_version.clone().into();
    }
    let ttl = (resource.storage_prefix == "events").then_some(EVENT_TTL);
    Op::Put { key, value: to_stored(&mut doc).into(), ttl }
}

/// The document with its new resource version.
pub(crate) fn with_revision(mut doc: Document, revision: Revision) -> Document {
    doc["metadata"]["resourceVersion"] = revision.to_string().into();
    doc
}
