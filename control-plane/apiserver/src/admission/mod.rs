//! The built-in admission plugins, in upstream's order. A plugin is a function over the change and the live objects.

mod certificates;
mod defaults;
mod limits;
mod namespace;
pub(crate) mod node_restriction;
mod pod_security;
mod priority;
pub mod quota;
mod runtime_class;
mod service_account;

use std::sync::Arc;

use xebec_api::{
    Document, meta,
    status::{self, ApiError},
};
use xebec_store::Store;

use crate::authz::{Chain, escalation};
use crate::extension::{Admission, Change, Operation};
use crate::objects::Objects;

/// All built-in plugins.
pub struct BuiltIn {
    objects: Arc<dyn Objects>,
    /// For reads that must not miss what was written a moment ago.
    store: Arc<dyn Store>,
    authorizer: Arc<Chain>,
    pending: quota::Pending,
}

impl BuiltIn {
    pub fn new(objects: Arc<dyn Objects>, store: Arc<dyn Store>, authorizer: Arc<Chain>) -> BuiltIn {
        BuiltIn { objects, store, authorizer, pending: quota::Pending::default() }
    }

    /// The object by the cache, else by the store.
    async fn fresh(&self, prefix: &str, namespace: &str, name: &str) -> Result<Option<Document>, ApiError> {
        if let Some(doc) = self.objects.get(prefix, namespace, name) {
            return Ok(Some(doc));
        }
        let key = match namespace {
            "" => format!("{}{prefix}/{name}", crate::cache::ROOT),
            namespace => format!("{}{prefix}/{namespace}/{name}", crate::cache::ROOT),
        };
        let found = self.store.get(&key).await.map_err(|e| status::service_unavailable(e.to_string()))?;
        Ok(found.kv.and_then(|kv| serde_json::from_slice(&kv.value).ok()))
    }
}

#[async_trait::async_trait]
impl Admission for BuiltIn {
    async fn mutate(&self, change: &mut Change<'_>) -> Result<(), ApiError> {
        namespace::lifecycle(self, change).await?;
        node_restriction::admit(&*self.objects, change)?;
        if is(change, "", "pods") && change.subresource.is_empty() {
            if change.operation == Operation::Create {
                limits::mutate(&*self.objects, change);
                service_account::mutate(self, change).await?;
                priority::mutate(&*self.objects, change)?;
                runtime_class::mutate(&*self.objects, change)?;
            }
            defaults::tolerations(change);
        }
        if change.operation == Operation::Create && change.subresource.is_empty() {
            defaults::storage_class(&*self.objects, change)?;
            defaults::ingress_class(&*self.objects, change)?;
        }
        Ok(())
    }

    async fn validate(&self, change: &mut Change<'_>) -> Result<(), ApiError> {
        pod_security::validate(self, change).await?;
        if change.subresource.is_empty() {
            limits::validate(&*self.objects, change)?;
        }
        if is(change, "scheduling.k8s.io", "priorityclasses") {
            priority::validate_class(&*self.objects, change)?;
        }
        if is(change, "", "persistentvolumeclaims") && change.operation == Operation::Update {
            defaults::claim_resize(&*self.objects, change)?;
        }
        if is(change, "certificates.k8s.io", "certificatesigningrequests") {
            certificates::validate(&*self.authorizer, change)?;
        }
        if change.resource.group == "rbac.authorization.k8s.io"
            && matches!(change.operation, Operation::Create | Operation::Update)
            && let Some(object) = &change.object
        {
            let plural = &change.resource.plural;
            let rbac = self.authorizer.rbac();
            escalation::check(&*self.authorizer, rbac, change.user, plural, change.namespace, object, change.old)?;
        }
        // Last: what passes here is counted.
        quota::validate(&*self.objects, &self.pending, change)
    }
}

fn is(change: &Change<'_>, group: &str, plural: &str) -> bool {
    change.resource.group == group && change.resource.plural == plural
}

/// 403 about the object of the change.
fn refuse(change: &Change<'_>, why: impl AsRef<str>) -> ApiError {
    let generated = || change.object.as_ref().and_then(|o| o["metadata"]["generateName"].as_str()).unwrap_or_default();
    let own = change.object.as_ref().or(change.old).map(meta::name).unwrap_or_default();
    let name = [change.name, own, generated()].into_iter().find(|n| !n.is_empty()).unwrap_or_default();
    status::forbidden(change.resource, name, why.as_ref())
}

#[cfg(test)]
mod testing {
    use serde_json::Value;
    use xebec_api::{builtin, resource::Resource};

    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    /// A change of a built-in kind to run plugins on.
    pub fn change<'a>(
        user: &'a UserInfo,
        operation: Operation,
        kind: (&str, &str),
        object: Option<Value>,
        old: Option<&'a Value>,
    ) -> Change<'a> {
        let resource: &'static Resource = builtin::by_kind(kind.0, kind.1).unwrap();
        Change {
            user,
            operation,
            resource,
            subresource: "",
            namespace: if resource.is_namespaced() { "a" } else { "" },
            name: "",
            object,
            old,
            dry_run: false,
            warnings: Vec::new(),
        }
    }

    /// All plugins over fixed objects and an empty store.
    pub fn built_in(objects: Vec<(&str, Value)>) -> (BuiltIn, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = xebec_store::embedded::open(dir.path().join("s"), xebec_store::embedded::Options::default()).unwrap();
        let objects = Arc::new(Fixed::new(objects));
        (BuiltIn::new(objects.clone(), Arc::new(store), Arc::new(Chain::new(objects))), dir)
    }

    /// What mutation and validation make of a new object.
    pub async fn create(plugins: &BuiltIn, user: &UserInfo, kind: (&str, &str), object: Value) -> Result<Value, ApiError> {
        let mut change = change(user, Operation::Create, kind, Some(object), None);
        plugins.mutate(&mut change).await?;
        plugins.validate(&mut change).await?;
        Ok(change.object.unwrap())
    }
}
