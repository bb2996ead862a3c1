//! Creating objects.

use http::StatusCode;
use xebec_api::{
    Document,
    meta::{self, Fresh},
    status::{self, ApiError},
};

use super::{
    Call,
    body::{self, Received},
    options, write,
};
use crate::{
    extension::{Change, Operation},
    http::Response,
};

/// How many generated names are tried before the client is told.
const GENERATED_NAMES: usize = 8;

/// POST of an object.
pub(crate) async fn create(mut call: Call, received: Received) -> Result<Response, ApiError> {
    options::check_write_options(call.query(), "CreateOptions")?;
    let dry_run = options::dry_run(call.query(), "CreateOptions")?;
    let (doc, warnings) = body::decode(&call, &received)?;
    call.warnings.extend(warnings);
    let created = create_document(&mut call, doc, dry_run).await?;
    call.answer(StatusCode::CREATED, &created)
}

/// Admits, prepares and stores a decoded document.
pub(crate) async fn create_document(call: &mut Call, mut doc: Document, dry_run: bool) -> Result<Document, ApiError> {
    let resource = call.resource.clone();
    let namespace = call.namespace().map(str::to_string);
    meta::set_namespace(&mut doc, namespace.as_deref())?;
    let generated = meta::name(&doc).is_empty() && doc["metadata"]["generateName"].as_str().is_some_and(|prefix| !prefix.is_empty());
    let given_name = meta::name(&doc).to_string();
    let user = call.user.clone();
    let mut change = Change {
        user: &user,
        operation: Operation::Create,
        resource: &resource,
        subresource: "",
        namespace: &call.info.namespace,
        name: &given_name,
        object: Some(doc),
        old: None,
        dry_run,
        warnings: Vec::new(),
    };
    let extensions = call.core.extensions.clone();
    extensions.admission.mutate(&mut change).await?;
    let Some(mut admitted) = change.object.take() else { return Err(status::internal("admission took the object away")) };
    resource.hooks.default(&mut admitted);
    drop_status(&resource, &mut admitted);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut doc = admitted.clone();
        meta::before_create(&resource, &mut doc, namespace.as_deref(), &Fresh::generate())?;
        let name = meta::name(&doc).to_string();
        let mut change = Change { name: &name, object: Some(doc), warnings: Vec::new(), ..again(&change) };
        let allocation = extensions.allocator.allocate(&mut change).await?;
        extensions.admission.validate(&mut change).await?;
        let mut warnings = std::mem::take(&mut change.warnings);
        let Some(doc) = change.object.take() else { return Err(status::internal("admission took the object away")) };
        warnings.extend(resource.hooks.warnings(&doc));
        let stored = if dry_run {
            match write::read(call, &name).await? {
                Some(_) => Err(status::already_exists(&resource, &name)),
                None => Ok(doc),
            }
        } else {
            write::insert(call, &name, doc).await
        };
        match stored {
            Ok(doc) => {
                if !dry_run {
                    allocation.committed();
                }
                call.warnings.extend(warnings);
                return Ok(doc);
            }
            Err(error) if error.reason == "AlreadyExists" && generated => {
                if attempt == GENERATED_NAMES {
                    return Err(status::generated_name_taken(&resource, &name));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn again<'a>(change: &Change<'a>) -> Change<'a> {
    Change { object: None, warnings: Vec::new(), ..*change }
}

/// A new object has no status but what the server gives it; a kubelet's Node comes with one.
fn drop_status(resource: &xebec_api::resource::Resource, doc: &mut Document) {
    if resource.subresource("status").is_some()
        && !(resource.group.is_empty() && resource.kind == "Node")
        && let Some(map) = doc.as_object_mut()
    {
        map.remove("status");
    }
}
