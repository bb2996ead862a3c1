//! Bringing a manifest's objects about.

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    discovery::{self, Scope},
};
use serde::Deserialize;

/// Applies every document in order.
pub async fn apply(client: &Client, manifest: &str) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(manifest) {
        let value = serde_json::Value::deserialize(document).context("the manifest is no YAML")?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject = serde_json::from_value(value).context("a document has no apiVersion, kind or metadata")?;
        apply_object(client, &object).await?;
    }
    Ok(())
}

/// Creates one object, or brings the existing one to what is said of it.
async fn apply_object(client: &Client, object: &DynamicObject) -> Result<()> {
    let name = object.metadata.name.clone().context("a document has no name")?;
    let types = object.types.clone().context("a document has no kind")?;
    let what = || format!("cannot apply {} {name}", types.kind);
    let kind = kube::core::GroupVersionKind::try_from(&types).with_context(what)?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind).await.with_context(what)?;
    let api: Api<DynamicObject> = match (capabilities.scope, object.metadata.namespace.as_deref()) {
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
        (Scope::Namespaced, namespace) => Api::namespaced_with(client.clone(), namespace.unwrap_or("default"), &resource),
    };
    // Asked first: creating a Service again fails on its node port before it fails on its name.
    match api.get_opt(&name).await.with_context(what)? {
        None => api.create(&PostParams::default(), object).await.map(drop).with_context(what),
        Some(_) => api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await.map(drop).with_context(what),
    }
}
