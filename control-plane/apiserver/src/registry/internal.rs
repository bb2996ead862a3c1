//! Writes the server makes on its own account, through the same paths as a client's.

use std::sync::Arc;

use http::HeaderMap;
use xebec_api::{
    Document,
    resource::Resource,
    status::{self, ApiError},
};

use super::{Call, delete, options::DeleteOptions, write};
use crate::{auth::UserInfo, core::Core, request_info::RequestInfo};

fn call(core: &Arc<Core>, resource: Arc<Resource>, namespace: &str, name: &str) -> Call {
    let info = RequestInfo {
        is_resource: true,
        group: resource.group.clone(),
        version: resource.version.clone(),
        resource: resource.plural.clone(),
        namespace: namespace.to_string(),
        name: name.to_string(),
        ..RequestInfo::default()
    };
    Call { core: core.clone(), info, user: UserInfo::loopback(), headers: HeaderMap::new(), resource, custom: None, warnings: Vec::new() }
}

/// Changes an object without admission and validation; none there is no error.
pub(crate) async fn modify<F>(core: &Arc<Core>, group: &str, plural: &str, namespace: &str, name: &str, change: F) -> Result<(), ApiError>
where
    F: Fn(&mut Document) + Send,
{
    let resource = core.rows.table().any_version(group, plural).ok_or_else(status::no_such_path)?;
    let call = call(core, resource, namespace, name);
    let changed = write::modify(&call, name, false, move |doc| {
        change(doc);
        Ok(())
    });
    match changed.await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Deletes an object in the background way; none there is no error.
pub(crate) async fn delete(core: &Arc<Core>, resource: &Arc<Resource>, namespace: &str, name: &str) -> Result<(), ApiError> {
    let call = call(core, resource.clone(), namespace, name);
    match delete::delete_one(&call, name, &DeleteOptions::default()).await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Takes a finalizer away, and with the last one a deleted object.
pub(crate) async fn remove_finalizer(core: &Arc<Core>, group: &str, plural: &str, name: &str, finalizer: &str) -> Result<(), ApiError> {
    let resource = core.rows.table().any_version(group, plural).ok_or_else(status::no_such_path)?;
    let mut call = call(core, resource, "", name);
    let finalizer = finalizer.to_string();
    let make = move |old: &Document| -> Result<(Document, Vec<String>), ApiError> {
        let mut new = old.clone();
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| *f != finalizer);
        }
        Ok((new, Vec::new()))
    };
    match write::update_with(&mut call, name, "", false, make).await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}
