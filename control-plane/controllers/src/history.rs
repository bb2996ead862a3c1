//! ControllerRevisions: the templates that a DaemonSet or StatefulSet had, so that it can tell old pods and go back.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use xebec_loops::meta::{is_controlled_by, uid};
use xebec_loops::{Cache, Error, Key, api_already_exists, ignore_not_found};

use crate::deployment::template_hash;

/// Label on pods that names their revision.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// Whose revisions, and of what.
pub struct Owner<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub reference: OwnerReference,
    pub template: &'a PodTemplateSpec,
    pub collisions: i32,
}

/// The present revision and all others, oldest first.
pub struct History {
    pub update: Arc<ControllerRevision>,
    pub old: Vec<Arc<ControllerRevision>>,
}

/// What came of looking for the present revision.
pub enum Found {
    /// It is there, or was made.
    History(History),
    /// Its name is taken by another template: the collision count must grow.
    Collision,
}

fn data_of(template: &PodTemplateSpec) -> Result<Value, Error> {
    let mut template = serde_json::to_value(template)?;
    template["$patch"] = json!("replace");
    Ok(json!({ "spec": { "template": template } }))
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Finds the revision of the owner's template, makes it if there is none, and renews it if the owner went back to it.
///
/// # Errors
/// Any refusal of the API.
pub async fn sync(client: &kube::Client, cache: &Cache<ControllerRevision>, owner: &Owner<'_>) -> Result<Found, Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), owner.namespace);
    let mut all: Vec<Arc<ControllerRevision>> =
        cache.in_namespace(owner.namespace).into_iter().filter(|r| is_controlled_by(&r.metadata, &owner.reference.uid)).collect();
    all.sort_by(|a, b| {
        let order = |r: &ControllerRevision| (r.revision, r.metadata.creation_timestamp.clone(), r.metadata.name.clone());
        order(a).cmp(&order(b))
    });
    let next = all.last().map_or(1, |r| r.revision + 1);
    let data = data_of(owner.template)?;
    // Compared as templates: the API server may have written the JSON in another form.
    let same = |r: &ControllerRevision| template_of(r).as_ref() == Some(owner.template);
    let position = all.iter().rposition(|r| same(r));
    let update = match position {
        Some(i) if i + 1 == all.len() => all.remove(i),
        Some(i) => {
            let old = all.remove(i);
            let name = old.metadata.name.clone().unwrap_or_default();
            let renewed = api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({ "revision": next }))).await?;
            cache.observe(renewed.clone());
            Arc::new(renewed)
        }
        None => {
            let hash = template_hash(owner.template, owner.collisions);
            let mut labels = owner.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
            labels.insert(HASH_LABEL.into(), hash.clone());
            let name = format!("{}-{hash}", owner.name);
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(owner.namespace.to_owned()),
                    labels: Some(labels),
                    owner_references: Some(vec![owner.reference.clone()]),
                    ..Default::default()
                },
                data: Some(RawExtension(data)),
                revision: next,
            };
            match api.create(&PostParams::default(), &revision).await {
                Ok(created) => {
                    cache.observe(created.clone());
                    Arc::new(created)
                }
                Err(error) if api_already_exists(&error) => {
                    let there = api.get(&name).await?;
                    if !same(&there) || !is_controlled_by(&there.metadata, &owner.reference.uid) {
                        return Ok(Found::Collision);
                    }
                    cache.observe(there.clone());
                    Arc::new(there)
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    Ok(Found::History(History { update, old: all }))
}

/// The value of the hash label for pods of this revision.
pub fn hash_of(revision: &ControllerRevision) -> String {
    xebec_loops::meta::label(&revision.metadata, HASH_LABEL).unwrap_or_default().to_owned()
}

/// Deletes the oldest revisions beyond `limit` that no pod is of.
///
/// # Errors
/// Any refusal of the API.
pub async fn truncate(
    client: &kube::Client,
    cache: &Cache<ControllerRevision>,
    old: &[Arc<ControllerRevision>],
    live: &BTreeSet<String>,
    limit: i32,
) -> Result<(), Error> {
    let unused: Vec<&Arc<ControllerRevision>> =
        old.iter().filter(|r| !live.contains(&hash_of(r)) && !live.contains(r.metadata.name.as_deref().unwrap_or_default())).collect();
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in unused.into_iter().take(surplus) {
        let key = Key::of(&**revision);
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
        ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
        cache.observe_gone(&key, uid(&revision.metadata));
    }
    Ok(())
}
